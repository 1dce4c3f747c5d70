"""Volumes, and files in and out, as the agent does them. Each test boots a VM."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract import agent_vm
from tests.contract.agent_vm import EOF, GuestVm, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@contextmanager
def booted(disk: Path) -> Iterator[GuestVm]:
    """A VM with the disk as vdc."""
    if not disk.exists():
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-J", "size=4", disk, "64M"], check=True, capture_output=True)
    drive = ["-drive", f"if=none,id=c,format=raw,file={disk}", "-device", "virtio-blk-device,drive=c"]
    with GuestVm(extra=drive) as vm:
        yield vm


def mount(path: str, **change: Any) -> dict[str, Any]:
    usual = {"device": "vdc", "fstype": "ext4", "options": "", "directory": "data", "copy": True}
    return {"path": path, "read_only": False, "device_read_only": False, **usual, **change}


def archive(vm: GuestVm, kind: str, path: str = "/", data: bytes | None = None, **more: Any) -> tuple[int, bytes, str]:
    """Exit code, stdout, stderr."""
    vm._next_session += 1
    session = vm._next_session
    vm.control.call("hyper-archive", session=session, kind=kind, path=path, **more)
    if data is not None:
        vm.streams.write(session, data)
        vm.streams.send(session, EOF)
    done = vm.streams.finish(session)
    assert done.exit is not None
    return done.exit["exit_code"], done.out[1], done.out[2].decode()


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {one.name: one for one in tar}


def test_what_the_host_shares_is_mounted_once_and_shown_at_several_places(tmp_path: Path) -> None:
    (tmp_path / "0" / "below").mkdir(parents=True)
    (tmp_path / "0" / "f").write_text("in the directory\n")
    (tmp_path / "1").write_text("a file\n")
    device = "virtio-9p-device,fsdev=shared,mount_tag=hyper-shared"
    shared = ["-fsdev", f"local,id=shared,path={tmp_path},security_model=none", "-device", device]
    usual = {"device": "hyper-shared", "fstype": "9p", "options": "trans=virtio,version=9p2000.L", "copy": False}
    with GuestVm(extra=shared) as vm:
        mounts = [mount("/a/b", **{**usual, "directory": "0"}), mount("/ro", **{**usual, "directory": "0"})]
        mounts[1]["read_only"] = True
        mounts.append(mount("/etc/new/file", **{**usual, "directory": "1"}))
        script = "cat /ro/f /etc/new/file; echo x > /a/b/below/x; echo y > /ro/y; ls /a/b; grep -c ^hyper- /proc/mounts"
        arguments = agent_vm.start_arguments("sh", "-c", script, mounts=mounts)
        if not agent_vm.has_9p():
            kind, text = vm.control.refusal("hyper-start", **arguments)
            assert (kind, "cannot mount the host's directories for /a/b" in text) == ("GenericError", True)
            return
        missing = agent_vm.start_arguments("true", mounts=[mount("/d", **{**usual, "directory": "2"})])
        assert "cannot open the volume of /d" in vm.control.refusal("hyper-start", **missing)[1]
        vm.control.call("hyper-start", **arguments)
        assert vm.wait() == 0
        assert vm.output().decode().splitlines() == ["in the directory", "a file", "below", "f", "3"]
        assert b"Read-only" in vm.output(2)
    assert (tmp_path / "0" / "below" / "x").read_text() == "x\n"


def test_a_volume_is_filled_once_kept_and_can_be_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with booted(disk) as vm:
        script = "ls -A /etc | sort; stat -c %a /etc; rm /etc/group; echo more > /etc/more; grep ' /etc ' /proc/mounts"
        vm.start("sh", "-c", script, mounts=[mount("/etc")])
        assert vm.wait() == 0
        lines = vm.output().decode().splitlines()
        assert {"group", "machine-id", "passwd"} <= set(lines)
        assert "755" in lines
        assert "ext4 rw" in lines[-1]
    with booted(disk) as vm:
        script = "cat /new/place/more; ls -A /new/place; touch /new/place/x; echo $?"
        vm.start("sh", "-c", script, mounts=[mount("/new/place", read_only=True, device_read_only=True)])
        assert vm.wait() == 0
        lines = vm.output().decode().splitlines()
        assert lines[0] == "more"
        assert "group" not in lines
        assert "passwd" in lines
        assert "lost+found" not in lines
        assert lines[-1] == "1"
        assert b"Read-only" in vm.output(2)


def test_what_lies_deeper_is_mounted_later(tmp_path: Path) -> None:
    script = """stat -f -c %T /a /a/b /a/b/c; touch /a/b/kept; cat /etc/hostname /etc/resolv.conf; touch /run/x
        grep -c ' /a' /proc/mounts"""
    tmpfs = [{"path": one, "options": ""} for one in ("/a/b/c", "//a/", "/run")]
    with booted(tmp_path / "disk") as vm:
        vm.control.call("hyper-identity", hostname="web-1", dns=["10.97.0.1"], search=[], hosts=[])
        vm.start("sh", "-c", script, mounts=[mount("/a/b")], tmpfs=tmpfs)
        assert vm.wait() == 0
        lines = vm.output().decode().splitlines()
        assert lines == ["tmpfs", "ext2/ext3", "tmpfs", "web-1", "nameserver 10.97.0.1", "3"]
    read = ["debugfs", "-R", "ls -p data", str(tmp_path / "disk")]
    assert b"/kept/" in subprocess.run(read, capture_output=True, check=True).stdout


def test_a_volume_for_etc_has_the_files_of_the_guest_over_its_own(tmp_path: Path) -> None:
    script = "cat /etc/hostname; grep -c db /etc/hosts; readlink /etc/resolv.conf; echo mine > /etc/hostname; ls /etc"
    known = {"hostname": "web-1", "dns": ["10.97.0.1"], "search": [], "hosts": [["10.97.0.9", "db"]]}
    with booted(tmp_path / "disk") as vm:
        vm.control.call("hyper-identity", **known)
        vm.start("sh", "-c", script, mounts=[mount("/etc")])
        assert vm.wait() == 0
        # Of a link to nowhere that is the volume's own nothing is removed.
        assert vm.output().decode().splitlines()[:3] == ["web-1", "1", "../run/nowhere/resolv.conf"]
        assert b"passwd" in vm.output()
    read = ["debugfs", "-R", "cat data/hostname", str(tmp_path / "disk")]
    assert subprocess.run(read, capture_output=True, check=True).stdout == b""
    (tmp_path / "content" / "data").mkdir(parents=True)
    (tmp_path / "content" / "data" / "hosts").touch()
    make = ["mke2fs", "-q", "-t", "ext4", "-J", "size=4", "-d", tmp_path / "content", tmp_path / "read-only", "64M"]
    subprocess.run(make, check=True, capture_output=True)
    with booted(tmp_path / "read-only") as vm:
        vm.control.call("hyper-identity", **known)
        script = "ls /etc; grep -c db /etc/hosts"
        vm.start("sh", "-c", script, mounts=[mount("/etc", read_only=True, device_read_only=True)])
        assert vm.wait() == 0
        assert vm.output() == b"hosts\n1\n", "what has no place there is left out"


def test_what_cannot_be_mounted_is_refused(tmp_path: Path) -> None:
    with booted(tmp_path / "disk") as vm:
        for wrong in (mount("relative"), mount("/a", directory="../x"), mount("/a", device="../vdc")):
            refused = vm.control.refusal("hyper-start", **agent_vm.start_arguments("true", mounts=[wrong]))
            assert refused[0] == "InvalidArgument"
        refused = vm.control.refusal("hyper-start", **agent_vm.start_arguments("true", mounts=[mount("/bin/sh")]))
        assert "/bin/sh" in refused[1]
        assert vm.control.call("hyper-status")["state"] == "idle"


def test_a_frozen_volume_can_be_copied_and_thaws_by_itself(tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    script = "i=0; while :; do i=$((i+1)); echo $i > /v/new; mv /v/new /v/count; done"
    with booted(disk) as vm:
        vm.start("sh", "-c", script, mounts=[mount("/v")])
        wait_for(lambda: int(vm.run("cat", "/v/count")[1] or 0) > 20, "it counts")
        assert vm.control.call("hyper-freeze", device="vdc", hold_s=60) == {}
        assert vm.control.refusal("hyper-freeze", device="vdc")[0] == "BadState"
        subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
        before = int(vm.run("cat", "/v/count")[1])
        assert int(vm.run("cat", "/v/count")[1]) == before, "nobody writes"
        assert archive(vm, "changes")[0] == 0, "the disks can be read meanwhile"
        assert vm.control.call("hyper-thaw") == {}
        assert vm.control.call("hyper-freeze", device="vdb") == {}, "at once again"
        assert vm.control.call("hyper-thaw") == {}
        wait_for(lambda: int(vm.run("cat", "/v/count")[1]) > before, "it counts on")
        assert vm.control.refusal("hyper-thaw")[0] == "BadState"
        vm.control.call("hyper-freeze", device="vdc", hold_s=1)
        frozen = int(vm.run("cat", "/v/count")[1])
        wait_for(lambda: int(vm.run("cat", "/v/count")[1]) > frozen, "it thaws when the time is over")
        assert vm.control.refusal("hyper-thaw")[0] == "BadState"
        assert vm.control.refusal("hyper-freeze", device="vdz")[0] == "GenericError"
    checked = subprocess.run(["e2fsck", "-fn", copy], capture_output=True, check=False, text=True)
    assert checked.returncode == 0, checked.stdout
    count = subprocess.run(["debugfs", "-R", "cat data/count", copy], capture_output=True, check=True).stdout
    assert int(count) == before


def test_files_come_out_as_tar(tmp_path: Path) -> None:
    long = "n" * 150
    make = f"""mkdir -p '/w/a dir' /w/{long} && cd /w && echo one > 'a dir/f' && ln 'a dir/f' hard && ln -s /etc/x sym
        mkfifo p; chown 1000:1001 hard; chmod 4711 hard; head -c 300000 /dev/urandom > big; touch {long}/é
        sha256sum < big; ln -s /w /link"""
    with booted(tmp_path / "disk") as vm:
        vm.start("sleep", "1000")
        code, out, err = vm.run("sh", "-c", make)
        assert (code, err) == (0, b"")
        code, data, _ = archive(vm, "get", "/link/../w")
        assert code == 0
        found = members(data)
        assert {"w", "w/a dir/f", "w/sym", f"w/{long}/é", "w/p", "w/big"} <= set(found)
        assert found["w/sym"].linkname == "/etc/x"
        assert {found["w/hard"].islnk(), found["w/a dir/f"].islnk()} == {True, False}
        regular = found["w/a dir/f"] if found["w/hard"].islnk() else found["w/hard"]
        assert (regular.mode, regular.uid, regular.gid) == (0o4711, 1000, 1001)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            big = tar.extractfile("w/big")
            assert big is not None
            assert hashlib.sha256(big.read()).hexdigest() == out.decode().split()[0]
        assert members(archive(vm, "get", "/link")[1])["link"].issym()
        assert "./big" in members(archive(vm, "get", "/link/.")[1])
        assert vm.control.refusal("hyper-archive", session=99, kind="get", path="/nowhere/x")[0] == "NotFound"
        assert vm.control.refusal("hyper-archive", session=99, kind="put", path="/etc/passwd")[0] == "NotFound"
        assert vm.control.refusal("hyper-archive", session=99, kind="sing", path="/etc")[0] == "InvalidArgument"


def _tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **change: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in change.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_go_in_as_tar_and_stay_in_their_directory(tmp_path: Path, form: int) -> None:
    long = "d/" + "x" * 120 + "/" + "y" * 120
    content = os.urandom(100_000)
    good = _tar(
        (_entry("d", tarfile.DIRTYPE, mode=0o750, uid=5, gid=6), b""),
        (_entry("d/a b", mode=0o640, uid=7, gid=8, mtime=1_600_000_000), content),
        (_entry(long), b"long"),
        (_entry("d/link", tarfile.SYMTYPE, "/etc"), b""),
        (_entry("d/hard", tarfile.LNKTYPE, "d/a b"), b""),
        form=form,
    )
    with booted(tmp_path / "disk") as vm:
        vm.start("sleep", "1000", mounts=[mount("/v")])
        assert archive(vm, "put", "/v", good) == (0, b"", "")
        assert vm.run("stat", "-c", "%a %u %g %Y %h", "/v/d/a b")[1] == b"640 7 8 1600000000 2\n"
        assert vm.run("cat", "/v/d/hard")[1] == content
        assert vm.run("cat", f"/v/{long}")[1] == b"long"
        assert vm.run("stat", "-c", "%a %u %g", "/v/d")[1] == b"750 5 6\n"
        escapes = [
            _tar((_entry("../out"), b"x")),
            _tar((_entry("d/link/out"), b"x")),
            _tar((_entry("e", tarfile.LNKTYPE, "../etc/passwd"), b"")),
            # The length is of the newlines alone: a record that ends before its key.
            _tar((_entry("pax", tarfile.XHDTYPE), b"\n\n\n\n\n5 SCHILY.xattr.user.x=v"), (_entry("e"), b"x")),
        ]
        for escape in (*escapes, b"no tar" * 200, good[: len(good) // 2]):
            code, _, err = archive(vm, "put", "/v", escape)
            assert code == 1
            assert err.strip()
            assert vm.run("sh", "-c", "ls /out /etc/out /v/e")[0] != 0
        vm.run("dd", "if=/dev/zero", "of=/v/fills", "bs=1M")
        code, _, err = archive(vm, "put", "/v", _tar((_entry("big"), bytes(100_000)), form=form))
        assert (code, "No space" in err) == (1, True)


def test_changes_and_layer_are_those_of_the_writable_layer(tmp_path: Path) -> None:
    script = """rm /etc/group; echo x >> /etc/passwd; mkdir -p /new/a; echo 1 > /new/a/f; rm -r /home; mkdir /home
        ln /new/a/f /new/a/g; mkdir /v/in-the-volume; sleep 1000"""
    exclude = ["etc/hosts", "etc/hostname", "etc/resolv.conf", "proc", "sys", "dev", "v"]
    with booted(tmp_path / "disk") as vm:
        vm.start("sh", "-c", script, mounts=[mount("/v")])
        wait_for(lambda: vm.run("ls", "/v/in-the-volume")[0] == 0, "the changes")
        code, data, err = archive(vm, "changes", exclude=exclude)
        assert (code, err) == (0, "")
        told = sorted(data.decode().split("\0"))[1:]
        assert told == ["A/new", "A/new/a", "A/new/a/f", "A/new/a/g", "C/etc", "C/etc/passwd", "C/home", "D/etc/group"]
        code, data, err = archive(vm, "layer", exclude=exclude)
        assert (code, err) == (0, "")
        found = members(data)
        assert {"etc", "etc/.wh.group", "etc/passwd", "home", "home/.wh..wh..opq", "new/a/f"} <= set(found)
        assert not {"v", "proc", "dev", "etc/hosts"} & set(found)
        assert found["new/a/g"].islnk() != found["new/a/f"].islnk()
        assert vm.control.call("hyper-status")["state"] == "running"


def test_what_is_left_out_is_that_of_the_request_and_not_of_the_next_one(tmp_path: Path) -> None:
    count, tail = 2500, "n" * 200
    script = f"""mkdir /w; cd /w; i=0
        while [ $i -lt {count} ]; do i=$((i+1)); >in-$i; >out-$i-{tail}; done; sleep 1000"""
    exclude = [f"w/in-{i}" for i in range(1, count + 1)]
    with booted(tmp_path / "disk") as vm:
        vm.start("sh", "-c", script)
        wait_for(lambda: vm.run("ls", f"/w/out-{count}-{tail}")[0] == 0, "the files", timeout_s=60)
        vm.streams.stingy = True
        vm._next_session += 1
        session = vm._next_session
        vm.control.call("hyper-archive", session=session, kind="changes", path="/", exclude=exclude)
        while len(vm.streams.sessions.setdefault(session, agent_vm.Session()).out[1]) < agent_vm.CREDIT_BYTES:
            vm.streams.step()
        assert vm.control.call("guest-sync", id=1, unused="x" * 100_000) == 1
        vm.streams.stingy = False
        vm.streams.send(session, agent_vm.CREDIT, 1, (1 << 20).to_bytes(4, "little"))
        told = vm.streams.finish(session).out[1].decode().split("\0")
        assert len(told) > count
        assert not [one for one in told if "/w/in-" in one]


def test_an_idle_container_serves_files(tmp_path: Path) -> None:
    with booted(tmp_path / "disk") as vm:
        vm.start("idle", idle=True)
        assert "etc/passwd" in members(archive(vm, "get", "/etc")[1])
        began = time.monotonic()
        vm.control.call("hyper-signal", signal=9, all=True)
        assert vm.wait() == 0
        assert time.monotonic() - began < 30
        assert vm.events()[-1]["exit_code"] == 137
