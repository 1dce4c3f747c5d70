"""The container's own life in the guest: what it sees, what it writes, how it ends. Each test boots a VM."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from runtime.spec import TmpfsSpec
from tests.contract import agent_vm
from tests.contract.agent_vm import wait_for

pytestmark = pytest.mark.e2e

ENTROPY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5eg=="


def exited(code: int, signal: int | None = None) -> dict[str, object]:
    """The last event of a container that memory had nothing to do with."""
    kills = {"container": 0, "guest": 0}
    return {"event": "exited", "exit_code": code, "signal": signal, "oom_killed": False, "oom_kills": kills}


def identity(**change: object) -> dict[str, object]:
    return {
        "time_ns": 1_800_000_000 * 10**9,
        "entropy": ENTROPY,
        "machine_id": "0123456789abcdef" * 2,
        "hostname": "web-1",
        "network": None,
        "dns": ["10.97.0.1"],
        "search": ["example.test"],
        "hosts": [["10.97.0.9", "db"]],
        **change,
    }


def test_environment_identity_and_exit_code() -> None:
    script = """id -un; pwd; hostname; cat /etc/hostname /etc/machine-id /etc/resolv.conf; grep db /etc/hosts
        date +%s; echo $HOSTNAME $HOME $X; cat /tmp/t/here 2>/dev/null; stat -c %a /tmp/t; echo error >&2; exit 3"""
    with agent_vm.GuestVm() as vm:
        assert vm.control.call("hyper-identity", **identity()) == {}
        started = vm.start(
            *("sh", "-c", script),
            user="alice",
            cwd="/srv/made/for/me",
            env=["X=1", "X=2"],
            tmpfs=[{"path": "/tmp/t", "options": "rw,size=1m,mode=1777"}],
        )
        assert vm.wait() == 0
        assert started["pid"] > 1
        lines = vm.output().decode().splitlines()
        assert lines[:5] == ["alice", "/srv/made/for/me", "web-1", "web-1", "0123456789abcdef" * 2]
        assert lines[5:8] == ["nameserver 10.97.0.1", "search example.test", "10.97.0.9\tdb"]
        assert 0 <= int(lines[8]) - 1_800_000_000 < 30
        assert lines[9:] == ["web-1 /home/alice 2", "1777"]
        assert vm.output(2) == b"error\n"
        assert vm.events() == [
            {"event": "started", "pid": started["pid"]},
            exited(3),
        ]


def test_five_megabytes_reach_the_log_byte_for_byte() -> None:
    script = "head -c 5000000 /dev/urandom | tee /tmp/copy; sha256sum < /tmp/copy >&2"
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", script)
        log = vm.place / "container.log"
        # Without more credit than the VM was born with, the container waits.
        agent_vm.wait_for(lambda: log.stat().st_size >= 1 << 20, "the first credit is used up")
        for credit in (0, 1_000_000):
            written = vm.control.call("hyper-log-credit", credit=credit)["written"]
            agent_vm.wait_for(lambda: log.stat().st_size >= written + credit, "it goes on")  # noqa: B023 -- at once
            assert vm.run("true")[0] == 0  # whoever would write on, would have by now
            assert log.stat().st_size < written + credit + 32768
        assert vm.stats.call("hyper-status")["state"] == "running"
        vm.control.call("hyper-log-credit", credit=2**63 - 1)
        assert vm.wait() == 0
        output = vm.output()
        assert len(output) == 5_000_000
        assert hashlib.sha256(output).hexdigest() == vm.output(2).decode().split()[0]
        assert vm.events()[-1]["exit_code"] == 0


def test_what_children_left_behind_is_killed_and_their_last_words_kept() -> None:
    with agent_vm.GuestVm() as vm:
        began = time.monotonic()
        vm.start("sh", "-c", "(echo child; exec sleep 1000) & sleep 0.2; echo parent; exit 0")
        assert vm.wait() == 0
        assert time.monotonic() - began < 20
        assert sorted(vm.output().split()) == [b"child", b"parent"]


def test_signals_reach_the_container() -> None:
    with agent_vm.GuestVm() as vm:
        vm.start(
            "sh", "-c", "trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
        )
        wait_for(lambda: b"ready" in vm.output(), "the traps")
        vm.control.call("hyper-signal", signal=1)
        wait_for(lambda: b"hup" in vm.output(), "the first trap")
        assert vm.control.call("hyper-status")["state"] == "running"
        vm.control.call("hyper-signal", signal=15)
        assert vm.wait() == 0
        assert vm.output() == b"ready\nhup\nterm\n"
        assert vm.events()[-1] == exited(5)


def test_with_an_init_the_program_is_its_child_and_orphans_are_waited_for() -> None:
    script = """echo $$; (sh -c 'exec sleep 0' & exit 0); trap 'echo term; kill -KILL $$' TERM; echo ready
        while :; do sleep 0.1; done"""
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", script, user="alice", init=True)
        wait_for(lambda: vm.output() == b"2\nready\n", "the program runs, and not as process 1")
        code, out, _ = vm.run("cat", "/proc/1/comm", "/proc/1/status")
        assert (code, out.splitlines()[0]) == (0, b"init")
        status = dict(line.split(b":", 1) for line in out.splitlines()[1:])
        assert status[b"Uid"].split() == [b"1000"] * 4
        assert int(status[b"CapPrm"], 16) == 0
        states = vm.run("sh", "-c", "cat /proc/[0-9]*/stat")[1]
        assert b" Z " not in states, "nothing stays a zombie"
        vm.control.call("hyper-signal", signal=15)
        assert vm.wait() == 0
        assert vm.output() == b"2\nready\nterm\n"
        assert vm.events()[-1] == exited(137)


def test_an_init_passes_on_each_signal() -> None:
    script = "trap 'echo first' 34; trap 'echo last' 64; echo ready; while :; do sleep 0.1; done"
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", script, init=True)
        wait_for(lambda: vm.output() == b"ready\n", "the traps")
        for signal, said in ((34, b"ready\nfirst\n"), (64, b"ready\nfirst\nlast\n")):
            vm.control.call("hyper-signal", signal=signal)
            wait_for(lambda: vm.output() == said, "the trap")  # noqa: B023 -- at once
        vm.control.call("hyper-signal", signal=32)
        assert vm.wait() == 0
        assert vm.events()[-1] == exited(160)


def test_an_init_has_nothing_of_pid_1_and_is_out_of_the_reach_of_root() -> None:
    with agent_vm.GuestVm() as vm:
        pid = vm.start("sleep", "1000", init=True, stdin=True)["pid"]
        paths = [*(f"/proc/{pid}/fdinfo/{number}" for number in range(100)), f"/proc/{pid}/maps"]
        *files, maps = vm.stats.call("hyper-read", files=paths)["files"]
        assert [number for number, one in enumerate(files) if "data" in one] == [0, 1, 2]
        assert "stack" in maps["data"]
        assert not [line for line in maps["data"].splitlines() if line.split()[1].endswith("s")]
        for process, reached in ((1, False), (2, True)):
            for try_it in ("readlink /proc/{}/fd/0", "cat /proc/{}/environ", "true 3<>/proc/{}/mem"):
                code, _, err = vm.run("sh", "-c", try_it.format(process))
                assert (code == 0) == reached, (process, try_it, err)
        session = vm.exec("sh", "-c", "stat -c %u /proc/$$; readlink -f /proc/$$/exe", user="alice")
        assert vm.streams.finish(session).out[1] == b"1000\n/bin/busybox\n"


def test_a_process_on_its_way_to_its_program_is_out_of_the_reach_of_root() -> None:
    # The session looks for its program in each place of a long PATH, and is a copy of PID 1 meanwhile.
    script = """is_copy() { read -r name < /proc/$1/comm && [ "$name" = init ]; }
        echo ready
        while :; do for at in /proc/[0-9]*; do
            pid=${at#/proc/}
            is_copy $pid && { true 3<>$at/mem; } && is_copy $pid && echo reached
            is_copy $pid && grep -q '^CapPrm:.*a00425fb' $at/status && is_copy $pid && echo seen
        done 2>/dev/null; done"""
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", script)
        wait_for(lambda: vm.output() == b"ready\n", "the script")
        for _ in range(10):
            assert vm.run("true", env=["PATH=" + "/x:" * 4_000 + "/bin"])[0] == 0
            if b"seen" in vm.output():
                break
        assert b"seen" in vm.output()
        assert b"reached" not in vm.output()


def test_with_an_init_the_end_of_input_is_seen() -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("cat", init=True, stdin=True)
        vm.streams.write(0, b"hi\n")
        vm.streams.send(0, agent_vm.EOF)
        assert vm.wait() == 0
        assert vm.output() == b"hi\n"
        assert vm.events()[-1] == exited(0)


def test_a_program_that_is_not_there_is_no_start_with_an_init_either() -> None:
    with agent_vm.GuestVm() as vm:
        kind, text = vm.control.refusal("hyper-start", **agent_vm.start_arguments("nothing-of-that-name", init=True))
        assert kind == "NotFound"
        assert "executable file not found" in text


def test_kill_all_ends_container_and_sessions() -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("sleep", "1000")
        assert vm.control.refusal("hyper-start", **agent_vm.start_arguments("true"))[0] == "BadState"
        session = vm.exec("sleep", "1000")
        vm.control.call("hyper-signal", signal=9, all=True)
        assert vm.streams.finish(session).exit == {"exit_code": 137, "signal": 9}
        assert vm.wait() == 0
        assert vm.events()[-1] == exited(137, 9)


@pytest.mark.parametrize(
    ("memory_max", "init", "kills"),
    [
        (20 << 20, False, {"container": 1, "guest": 0}),
        (512 << 20, False, {"container": 0, "guest": 1}),
        (20 << 20, True, {"container": 1, "guest": 0}),
    ],
)
def test_what_ran_out_of_memory_is_told(memory_max: int, init: bool, kills: dict[str, int]) -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("tail", "/dev/zero", init=init, cgroup={"memory_max": memory_max, "memory_swap_max": 0})
        assert vm.wait() == 0
        assert vm.events()[-2:] == [
            {"event": "oom", "kills": 1, "oom_kills": kills},
            {**exited(137, None if init else 9), "oom_killed": True, "oom_kills": kills},
        ]


def test_stdin_of_the_container_survives_a_new_connection() -> None:
    with agent_vm.GuestVm() as vm:
        vm.streams.write(0, b"before the start\n")
        vm.start("cat", stdin=True)
        vm.streams.write(0, b"first\n")
        wait_for(lambda: vm.output() == b"before the start\nfirst\n", "the first lines")
        vm.streams.close()
        vm.streams = agent_vm.Streams(vm.place / "streams.sock")
        data = b"0123456789abcde\n" * 65536
        vm.streams.write(0, data)
        vm.streams.send(0, agent_vm.EOF)
        assert vm.wait() == 0
        assert vm.output() == b"before the start\nfirst\n" + data


def test_stdin_that_nobody_read_through_several_resets_is_not_closed() -> None:
    window = bytes(agent_vm.CREDIT_BYTES)
    with agent_vm.GuestVm() as vm:
        script = "until [ -e /tmp/go ]; do sleep 0.1; done; head -c 300000 > /dev/null; echo room; tail -c 6"
        vm.start("sh", "-c", script, stdin=True)
        for _ in range(4):  # more than the pipe and the guest hold
            vm.streams.write(0, window)
            vm.streams.reset()
            vm.streams.sessions.clear()  # credit begins anew
        assert vm.run("touch", "/tmp/go")[0] == 0
        wait_for(lambda: vm.output() == b"room\n", "it is read")
        vm.streams.write(0, b"later\n")
        vm.streams.send(0, agent_vm.EOF)
        assert vm.wait() == 0
        assert vm.output() == b"room\nlater\n"


def test_a_container_with_a_terminal() -> None:
    script = "tty; test -c /dev/console && echo console; read x; stty size; echo got $x"
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", script, tty=True, stdin=True)
        wait_for(lambda: b"console" in vm.output(), "the terminal")
        vm.control.call("hyper-resize", session=0, rows=12, cols=34)
        vm.streams.write(0, b"typed\n")
        assert vm.wait() == 0
        assert vm.output().replace(b"\r", b"") == b"/dev/pts/0\nconsole\ntyped\n12 34\ngot typed\n"
        assert vm.output(2) == b""


def test_a_read_only_root_takes_no_byte_but_tmpfs() -> None:
    script = "touch /x; echo $?; echo y > /t/y; cat /t/y; ls /etc/hosts; cat /etc/hostname; touch /etc/new || echo no"
    with agent_vm.GuestVm() as vm:
        vm.control.call("hyper-identity", **identity())
        tmpfs = [{"path": "/t", "options": ""}]
        vm.start("sh", "-c", script, writable=False, read_only=True, tmpfs=tmpfs, cwd="/made")
        assert vm.wait() == 0
        assert vm.output() == b"1\ny\n/etc/hosts\nweb-1\nno\n"
        assert vm.output(2).count(b"Read-only file system") == 2


def test_each_option_of_a_tmpfs_that_is_taken_can_be_mounted() -> None:
    flags = "ro rw exec noexec suid nosuid nodev atime noatime diratime nodiratime relatime noatime,relatime sync"
    options = [*flags.split(), "size=1m", "size=50%", "nr_inodes=1k", "mode=0700", "uid=5", "gid=6"]
    tmpfs = [TmpfsSpec(path=f"/t{at}", options=one).model_dump() for at, one in enumerate(options)]
    with agent_vm.GuestVm() as vm:
        vm.start("cat", "/proc/mounts", tmpfs=tmpfs)
        assert vm.wait() == 0
        lines = [line.split() for line in vm.output().decode().splitlines()]
        found = {line[1]: set(line[3].split(",")) for line in lines if line[1].startswith("/t")}
        assert len(found) == len(options)
        mounted = {one: found[f"/t{at}"] for at, one in enumerate(options)}
        assert all("nodev" in words for words in mounted.values())
        for one in ("ro", "nosuid", "noatime", "nodiratime", "relatime"):
            assert one in mounted[one]
        assert "noatime" not in mounted["noatime,relatime"]


def test_a_layer_can_be_mounted_before_the_start() -> None:
    layer = {"device": "vdb", "fstype": "ext4", "options": "discard,nobarrier", "remount": ""}
    with agent_vm.GuestVm() as vm:

        def options() -> list[str]:
            file = vm.stats.call("hyper-read", files=["/proc/fs/ext4/vdb/options"])["files"][0]
            return file.get("data", file.get("error")).split()

        assert options() == ["ENOENT"]
        assert vm.control.call("hyper-layer", writable=layer) == {}
        assert "nobarrier" in options()
        assert vm.control.call("hyper-layer", writable=None) == {}
        assert options() == ["ENOENT"]
        assert vm.control.refusal("hyper-layer", writable={**layer, "device": "vdz"})[0] == "GenericError"
        assert vm.control.refusal("hyper-layer", writable="vdb")[0] == "InvalidArgument"
        assert vm.control.call("hyper-layer", writable=layer) == {}, "by another process than the one that failed"
        wanted = agent_vm.start_arguments("sh", "-c", "echo kept > /opt/x; echo there; sleep 1000")
        wanted["root"]["writable"] = {**layer, "remount": "barrier"}
        vm.control.call("hyper-start", **wanted)
        assert "barrier" in options()
        wait_for(lambda: vm.output() == b"there\n", "its output")
        assert vm.control.refusal("hyper-layer", writable=None)[0] == "BadState"
        vm.control.call("hyper-signal", signal=9)
        assert vm.wait() == 0
        read = ["debugfs", "-R", "cat /upper/opt/x", str(vm.place / "writable.ext4")]
        assert agent_vm.subprocess.run(read, capture_output=True, check=True).stdout == b"kept\n"


LAYER = {"device": "vdb", "fstype": "ext4", "options": "discard,nobarrier", "remount": ""}
IMAGE = {"device": "vda", "fstype": "erofs"}


def test_a_root_can_be_made_before_the_start_and_its_program_has_begun() -> None:
    def cpu_us() -> int:
        file = vm.stats.call("hyper-read", files=["/sys/fs/cgroup/container/cpu.stat"])["files"][0]
        return int(file["data"].split()[1])

    with agent_vm.GuestVm() as vm:
        assert vm.control.call("hyper-layer", writable=LAYER, image=IMAGE, program="", path="") == {}
        before = cpu_us()
        assert vm.control.call("hyper-layer", writable=LAYER, image=IMAGE, program="sh", path="/nowhere:/bin") == {}
        assert cpu_us() > before
        vm.start("sh", "-c", "echo kept > /opt/x; stat -c %a /; echo $$; ls /proc | grep -c '^[0-9]*$'; kill -l 14")
        assert vm.wait() == 0
        assert vm.output() == b"755\n1\n3\nALRM\n", "of what began before nothing is left"
        read = ["debugfs", "-R", "cat /upper/opt/x", str(vm.place / "writable.ext4")]
        assert agent_vm.subprocess.run(read, capture_output=True, check=True).stdout == b"kept\n"


def test_a_program_that_would_do_something_when_it_is_begun_does_not() -> None:
    with agent_vm.GuestVm() as vm:
        for program in ("/nowhere", "/etc/passwd", "no-interpreter", "no-format", *agent_vm.BEGINNINGS):
            vm.control.call("hyper-layer", writable=LAYER, image=IMAGE, program=program, path="/bin")
        vm.start(
            "sh", "-c", "ls /proc | grep -c '^[0-9]*$'; ls -A /tmp /opt; cat /sys/fs/cgroup/memory.events | grep kill"
        )
        assert vm.wait() == 0
        assert vm.output() == b"3\n/opt:\n\n/tmp:\noom_kill 0\noom_group_kill 0\n"


def test_a_root_that_was_made_gives_way_to_another_layer_and_to_none() -> None:
    with agent_vm.GuestVm() as vm:
        assert vm.control.refusal("hyper-layer", writable=None, image=IMAGE)[0] == "InvalidArgument"
        assert vm.control.refusal("hyper-layer", writable=LAYER, image="vda")[0] == "InvalidArgument"
        for _ in range(2):
            vm.control.call("hyper-layer", writable=LAYER, image=IMAGE, program="sh", path="/bin")
            vm.control.call("hyper-layer", writable=None)
        vm.control.call("hyper-layer", writable=LAYER, image=IMAGE)
        vm.start("sh", "-c", "echo x > /opt/x && cat /opt/x; grep -c ext4 /proc/mounts", writable=False)
        assert vm.wait() == 0
        assert vm.output() == b"x\n0\n"


def test_a_mounted_layer_is_not_that_of_a_start_without_one() -> None:
    layer = {"device": "vdb", "fstype": "ext4", "options": "", "remount": ""}
    with agent_vm.GuestVm() as vm:
        vm.control.call("hyper-layer", writable=layer)
        vm.start("sh", "-c", "cat /proc/fs/ext4/vdb/options; echo kept > /opt/x && cat /opt/x", writable=False)
        assert vm.wait() == 0
        assert vm.output() == b"kept\n"


def test_without_a_disk_the_writable_layer_is_memory() -> None:
    files = [f"/sys/fs/cgroup/container/{name}" for name in ("cpu.max", "pids.max", "cpu.weight", "memory.max")]
    with agent_vm.GuestVm() as vm:

        def limits() -> list[str]:
            return [one["data"].strip() for one in vm.stats.call("hyper-read", files=files)["files"]]

        limited = {
            "cpu_quota_us": 20000,
            "cpu_period_us": 50000,
            "pids_max": 70,
            "cpu_weight": 50,
            "memory_max": 1 << 25,
        }
        failing = agent_vm.start_arguments("nosuch", writable=False)
        assert vm.control.refusal("hyper-start", **{**failing, "cgroup": limited})[0] == "NotFound"
        assert limits() == ["20000 50000", "70", "50", str(1 << 25)]
        vm.start("sh", "-c", "echo kept > /opt/x && cat /opt/x && df -T / | tail -1; sleep 1000", writable=False)
        assert limits() == ["max 100000", "max", "100", "max"], "the next start has its own"
        wait_for(lambda: vm.output().startswith(b"kept\noverlay"), "its output")
        vm.control.call("hyper-signal", signal=9)
        assert vm.wait() == 0


def test_the_writable_disk_is_whole_after_the_end() -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", "echo data > /opt/kept")
        assert vm.wait() == 0
        checked = agent_vm.subprocess.run(
            ["e2fsck", "-fn", str(vm.place / "writable.ext4")], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout
        read = agent_vm.subprocess.run(
            ["debugfs", "-R", "cat /upper/opt/kept", str(vm.place / "writable.ext4")], capture_output=True, check=True
        )
        assert read.stdout == b"data\n"


def test_shutdown_of_a_running_container_keeps_its_last_words() -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("sh", "-c", "echo words; sleep 1000")
        wait_for(lambda: vm.output() == b"words\n", "its output")
        vm.control.send(b'{"execute": "guest-shutdown"}\n')
        assert vm.wait() == 0
        assert vm.events()[-1]["exit_code"] == 137


def test_a_network_identity_can_be_given_twice() -> None:
    network = ["-netdev", "user,id=n,restrict=on", "-device", "virtio-net-device,netdev=n,mac=52:54:00:00:00:99"]

    def numbers(last: int) -> dict[str, object]:
        return {
            "interface": "eth0",
            "mac": f"52:54:0a:61:00:{last:02x}",
            "address": f"10.97.0.{last}",
            "prefix": 16,
            "gateway": "10.97.0.1",
            "mtu": 1400,
        }

    with agent_vm.GuestVm(extra=network) as vm:
        paths = [f"/sys/class/net/eth0/{name}" for name in ("address", "mtu", "flags")]
        paths += ["/proc/net/route", "/proc/net/fib_trie"]
        (flags,) = vm.stats.call("hyper-read", files=paths[2:3])["files"]
        assert int(flags["data"], 16) == 0x1003, "up, before it is known who the guest is"
        for last in (2, 7):
            vm.control.call("hyper-identity", **identity(network=numbers(last)))
            mac, mtu, flags, route, trie = (item["data"] for item in vm.stats.call("hyper-read", files=paths)["files"])
            assert (mac.strip(), mtu.strip(), int(flags, 16)) == (f"52:54:0a:61:00:{last:02x}", "1400", 0x1003)
            assert ["eth0", "00000000", "0100610A"] in [line.split()[:3] for line in route.splitlines()]
            assert f"10.97.0.{last}\n" in trie
            assert last == 2 or "10.97.0.2\n" not in trie
        refused = vm.control.refusal("hyper-identity", **identity(network={**numbers(2), "interface": "eth9"}))
        assert refused == ("GenericError", "network.interface: there is no eth9")
        for change, field in (
            ({"entropy": "QUJD"}, "entropy"),
            ({"entropy": "*"}, "entropy"),
            ({"machine_id": "x"}, "machine_id"),
            ({"hostname": "a b"}, "hostname"),
            ({"dns": ["x\nnameserver 1.2.3.4"]}, "dns"),
            ({"search": ["a\nb"]}, "search"),
            ({"hosts": [["10.0.0.1", "a b"]]}, "hosts"),
            ({"hosts": ["x"]}, "hosts"),
            ({"network": {**numbers(2), "mac": "01:00:00:00:00:00"}}, "network.mac"),
            ({"network": {**numbers(2), "mac": "52:54:0a:61:00:0g"}}, "network.mac"),
            ({"network": {**numbers(2), "mac": "52:54:0a:61:00-02"}}, "network.mac"),
            ({"network": {**numbers(2), "mac": "52:54:0a:61:00:2"}}, "network.mac"),
            ({"network": {**numbers(2), "address": "10.97.0.256"}}, "network.address"),
            ({"network": {**numbers(2), "prefix": 33}}, "prefix"),
        ):
            kind, text = vm.control.refusal("hyper-identity", **identity(**change))
            assert (kind, text.startswith(field)) == ("InvalidArgument", True), json.dumps(change)


def test_entropy_and_clock_are_set() -> None:
    with agent_vm.GuestVm() as vm:
        for seconds in (1_900_000_000, 1_700_000_000):
            vm.control.call("guest-set-time", time=seconds * 10**9)
            assert 0 <= vm.control.call("guest-get-time") / 1e9 - seconds < 5
        uuid = "/proc/sys/kernel/random/uuid"
        before = vm.stats.call("hyper-read", files=[uuid])["files"][0]["data"]
        vm.control.call("hyper-identity", **identity())
        assert vm.stats.call("hyper-read", files=[uuid])["files"][0]["data"] != before
