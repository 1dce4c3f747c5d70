"""A container's everyday life, through the command line, on real micro-VMs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from runtime import consoles
from tests.host import Host, free_port, get, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images


def test_output_and_exit_code_are_the_containers_own(host: Host, images: Images) -> None:
    done = host.hyper("run", "--rm", images.busybox, "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert host.hyper("ps", "-a", "-q").stdout == ""


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [(("nosuch",), 127, "not found"), (("/etc/passwd",), 126, "permission"), (("sh", "-c", "exit 77"), 77, "")],
)
def test_exit_codes_are_dockers(host: Host, images: Images, command: tuple[str, ...], code: int, message: str) -> None:
    done = host.hyper("run", "--rm", images.busybox, *command, check=False)
    assert done.returncode == code
    assert message in done.stderr.lower()


def test_kill_is_137(host: Host, images: Images) -> None:
    host.run("--name", "shot", images.busybox, "sleep", "600")
    host.hyper("kill", "shot")
    wait_for(lambda: host.inspect("shot")["state"] == "exited", "killed")
    assert host.inspect("shot")["exit_code"] == 137
    assert host.hyper("wait", "shot").stdout.strip() == "137"


def test_environment_directory_user_and_labels(host: Host, images: Images) -> None:
    options = ("-e", "COLOR=red", "-w", "/tmp/work", "-u", "33:33", "--label", "team=shop")
    done = host.hyper("run", "--rm", *options, images.busybox, "sh", "-c", "echo $COLOR; pwd; id -u; id -g; hostname")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["red", "/tmp/work", "33", "33"]
    assert len(lines[4]) == 12


def test_start_path_and_phases_are_told(host: Host, images: Images) -> None:
    host.run("--name", "told", images.busybox, "sleep", "600")
    told = host.inspect("told")
    assert told["vm"]["start_path"] == "template"
    assert told["vm"]["accel"] == "tcg"
    assert set(told["start_phases"]) == {"image", "vm", "agent", "network", "exec"}
    assert all(0 < seconds < 30 for seconds in told["start_phases"].values())


def test_cold_boot_says_why(images: Images) -> None:
    own = Host(accel="tcg", template="false")
    try:
        own.start()
        own.hyper("pull", images.busybox)
        own.run("--name", "cold", images.busybox, "sleep", "600")
        vm = own.inspect("cold")["vm"]
        assert vm["start_path"] == "cold"
        assert "switched off" in vm["start_path_reason"]
    finally:
        own.close()


def test_stop_obeys_the_stop_signal_and_start_keeps_the_files(host: Host, images: Images) -> None:
    script = "trap 'echo stopping; exit 0' TERM; echo up >> /kept; cat /kept; while :; do sleep 0.1; done"
    host.run("--name", "twice", images.busybox, "sh", "-c", script)
    wait_for(lambda: host.hyper("logs", "twice").stdout == "up\n", "first output")
    host.hyper("stop", "twice")
    stopped = host.inspect("twice")
    assert (stopped["state"], stopped["exit_code"], stopped["desired"]) == ("exited", 0, "stopped")
    host.hyper("start", "twice")
    wait_for(lambda: host.hyper("logs", "twice").stdout.endswith("up\nup\n"), "files are kept")
    assert host.inspect("twice")["restarts"] == 1
    host.hyper("redeploy", "twice")
    wait_for(lambda: host.hyper("logs", "--tail", "1", "twice").stdout == "up\n", "a redeploy has fresh files")


@pytest.mark.parametrize(
    ("command", "answers"),
    [(("kill",), True), (("rm", "-f"), True), (("rm", "-f"), False)],
    ids=["kill", "rm", "rm of a guest that does not answer"],
)
def test_a_stop_that_is_under_way_can_be_cut_short(
    host: Host, images: Images, command: tuple[str, ...], answers: bool
) -> None:
    script = "trap '' TERM; trap 'echo told' USR1; echo up; while :; do sleep 0.1; done"
    name = host.run("--name", "deaf", images.busybox, "sh", "-c", script)
    wait_for(lambda: host.hyper("logs", name).stdout == "up\n", "it is deaf")
    pid = host.inspect(name)["vm"]["pid"]
    stop = [host.hyper_program, "stop", "-t", "100", name]
    with subprocess.Popen(stop, env={**os.environ, **host.env}, stdout=subprocess.DEVNULL) as stopping:
        wait_for(lambda: host.inspect(name)["state"] == "stopping", "it is being stopped")
        host.hyper("kill", "--signal", "USR1", name)
        wait_for(lambda: host.hyper("logs", name).stdout == "up\ntold\n", "another signal has come to it")
        if not answers:
            os.kill(pid, signal.SIGSTOP)
        host.hyper(*command, name, timeout_s=30)
        assert stopping.wait(timeout=10) == 0, "the stop has ended as it would have by itself"
    if command == ("kill",):
        found = host.inspect(name)
        assert (found["state"], found["exit_code"], found["desired"]) == ("exited", 137, "stopped")
    else:
        assert host.hyper("ps", "-a", "-q").stdout == ""


def test_exec(host: Host, images: Images) -> None:
    host.run("--name", "inside", "-e", "COLOR=red", images.busybox, "sleep", "600")
    assert host.hyper("exec", "inside", "sh", "-c", "echo $COLOR; exit 5", check=False).returncode == 5
    done = host.hyper("exec", "-e", "COLOR=blue", "inside", "sh", "-c", "echo $COLOR; echo oops >&2")
    assert (done.stdout, done.stderr) == ("blue\n", "oops\n")
    payload = bytes(range(256)) * 8192
    back = subprocess.run(
        [host.hyper_program, "exec", "-i", "inside", "cat"],
        input=payload,
        env=host.env,
        capture_output=True,
        check=True,
    )
    assert back.stdout == payload
    assert host.hyper("exec", "inside", "nosuch", check=False).returncode == 127
    assert "sleep 600" in host.hyper("exec", "inside", "ps").stdout


def test_clones_of_one_template_are_not_twins(host: Host, images: Images) -> None:
    script = "head -c 32 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid; hostname; cat /etc/hosts"
    twins = [host.hyper("run", "--rm", images.busybox, "sh", "-c", script).stdout.splitlines() for _ in range(2)]
    assert all(len(twin) > 4 for twin in twins)
    host.run("--name", "one", images.busybox, "sleep", "600")
    host.run("--name", "two", images.busybox, "sleep", "600")
    addresses = [host.hyper("exec", name, "cat", "/sys/class/net/eth0/address").stdout for name in ("one", "two")]
    assert addresses[0] != addresses[1]
    for first, second in zip(*(twin[:3] for twin in twins), strict=True):
        assert first != second


def test_what_its_kernel_and_its_qemu_say_is_bounded(host: Host, images: Images) -> None:
    """Both are appended to, so that QEMU goes on at the end of what was cut."""
    id_ = host.run("--name", "talker", images.busybox, "sleep", "600")
    process = Path(f"/proc/{host.inspect('talker')['vm']['pid']}")
    for file in (host.data_dir / f"containers/{id_}/console.log", host.state_dir / f"containers/{id_}/qemu.log"):
        found = [one.name for one in (process / "fd").iterdir() if one.exists() and one.samefile(file)]
        infos = [(process / "fdinfo" / name).read_text().split() for name in found]
        flags = [int(info[info.index("flags:") + 1], 8) for info in infos]
        assert flags
        assert all(one & os.O_APPEND for one in flags)
        with file.open("ab") as qemus:
            qemus.write(b"x" * 3 * consoles.KEPT_BYTES + b"last words")

        def is_cut(file: Path = file) -> bool:
            return file.stat().st_blocks * 512 <= 2 * consoles.KEPT_BYTES

        wait_for(is_cut, f"{file} is cut")
        assert file.read_bytes().endswith(b"x" * 1000 + b"last words")


def test_clock_is_the_hosts(host: Host, images: Images) -> None:
    host.run("--name", "clock", images.busybox, "sleep", "600")
    before = time.time()
    inside = float(host.hyper("exec", "clock", "date", "+%s").stdout)
    assert before - 1.1 <= inside <= time.time() + 0.1


@pytest.fixture
def web(host: Host, images: Images) -> int:
    port = free_port()
    host.run("--name", "web", "-p", f"{port}:80", images.nginx)
    return port


def test_a_published_port_answers(host: Host, web: int) -> None:
    page = wait_for(lambda: get(f"http://127.0.0.1:{web}/"), "nginx answers on loopback")
    assert "Hello from a micro-VM" in page
    subnet = host.env["HYPER_SUBNET"].rpartition(".")[0]
    assert "Hello" in get(f"http://{subnet}.1:{web}/"), "and on every other address of the host"
    rows = json.loads(host.hyper("ps", "--format", "json").stdout)
    assert f"{web}" in json.dumps(rows)
    host.hyper("stop", "web")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", web), timeout=5)


def test_a_udp_client_that_goes_on_sending_follows_the_published_port(host: Host, images: Images) -> None:
    """From the host to the first container, and from that one to the next: though its flow never ends by itself."""
    port, idle = free_port(), (images.busybox, "sleep", "600")
    published = ("-p", f"{port}:9999/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        own = client.getsockname()[1]

        def reached() -> str:
            """Where the kernel sends what this client sends."""
            for _ in range(2):  # the first may only learn that nobody listened to the one before
                with contextlib.suppress(ConnectionRefusedError):
                    client.send(b"something")
            with NFCTSocket() as tracker:
                flows = list(tracker.dump(tuple_orig=NFCTAttrTuple(proto=socket.IPPROTO_UDP, sport=own, dport=port)))
            tuples = [NFCTAttrTuple.from_netlink(socket.AF_INET, one.get_attr("CTA_TUPLE_REPLY")) for one in flows]
            return " ".join(one.saddr for one in tuples)

        assert reached() == "127.0.0.1"
        host.run("--name", "first", *published, *idle)
        first = str(host.inspect("first")["network"]["address"])
        assert reached() == first
        host.hyper("rm", "-f", "first")
        assert reached() == "127.0.0.1"
        host.run("--name", "heir", *idle)
        host.run("--name", "second", *published, *idle)
        assert host.inspect("heir")["network"]["address"] == first, "it would have got what is not for it"
        assert reached() == host.inspect("second")["network"]["address"]


@pytest.fixture
def outside(host: Host) -> Iterator[str]:
    """Another machine: a network namespace behind a veth, with no route back to the guests."""
    name = f"out{host.bridge[3:]}"
    steps = [
        f"netns add {name}",
        f"link add {name} type veth peer name eth0 netns {name}",
        f"addr add 198.51.100.1/24 dev {name}",
        f"link set {name} up",
        f"-n {name} addr add 198.51.100.2/24 dev eth0",
        f"-n {name} link set eth0 up",
    ]
    for step in steps:
        subprocess.run(["ip", *step.split()], check=True)
    server = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-m", "http.server", "--bind", "198.51.100.2", "8000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/usr/share/doc/bash",
    )
    wait_for(lambda: get("http://198.51.100.2:8000/"), "the server outside answers")
    yield "198.51.100.2"
    server.kill()
    server.wait()
    subprocess.run(["ip", "netns", "del", name], check=True)
    subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


def test_guests_reach_the_outside_under_the_hosts_address(host: Host, images: Images, outside: str) -> None:
    host.run("--name", "client", images.busybox, "sleep", "600")
    # The namespace has no route to the guests' subnet: an answer comes back only if the source was the host's address.
    answer = host.hyper("exec", "client", "wget", "-q", "-O", "-", f"http://{outside}:8000/")
    assert "Directory listing" in answer.stdout


def test_logs_follow_to_the_end(host: Host, images: Images) -> None:
    host.run("--name", "talks", images.busybox, "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done")
    done = host.hyper("logs", "-f", "talks", timeout_s=60)
    assert done.stdout == "".join(f"line {i}\n" for i in range(1, 6))
    assert host.hyper("logs", "--tail", "2", "talks").stdout == "line 4\nline 5\n"


def test_output_is_byte_exact(host: Host, images: Images) -> None:
    done = host.hyper("run", "--rm", images.busybox, "seq", "1", "300000", timeout_s=120)
    assert done.stdout == "".join(f"{i}\n" for i in range(1, 300001))


def test_memory_limit_is_the_containers_own(host: Host, images: Images) -> None:
    host.run("--name", "small", "--memory", "32m", images.busybox, "sleep", "600")
    assert host.hyper("exec", "small", "cat", "/sys/fs/cgroup/memory.max").stdout.strip() == str(32 * 1024**2)
    for limit in ("32m", "128m"):
        done = host.hyper("run", "--memory", limit, "--name", limit, images.busybox, "tail", "/dev/zero", check=False)
        assert done.returncode == 137
        assert host.inspect(limit)["oom_killed"] is True, "its own limit killed it, not a guest that was too small"
    assert host.inspect("small")["state"] == "running"


def test_qemu_is_confined(host: Host, images: Images) -> None:
    host.run("--name", "jail", images.busybox, "sleep", "600")
    vm = host.inspect("jail")["vm"]
    lines = Path(f"/proc/{vm['pid']}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == [str(vm["uid"])] * 4
    assert vm["uid"] >= 1000
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
