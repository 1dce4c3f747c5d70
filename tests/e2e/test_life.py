"""A container's whole life on real micro-VMs: restart policies, pause, health, events, and what survives kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import Host, free_port, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def events(host: Host, *options: str) -> list[dict[str, Any]]:
    """All that has happened so far."""
    done = host.hyper("events", "--since", "0", "--until", f"{time.time():.6f}", "--format", "json", *options)
    return [json.loads(line) for line in done.stdout.splitlines()]


def actions(host: Host, container: str) -> list[str]:
    return [event["action"] for event in events(host, "--filter", f"container={container}")]


def again(host: Host) -> None:
    """The daemon dies and comes back."""
    host.hyperd.kill()
    host.start()


def state(host: Host, container: str, wanted: str) -> dict[str, Any]:
    """The container as soon as it is in that state."""
    found: dict[str, Any] = wait_for(
        lambda: (one := host.inspect(container))["state"] == wanted and one, f"{container} is {wanted}", 60
    )
    return found


def test_on_failure_tries_as_often_as_it_is_told(host: Host, images: Images) -> None:
    host.run("--name", "fails", "--restart", "on-failure:2", images.busybox, "sh", "-c", "echo run; exit 3")
    assert host.hyper("logs", "-f", "fails").stdout == "run\n" * 3, "follows all its starts"
    assert host.hyper("wait", "fails").stdout == "3\n", "waits for the last of its ends"
    ended = host.inspect("fails")
    assert (ended["state"], ended["restarts"], ended["retries"], ended["desired"]) == ("exited", 2, 2, "running")
    assert actions(host, ended["id"]) == ["create", *["start", "die"] * 3]
    starts = [
        event["time_ns"] / 1e9 for event in events(host, "--filter", "event=start", "--filter", "container=fails")
    ]
    assert starts[1] - starts[0] > 0.1
    assert starts[2] - starts[1] > 0.2
    host.run("--name", "works", "--restart", "on-failure", images.busybox, "true")
    assert host.hyper("wait", "works").stdout == "0\n"
    assert (host.inspect("works")["restarts"], host.inspect("works")["desired"]) == (0, "stopped")


def test_always_goes_on_without_the_daemon_and_ends_when_it_is_stopped(host: Host, images: Images) -> None:
    host.run("--name", "ever", "--restart", "always", images.busybox, "sh", "-c", "sleep 0.5; exit 0")
    wait_for(lambda: host.inspect("ever")["restarts"] >= 1, "restarted")
    host.hyperd.kill()
    before = time.time()
    time.sleep(1.5)  # it ends meanwhile, and nobody is there to start it again
    host.start()
    restarts = host.inspect("ever")["restarts"]
    wait_for(lambda: host.inspect("ever")["restarts"] > restarts + 1, "restarted by the next daemon", 60)
    assert any(event["time_ns"] > before * 1e9 for event in events(host, "--filter", "container=ever"))
    wait_for(lambda: host.inspect("ever")["retry_delay_s"] >= 0.8, "the delay doubles", 60)
    wait_for(lambda: host.inspect("ever")["retry_at"], "it waits for its next start", interval_s=0.01)
    refused = host.hyper("rm", "ever", check=False)
    assert (refused.returncode, "restarted" in refused.stderr or "running" in refused.stderr) == (125, True)
    host.hyper("stop", "ever")
    stopped = host.inspect("ever")
    assert (stopped["state"], stopped["desired"], stopped["retry_at"]) == ("exited", "stopped", None)
    again(host)
    assert host.inspect("ever")["restarts"] == stopped["restarts"], "a restart of the daemon starts nothing"


def test_what_got_its_stop_signal_is_not_started_again(host: Host, images: Images) -> None:
    script = "trap 'exit 3' 37; trap 'echo heard' HUP; echo ready; while :; do sleep 0.1; done"
    options = ("--restart", "always", "--stop-signal", "SIGRTMIN+3")
    host.run("--name", "told", *options, images.busybox, "sh", "-c", script)
    wait_for(lambda: host.hyper("logs", "told").stdout == "ready\n", "it listens")
    host.hyper("kill", "-s", "HUP", "told")
    wait_for(lambda: "heard" in host.hyper("logs", "told").stdout, "it goes on")
    host.hyper("kill", "-s", "RTMIN+3", "told")
    assert host.hyper("wait", "told").stdout == "3\n", "there is no next start to wait for"
    one = host.inspect("told")
    assert (one["state"], one["desired"], one["retry_at"], one["restarts"]) == ("exited", "stopped", None, 0)
    host.hyper("start", "told")
    wait_for(lambda: host.hyper("logs", "told").stdout.endswith("heard\nready\n"), "it listens")
    host.hyper("exec", "told", "kill", "-37", "1")
    wait_for(lambda: host.inspect("told")["restarts"] >= 2, "started again after an end of its own")
    host.hyper("rm", "-f", "told")


@pytest.fixture
def own(images: Images) -> Iterator[Host]:
    with running_host(images.busybox, default_disk_bytes=256 * 1024**2) as one:
        yield one


def test_the_host_boots(own: Host, images: Images) -> None:
    """What is in memory is gone: processes, control groups, the state directory. What is on disk stays."""
    policies = {"plain": "no", "failure": "on-failure", "ever": "always", "stopped": "always", "less": "unless-stopped"}
    for name, policy in policies.items():
        own.run("--name", name, "--restart", policy, images.busybox, "sleep", "600")
    own.run("--name", "left", "--restart", "unless-stopped", images.busybox, "sleep", "600")
    own.hyper("stop", "-t", "0", "stopped", "left")
    own.hyperd.kill()
    for line in own.leftovers():
        if line.startswith("process "):
            os.kill(int(line.split()[1].rstrip(":")), signal.SIGKILL)
    for path in own.state_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    own.start()
    for name in ("ever", "stopped", "less"):
        assert own.hyper("exec", state(own, name, "running")["id"], "echo", "hello").stdout == "hello\n"
    for name, desired in (("plain", "running"), ("failure", "running"), ("left", "stopped")):
        one = own.inspect(name)
        assert (name, one["state"], one["desired"], one["retry_at"]) == (name, "exited", desired, None)
    assert own.inspect("plain")["error"] == "the host went down while it ran"


OBEYS = "trap 'echo obeyed >/said; exit 0' TERM; echo ready; while :; do sleep 0.1; done"


def test_the_host_goes_down_in_order(own: Host, images: Images, tmp_path: Path) -> None:
    """The service manager ends the daemon: alone, or because everything ends. It is asked which."""
    manager = tmp_path / "systemctl"
    manager.write_text("#!/bin/sh\necho running\n")
    manager.chmod(0o755)
    own.hyperd.stop()
    own.hyperd.env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    own.start()
    policies = {"plain": "no", "ever": "always", "less": "unless-stopped", "failure": "on-failure"}
    for name, policy in policies.items():
        own.run("--name", name, "--restart", policy, images.busybox, "sh", "-c", OBEYS)
    own.run("--name", "paused", "--restart", "always", images.busybox, "sh", "-c", OBEYS)
    for name in (*policies, "paused"):
        wait_for(lambda name=name: "ready" in own.hyper("logs", name).stdout, f"{name} is ready")
    own.hyper("pause", "paused")
    pid = own.inspect("ever")["vm"]["pid"]
    assert own.hyperd.stop() == 0
    own.start()
    assert own.inspect("ever")["vm"]["pid"] == pid, "the daemon alone has ended"
    manager.write_text("#!/bin/sh\necho stopping; exit 1\n")
    assert own.hyperd.stop() == 0
    assert not [line for line in own.leftovers() if line.startswith("process ")], "no VM is left to be killed"
    for path in own.state_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    manager.write_text("#!/bin/sh\necho running\n")
    own.start()
    for name in ("ever", "less", "paused"):
        assert own.hyper("exec", state(own, name, "running")["id"], "cat", "/said").stdout == "obeyed\n"
    for name in ("plain", "failure"):
        one = own.inspect(name)
        assert (one["state"], one["exit_code"], one["error"]) == ("exited", 0, None)
        own.hyper("cp", f"{name}:/said", str(tmp_path / name))
        assert (tmp_path / name).read_text() == "obeyed\n"


def test_pause_outlives_the_daemon(host: Host, images: Images) -> None:
    host.run("--name", "counts", images.busybox, "sh", "-c", COUNT)
    wait_for(lambda: host.hyper("logs", "counts").stdout, "the first line")
    host.hyper("pause", "counts")
    assert "(Paused)" in host.hyper("ps", "--filter", "status=paused").stdout
    lines = host.hyper("logs", "counts").stdout
    again(host)
    assert host.inspect("counts")["state"] == "paused"
    assert host.hyper("logs", "counts").stdout == lines, "nothing ran meanwhile"
    for command in (
        ("exec", "counts", "true"),
        ("pause", "counts"),
        ("kill", "-s", "TERM", "counts"),
        ("start", "counts"),
    ):
        refused = host.hyper(*command, check=False)
        assert (refused.returncode, refused.stderr.count("\n"), "paused" in refused.stderr) == (125, 1, True)
    host.hyper("unpause", "counts")
    wait_for(lambda: len(host.hyper("logs", "counts").stdout) > len(lines), "it goes on")
    off_s = abs(int(host.hyper("exec", "counts", "date", "+%s").stdout) - time.time())
    assert off_s < 2, "its clock stood still, and was set"
    for command, code in (("stop", 137), ("kill", 137)):
        host.hyper("start", "counts")
        host.hyper("pause", "counts")
        host.hyper(command, *(["-t", "0"] if command == "stop" else []), "counts")
        assert state(host, "counts", "exited")["exit_code"] == code
    assert "not paused" in host.hyper("unpause", "counts", check=False).stderr


def test_rename_update_port_and_top(host: Host, images: Images) -> None:
    port = free_port()
    host.run("--name", "old", "--cpus", "1", "-p", f"{port}:80", images.busybox, "sleep", "600")
    host.run("--name", "other", images.busybox, "sleep", "600")
    host.hyper("rename", "old", "new")
    again(host)
    one = host.inspect("new")
    assert host.hyper("inspect", "old", check=False).returncode == 125
    taken = host.hyper("rename", "new", "other", check=False)
    assert "already in use" in taken.stderr
    assert "is no name" in host.hyper("rename", "new", "a b", check=False).stderr

    groups = one["cgroups"]
    host.hyper("update", "--cpus", "0.5", "--restart", "always", "new")
    limits = [
        text
        for directory in {groups["v2"], *groups["v1"].values()} - {None}
        for text in (read(directory, "cpu.max"), read(directory, "cpu.cfs_quota_us"))
        if text
    ]
    assert limits, "the host has a controller for CPU time"
    assert all(text.split()[0] == "50000" for text in limits)
    assert host.inspect("new")["restart"]["policy"] == "always"
    grown = host.hyper("update", "--memory", "256m", "new", check=False)
    assert (grown.returncode, "stop it, update it and start it again" in grown.stderr) == (125, True)
    assert "cannot get 4" in host.hyper("update", "--cpus", "4", "new", check=False).stderr
    assert "nothing to update" in host.hyper("update", "new", check=False).stderr

    assert host.hyper("port", "new").stdout == f"80/tcp -> 0.0.0.0:{port}\n"
    assert host.hyper("port", "new", "80").stdout == f"0.0.0.0:{port}\n"
    assert host.hyper("port", "new", "81", check=False).returncode == 125
    heading, row = host.hyper("top", "new").stdout.splitlines()
    assert heading.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert row.split()[0] == "0"
    assert row.endswith("sleep 600")

    host.hyper("stop", "-t", "0", "new")
    host.hyper("update", "--memory", "160m", "new")
    host.hyper("start", "new")
    assert host.hyper("exec", "new", "cat", "/sys/fs/cgroup/memory.max").stdout.strip() == str(160 * 1024**2)


def read(directory: str, name: str) -> str:
    file = Path(directory, name)
    return file.read_text() if file.exists() else ""


def test_no_event_is_lost(host: Host, images: Images) -> None:
    identity = host.run("--name", "told", "-l", "team=shop", images.busybox, "sleep", "600")
    host.hyper("exec", "told", "sh", "-c", "exit 4", check=False)
    host.hyper("pause", "told")
    again(host)
    host.hyper("unpause", "told")
    host.hyper("rename", "told", "said")
    host.hyper("update", "--cpus", "0.5", "said")
    host.hyper("restart", "-t", "0", "said")
    host.hyper("kill", "said")
    again(host)
    host.hyper("rm", "said")
    found = [event["action"] for event in events(host, "--filter", f"container={identity}")]
    assert found == [
        "create", "start", "exec_create: sh -c exit 4", "exec_start: sh -c exit 4", "exec_die", "pause", "unpause",
        "rename", "update", "kill", "die", "start", "restart", "kill", "die", "destroy",
    ]  # fmt: skip
    pulled = {event["id"] for event in events(host, "--filter", "type=image", "--filter", "event=pull")}
    assert {images.busybox, images.nginx} <= pulled
    (died,) = events(host, "--filter", "event=exec_die", "--filter", "label=team=shop")
    assert died["attributes"]["exitCode"] == "4"
    line = host.hyper(
        "events", "--since", "1h", "--until", "0s", "--filter", "event=destroy", "--filter", "container=said"
    )
    assert f" container destroy {identity} (" in line.stdout
    form = host.hyper(
        "events",
        "--since",
        "0",
        "--until",
        "0s",
        "--filter",
        "event=rename",
        "--format",
        "{{.Actor.Attributes.oldName}}",
    )
    assert "told" in form.stdout.split()


def test_health(host: Host, images: Images) -> None:
    options = ("--health-interval", "200ms", "--health-retries", "2", "--health-cmd", "echo looked; test -e /ok")
    host.run("--name", "sick", *options, images.busybox, "sleep", "600")
    assert host.inspect("sick")["health"] in {"starting", "unhealthy"}
    wait_for(lambda: host.inspect("sick")["health"] == "unhealthy", "found to be ill")
    host.hyper("exec", "sick", "touch", "/ok")
    wait_for(lambda: host.inspect("sick")["health"] == "healthy", "found to be well")
    again(host)
    assert host.inspect("sick")["health"] == "healthy"
    assert "(healthy)" in host.hyper("ps", "--filter", "health=healthy").stdout
    wait_for(lambda: host.inspect("sick")["checks"], "the next daemon checks")
    assert host.inspect("sick")["checks"][-1]["output"] == "looked\n"
    told = [action for action in actions(host, "sick") if action.startswith("health_status")]
    assert told == ["health_status: unhealthy", "health_status: healthy"]
    host.hyper("stop", "-t", "0", "sick")
    assert host.inspect("sick")["health"] == "none"

    slow = ("--label", "hyper.probe.interval=1s", "--label", "hyper.probe.timeout=200ms", "--health-retries", "2")
    host.run("--name", "slow", *slow, "--label", "hyper.probe=exec:sleep 600", images.busybox, "sleep", "600")
    wait_for(lambda: host.inspect("slow")["health"] == "unhealthy", "a check that hangs has failed")
    outputs = [check["output"] for check in host.inspect("slow")["checks"]]
    assert "did not end" in outputs[0]
    assert host.hyper("top", "slow").stdout.count("sleep 600") == 2, "one check hangs, not one for each interval"
    host.run("--name", "unasked", "--no-healthcheck", images.busybox, "sleep", "600")
    assert host.inspect("unasked")["health"] == "none"


def test_flags_of_run(host: Host, images: Images, tmp_path: Path) -> None:
    labels, identity = tmp_path / "labels", tmp_path / "id"
    labels.write_text("# of the shop\nteam=shop\nempty\n")
    host.hyper(
        "create", "--name", "all", "--cidfile", str(identity), "--label-file", str(labels), "-l", "empty=no",
        "--size", "S3", "--read-only", "--tmpfs", "/scratch:size=4m,mode=1777", "--hostname", "shop.example",
        "--stop-timeout", "1", images.busybox, "sh", "-c",
        "hostname; touch /no 2>&1; touch /scratch/yes && echo yes; df -k /scratch | tail -1; trap '' TERM; sleep 600",
    )  # fmt: skip
    assert host.inspect("all")["id"] == identity.read_text()
    assert host.inspect("all")["labels"] == {"team": "shop", "empty": "no"}
    assert host.inspect("all")["limits"] == {
        "memory_bytes": 256 * 1024**2, "vcpus": 1, "cpu_quota": 1.0, "disk_bytes": 10 * 1024**3,
    }  # fmt: skip
    there = host.hyper("create", "--cidfile", str(identity), images.busybox, "true", check=False)
    assert "it is there already" in there.stderr
    host.hyper("start", "all")
    wait_for(lambda: "4096" in host.hyper("logs", "all").stdout, "all lines", 60)
    name, refused, yes, _ = host.hyper("logs", "all").stdout.splitlines()
    assert (name, yes) == ("shop.example", "yes")
    assert "Read-only file system" in refused
    began = time.monotonic()
    host.hyper("stop", "all")
    assert time.monotonic() - began < 9, "its own stop timeout, not the usual 10 s"
    assert state(host, "all", "exited")["exit_code"] == 137


def test_listing(host: Host, images: Images) -> None:
    host.run("--name", "web-1", "-l", "team=shop", images.busybox, "sleep", "600")
    host.hyper("run", "--name", "job", images.busybox, "sh", "-c", "exit 3", check=False)
    host.hyper("create", "--name", "web-2", images.nginx)

    def names(*options: str) -> list[str]:
        return host.hyper("ps", "--format", "{{.Names}}", *options).stdout.split()

    assert names() == ["web-1"]
    assert names("-a") == ["web-2", "job", "web-1"]
    assert names("-l") == ["web-2"]
    assert names("-n", "2") == ["web-2", "job"]
    assert names("-a", "--filter", "name=^web") == ["web-2", "web-1"]
    assert names("-a", "--filter", f"ancestor={images.nginx}") == ["web-2"]
    assert names("--filter", "status=exited") == names("--filter", "exited=3") == ["job"]
    assert names("-a", "--filter", "label=team=shop", "--filter", "status=running") == ["web-1"]
    assert names("-a", "--filter", "since=job") == ["web-2"]
    table = host.hyper("ps", "-a", "--format", 'table {{.Names}}\t{{.Label "team"}}\t{{.State}}').stdout.splitlines()
    assert [line.split() for line in table] == [
        ["NAMES", "team", "STATE"], ["web-2", "created"], ["job", "exited"], ["web-1", "shop", "running"],
    ]  # fmt: skip
    assert "virtual" in host.hyper("ps", "-s").stdout
    form = "{{.State.Status}} {{.State.ExitCode}} {{.exit_code}} {{json .Config.Labels}}"
    assert host.hyper("inspect", "--format", form, "job").stdout == "exited 3 3 {}\n"
    address = host.hyper("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web-1").stdout.strip()
    assert address == host.inspect("web-1")["network"]["address"]


def test_start_attached_and_wait_for_several(host: Host, images: Images) -> None:
    host.hyper("create", "--name", "talks", images.busybox, "sh", "-c", "echo out; echo err >&2; exit 5")
    for _ in range(2):
        done = host.hyper("start", "-a", "talks", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n"), "this run's output alone"
    host.run("--name", "second", images.busybox, "sh", "-c", "exit 6")
    done = host.hyper("wait", "talks", "nobody", "second", check=False)
    assert (done.returncode, done.stdout) == (125, "5\n6\n")
