"""QEMU is confined, whatever way a VM was started: as the kernel tells of it, and as a process in its uid finds out."""

from __future__ import annotations

import grp
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cgroups import MAX_TASKS
from tests.host import Host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

PATHS = ("cold", "template", "pool")
SECRET = "s3cr3t-0f-a-tenant"
GROUP = "hyper"
# What a process of a VM may have open, besides the files that are named in the test.
KINDS = re.compile(
    r"/dev/(null|net/tun|kvm)|socket:\[\d+\]|pipe:\[\d+\]|anon_inode:\[?(eventfd|eventpoll|signalfd|pidfd|kvm-v[cm].*)\]?"
    r"|/memfd:(ram|hyper-template|tcg-jit|memory-backend-memfd)( \(deleted\))?"
)


@pytest.fixture(scope="module")
def hosts(images: Images) -> Iterator[dict[str, Host]]:
    """One host for each way to start."""
    pool, template = Host(accel="tcg", pool_depth=2), Host(accel="tcg")
    made = {"cold": Host(accel="tcg", template=False), "template": template, "pool": pool}
    try:
        for one in made.values():
            one.start()
            one.hyper("pull", images.busybox)
        wait_for(lambda: "templates ready: 1" in template.hyper("info").stdout, "the template is built", 60)
        wait_for(lambda: json.loads(pool.hyper("info", "--format", "json").stdout)["pool_waiting"] >= 2, "the pool", 90)
        yield made
    finally:
        for one in made.values():
            one.close()


@pytest.fixture(scope="module")
def machines(hosts: dict[str, Host], images: Images) -> dict[str, list[dict[str, Any]]]:
    """Two containers of each kind, with a secret in their environment."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, host in hosts.items():
        found[path] = []
        for name in ("one", "two"):
            host.run("--name", f"{path}-{name}", "-e", f"SECRET={SECRET}", images.busybox, "sleep", "100000")
            found[path].append(host.inspect(f"{path}-{name}"))
        assert {one["vm"]["start_path"] for one in found[path]} == {path}
    return found


@pytest.mark.parametrize("path", PATHS)
def test_the_kernel_tells_of_it(machines: dict[str, list[dict[str, Any]]], path: str) -> None:
    for one in machines[path]:
        pid, uid = one["vm"]["pid"], one["vm"]["uid"]
        group = one["cgroups"]["v1"].get("pids") or one["cgroups"]["v2"]
        if Path(group, "pids.max").exists():  # where the host has the controller
            assert int(Path(group, "pids.max").read_text()) == MAX_TASKS
        for task in Path(f"/proc/{pid}/task").iterdir():
            told = {name: value.strip() for name, _, value in (
                line.partition(":") for line in (task / "status").read_text().splitlines())}  # fmt: skip
            assert told["Uid"].split() == told["Gid"].split() == [str(uid)] * 4
            assert told["Groups"] == ""
            assert {name: int(told[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
                "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0,
            }  # fmt: skip
            assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
            assert told.get("THP_enabled", "0") == "0"
        ours, theirs = Path("/proc/self/ns"), Path(f"/proc/{pid}/ns")
        for namespace in ("mnt", "net", "ipc", "uts"):
            assert (ours / namespace).readlink() != (theirs / namespace).readlink(), namespace
        groups = {line.partition(":")[2].partition(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().split()}
        inside = {str(one["cgroups"]["v2"]), *map(str, one["cgroups"]["v1"].values())} - {"None"}
        assert inside
        for directory in inside:
            assert any(directory.endswith(group) for group in groups if group != "/"), directory
            assert str(pid) in (Path(directory) / "cgroup.procs").read_text().split()


def test_no_two_vms_share_an_id(machines: dict[str, list[dict[str, Any]]]) -> None:
    every = [one for many in machines.values() for one in many]
    uids = [one["vm"]["uid"] for one in every]
    assert len(set(uids)) == len(uids)
    assert min(uids) >= 1000
    for namespace in ("mnt", "net", "ipc", "uts"):
        assert len({Path(f"/proc/{one['vm']['pid']}/ns/{namespace}").readlink() for one in every}) == len(every)


@pytest.mark.parametrize("path", PATHS)
def test_what_it_has_open_is_its_own(
    hosts: dict[str, Host], machines: dict[str, list[dict[str, Any]]], path: str
) -> None:
    host = hosts[path]
    for one in machines[path]:
        own = f"({host.data_dir}|{host.state_dir})/containers/{one['id']}/[^/]+"
        shared = f"{host.data_dir}/(images|templates|initrd)/[^ ]*|.*/vmlinu[xz][^/]*"
        member = f"({host.data_dir}|{host.state_dir})/pool/[^ ]*"  # what it had while it waited
        for descriptor in Path(f"/proc/{one['vm']['pid']}/fd").iterdir():
            where = str(descriptor.readlink())
            assert KINDS.fullmatch(where) or re.fullmatch(f"{own}|{shared}|{member}( \\(deleted\\))?", where), where
            if re.fullmatch(shared, where):
                flags = Path(f"/proc/{one['vm']['pid']}/fdinfo/{descriptor.name}").read_text()
                assert int(re.findall(r"flags:\s*(\d+)", flags)[0], 8) & os.O_ACCMODE == os.O_RDONLY, where


@pytest.mark.parametrize("path", PATHS)
def test_its_command_line_and_environment_tell_nothing(machines: dict[str, list[dict[str, Any]]], path: str) -> None:
    for one in machines[path]:
        process = Path(f"/proc/{one['vm']['pid']}")
        environment = process.joinpath("environ").read_bytes().decode().rstrip("\0").split("\0")
        names = {entry.partition("=")[0] for entry in environment}
        assert names <= {"PATH", "LC_ALL", "MALLOC_ARENA_MAX", "PWD", "SHLVL", "_", "OLDPWD"}
        said = process.joinpath("cmdline").read_text() + "".join(environment)
        assert SECRET not in said
        assert "hyper.db" not in said
        assert "hyperd.sock" not in said


# Reads on stdin what to try; prints what it could do.
ATTEMPTS = """
import ctypes, json, os, signal, socket, sys
asked = json.load(sys.stdin)
could = []
for path in asked["paths"]:
    for how in (os.O_RDONLY, os.O_WRONLY, os.O_PATH | os.O_DIRECTORY):
        try:
            descriptor = os.open(path, how)
        except OSError:
            continue
        if how & os.O_PATH:
            try:
                os.listdir(path)
            except OSError:
                continue
        could.append(f"opened {path} ({how:o})")
        os.close(descriptor)
    try:
        with open(path + "/planted", "w"):
            could.append(f"wrote in {path}")
    except OSError:
        pass
for path in asked["sockets"]:
    for address in (path, path.replace("/run/", "/proc/1/root/run/", 1)):
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(address)
            could.append(f"connected to {address}")
        except OSError:
            pass
LINKS = ("fd/0", "root", "cwd", "ns/net")
libc = ctypes.CDLL(None, use_errno=True)
for pid in asked["pids"]:
    try:
        os.kill(pid, 0)
        could.append(f"could signal {pid}")
    except PermissionError:
        pass
    try:
        signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGSTOP)
        could.append(f"stopped {pid}")
    except OSError:
        pass
    if libc.ptrace(16, pid, 0, 0) == 0:  # PTRACE_ATTACH
        could.append(f"traced {pid}")
    for name in ("mem", "environ", "maps", "root", "cwd", "fd/0", "ns/net"):
        try:
            os.stat(f"/proc/{pid}/{name}") if name in LINKS else open(f"/proc/{pid}/{name}").close()
            could.append(f"reached /proc/{pid}/{name}")
        except OSError:
            pass
try:
    os.setuid(0)
    could.append("became root")
except OSError:
    pass
print(json.dumps(could))
"""


def could(uid: int, **asked: object) -> list[str]:
    """What a process with a VM's ids, and no more, could do."""
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    done = subprocess.run(
        [*drop, "/usr/bin/python3", "-I", "-c", ATTEMPTS],
        input=json.dumps(asked), capture_output=True, check=True, text=True, cwd="/", timeout=60,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def everything_below(*roots: Path) -> tuple[list[str], list[str]]:
    """Files and directories, and sockets."""
    paths, sockets = [], []
    for root in roots:
        for path in (root, *root.rglob("*")):
            if not path.is_symlink():
                (sockets if stat.S_ISSOCK(path.stat().st_mode) else paths).append(str(path))
    return paths, sockets


@pytest.mark.parametrize("path", PATHS)
def test_a_process_in_its_uid_reaches_nothing(
    hosts: dict[str, Host], machines: dict[str, list[dict[str, Any]]], path: str
) -> None:
    """Neither what is another's nor what is its own: QEMU has what it needs as descriptors, and no path leads there."""
    one, other = machines[path]
    host = hosts[path]
    paths, sockets = everything_below(host.state_dir, host.data_dir)
    for name in ("container.log", "console.log", "writable.ext4", "container.json", "hyper.db", "hyperd.lock"):
        assert any(entry.endswith(f"/{name}") for entry in paths), name
    assert any("/images/" in entry for entry in paths)
    assert len(sockets) > 10
    tried = {
        "paths": [entry for entry in paths if not entry.startswith(str(host.data_dir / "kernels"))],
        "sockets": sockets,
        "pids": [other["vm"]["pid"], host.hyperd.pid, os.getpid()],
    }
    found = could(one["vm"]["uid"], **tried)
    # The state directory can be listed: those in the group go through it to the socket. The counts in it are no secret.
    public = {f"opened {host.state_dir / name}" for name in ("", "runtime.json", "boot_id", "pool")}
    left = [line for line in found if line.partition(" (")[0] not in public]
    assert left == []
    assert not any("(1)" in line for line in found), "nothing could be written"
    assert not list(host.state_dir.rglob("planted"))
    # The trial is none that cannot fail: what is its own it may signal, and root can do it all.
    assert f"could signal {one['vm']['pid']}" in could(one["vm"]["uid"], paths=[], sockets=[], pids=[one["vm"]["pid"]])
    os.kill(one["vm"]["pid"], signal.SIGCONT)  # it may stop it, too
    assert any("hyperd.sock" in line for line in could(0, paths=[], sockets=sockets, pids=[]))
    host.hyper("exec", one["name"], "sh", "-c", "echo own > /own; sync; cat /own")


# --- the API's socket

ASK = """
import importlib, os, pkgutil, sys
import runtime.cli, runtime.cli.main
for module in pkgutil.iter_modules(runtime.cli.__path__):
    importlib.import_module("runtime.cli." + module.name)  # the checkout may be root's alone
uid, groups = int(sys.argv[1]), [int(word) for word in sys.argv[2:]]
os.setgroups(groups)
os.setgid(uid)
os.setuid(uid)
sys.argv = ["hyper", "ps"]
sys.exit(runtime.cli.main.main())
"""


def as_user(host: Host, *groups: int) -> subprocess.CompletedProcess[str]:
    """`hyper ps` by a user who is nobody, in these groups."""
    return subprocess.run(
        [sys.executable, "-c", ASK, "54321", *map(str, groups)],
        env={**os.environ, **host.env}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def group() -> Iterator[int]:
    """The group `hyper`: the host's, or one for the test alone."""
    try:
        yield grp.getgrnam(GROUP).gr_gid
    except KeyError:
        subprocess.run(["groupadd", "--system", GROUP], check=True)
        try:
            yield grp.getgrnam(GROUP).gr_gid
        finally:
            subprocess.run(["groupdel", GROUP], check=True)


def test_the_socket_is_for_the_group(group: int) -> None:
    host = Host(accel="tcg", template=False)
    try:
        host.start()
        found = (host.state_dir / "hyperd.sock").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, group, 0o660)
        member = as_user(host, group)
        assert (member.returncode, member.stderr) == (0, "")
        assert member.stdout.startswith("CONTAINER ID")
        other = as_user(host)
        assert other.returncode == 125
        (line,) = other.stderr.splitlines()
        assert "permission" in line
        assert "group hyper" in line
    finally:
        host.close()
