"""Directories of the host in micro-VMs, on each kernel that is here: one without 9p refuses them, with the remedy."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import kernels
from tests.host import Host, about, running_host, wait_for
from tests.places import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

PRESENT = kernels.present()
# Maps a file, writes through the map, and ends without closing it.
MAPS = """
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int count, char **words)
{
    int fd = open(words[count - 1], O_RDWR);
    char *map = mmap(0, 5, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || map == MAP_FAILED)
        return 1;
    memcpy(map, "HELLO", 5);
    return msync(map, 5, MS_SYNC) != 0;
}
"""


class Shares:
    """A host, and whether its kernel can do what is tested."""

    def __init__(self, host: Host) -> None:
        self.host = host
        info = json.loads(host.hyper("info", "--format", "json").stdout)
        self.able = "9p" not in info["kernel_lacks"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str] | None:
        """`hyper run …`, or None where the kernel cannot, after looking at what was said and left."""
        done = self.host.hyper("run", *arguments, check=False)
        if self.able:
            assert done.returncode == 0, done.stderr
            return done
        assert done.returncode == 125
        assert len(done.stderr.splitlines()) == 1
        assert "needs 9p" in done.stderr
        assert "make kernel" in done.stderr
        return None

    def read(self, container: str, path: str) -> str:
        return self.host.hyper("exec", container, "cat", path, check=False).stdout


@pytest.fixture(scope="module", params=PRESENT, ids=kernels.name)
def sharing_host(request: pytest.FixtureRequest, images: Images) -> Iterator[Host]:
    with running_host(images.busybox, kernel=request.param) as one:
        yield one


@pytest.fixture
def shares(sharing_host: Host) -> Iterator[Shares]:
    yield Shares(sharing_host)
    if names := sharing_host.hyper("ps", "-a", "-q", "--no-trunc").stdout.split():
        sharing_host.hyper("rm", "-f", *names)
    assert str(sharing_host.state_dir) not in Path("/proc/self/mountinfo").read_text(), "nothing is mounted here"


def mounts_of(host: Host, container: str) -> list[str]:
    """What is mounted for the container's QEMU below the directory that it exports."""
    found = host.inspect(container)
    lines = Path(f"/proc/{found['vm']['pid']}/mountinfo").read_text().splitlines()
    return [line for line in lines if f"/{found['id']}/shared/" in line]


def test_what_a_container_writes_is_what_root_would_have_written(
    shares: Shares, images: Images, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "old").write_text("old\n")
    os.chown(there / "old", 1000, 1001)
    (there / "old").chmod(0o600)
    script = (
        "cd /d; cat old; stat -c '%u %g %a' . old; echo new > new; chown 999:998 new; chmod 640 new; mkdir -m 700 below"
        "; ln -s new link; ln new hard; echo more >> old; mv old renamed; cat link; rm hard"
    )
    done = shares.run("--rm", "-v", f"{there}:/d", images.busybox, "sh", "-c", script)
    if done is None:
        assert sorted(path.name for path in there.iterdir()) == ["old"]
        return
    assert done.stdout.splitlines() == ["old", "0 0 755", "1000 1001 600", "new"]
    assert done.stderr == ""
    assert sorted(path.name for path in there.iterdir()) == ["below", "link", "new", "renamed"]
    new, below = (there / "new").stat(), (there / "below").stat()
    assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode), new.st_nlink) == (999, 998, 0o640, 1)
    assert (below.st_uid, stat.S_IMODE(below.st_mode)) == (0, 0o700)
    assert (there / "link").readlink() == Path("new")
    renamed = there / "renamed"
    assert (renamed.read_text(), renamed.stat().st_uid) == ("old\nmore\n", 1000)


def test_rights_are_those_of_the_files(shares: Shares, images: Images, tmp_path: Path) -> None:
    own, closed = tmp_path / "own", tmp_path / "closed"
    own.mkdir()
    closed.mkdir(mode=0o700)
    os.chown(own, 999, 999)
    script = "id -u > /own/f; ls /closed || echo refused; chown 0 /own/f || echo kept"
    mounts = ("-v", f"{own}:/own", "-v", f"{closed}:/closed")
    done = shares.run("--rm", "-u", "999:999", *mounts, images.busybox, "sh", "-c", script)
    if done is not None:
        assert done.stdout.splitlines() == ["refused", "kept"]
        assert ((own / "f").read_text(), (own / "f").stat().st_uid) == ("999\n", 999)


def test_read_only_is_so_on_the_hosts_side(shares: Shares, images: Images, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("here\n")
    mounts = ("-v", f"{tmp_path}:/ro:ro", "-v", f"{tmp_path}:/rw")
    if shares.run("-d", "--name", "reads", *mounts, images.busybox, "sleep", "600") is None:
        return
    refused = shares.host.hyper("exec", "reads", "sh", "-c", "cat /ro/f; echo x > /ro/f", check=False)
    assert (refused.stdout, refused.returncode) == ("here\n", 1)
    assert "Read-only" in refused.stderr
    first, second = (line.split() for line in mounts_of(shares.host, "reads"))
    for line, access in ((first, "ro"), (second, "rw")):
        assert {access, "nosuid", "nodev", "noexec", "idmapped"} <= set(line[5].split(",")), line
    assert [mount["RW"] for mount in _mounts(shares.host, "reads")] == [False, True]


def _mounts(host: Host, container: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(host.hyper("inspect", "--format", "{{json .Mounts}}", container).stdout)
    return found


def test_nothing_leads_out_of_the_directory(shares: Shares, images: Images, tmp_path: Path) -> None:
    there, secret = tmp_path / "there", tmp_path / "secret"
    (there / "below").mkdir(parents=True)
    secret.mkdir()
    (secret / "f").write_text("secret\n")
    (there / "link").symlink_to(secret / "f")
    (there / "up").symlink_to("../secret/f")
    subprocess.run(["mknod", there / "null", "c", "1", "3"], check=True)
    (there / "go").touch()
    waits = "cd /d/below; echo ready; until test -s /d/go; do sleep 0.1; done; cat ../link ../up ./f ../below/f ../null"
    if shares.run("-d", "--name", "looks", "-v", f"{there}:/d", images.busybox, "sh", "-c", f"{waits}; id") is None:
        return
    wait_for(lambda: shares.host.hyper("logs", "looks").stdout == "ready\n", "it is in the directory")
    (there / "below").rename(tmp_path / "gone")
    (there / "below").symlink_to(secret)  # QEMU has a name for the guest's directory, which now is this
    (there / "go").write_text("go\n")
    wait_for(lambda: "uid=0" in shares.host.hyper("logs", "looks").stdout, "it has looked")
    told = shares.host.hyper("logs", "looks")
    assert "secret" not in told.stdout
    assert len(told.stderr.splitlines()) == 5, told.stderr


def test_files_and_nested_places_and_those_that_are_not_there(shares: Shares, images: Images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    made = tmp_path / "not" / "there"
    mounts = ("-v", f"{tmp_path}/file:/etc/passwd:ro", "-v", f"{made}:/srv/a", "-v", "disk:/srv", "-v", f"{made}:/made")
    script = "cat /etc/passwd; echo x > /srv/a/x; cat /made/x; ls /srv"
    done = shares.run("--rm", *mounts, images.busybox, "sh", "-c", script)
    if done is not None:
        assert done.stdout.splitlines() == ["from the host", "x", "a"]
        assert stat.S_IMODE(made.stat().st_mode) == 0o755
        bind = ("run", "--rm", "--mount", f"type=bind,source={tmp_path}/never,target=/d", images.busybox, "true")
        refused = shares.host.hyper(*bind, check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (125, 1)
        assert not (tmp_path / "never").exists()
        here = subprocess.run(
            [shares.host.hyper_program, "run", "--rm", "-v", "./not:/d", images.busybox, "ls", "/d"],
            cwd=tmp_path, env={**os.environ, **shares.host.env}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert here.stdout == "there\n"
    shares.host.hyper("volume", "rm", "-f", "disk")


def test_directories_outlive_the_daemon_and_a_stop(shares: Shares, images: Images, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\n")
    if shares.run("-d", "--name", "lives", "-v", f"{tmp_path}:/d", images.busybox, "sleep", "600") is None:
        return
    assert shares.host.inspect("lives")["vm"]["start_path"] == "template"
    shares.host.hyperd.kill()
    shares.host.start()
    (tmp_path / "f").write_text("two\n")
    assert shares.read("lives", "/d/f") == "two\n"
    shares.host.hyper("stop", "-t", "0", "lives")
    for command in (("cp", "lives:/d/f", str(tmp_path / "copy")), ("cp", str(tmp_path / "f"), "lives:/d/copy")):
        refused = shares.host.hyper(*command, check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (125, 1)
        assert str(tmp_path) in refused.stderr, "where the file is to be had"
    assert shares.host.hyper("diff", "lives").stdout == ""
    shares.host.hyper("commit", "lives", "without:1")
    assert shares.host.hyper("run", "--rm", "without:1", "ls", "-A", "/d", check=False).stdout == ""
    shares.host.hyper("rmi", "without:1")
    shares.host.hyper("start", "lives")
    assert shares.read("lives", "/d/f") == "two\n"
    shares.host.hyper("cp", str(tmp_path / "f"), "lives:/d/copy")
    assert (tmp_path / "copy").read_text() == "two\n"
    pid = int(shares.host.inspect("lives")["vm"]["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: shares.host.inspect("lives")["state"] == "exited", "its end is seen")
    shares.host.hyper("rm", "lives")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "f"], "nothing of the host's is removed"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "1m", lazy=True) as place:
        yield place


def test_a_full_disk_and_one_that_is_taken_away(shares: Shares, images: Images, tmp_path: Path, small: Path) -> None:
    goes = tmp_path / "goes"
    goes.mkdir()
    mounts = ("-v", f"{tmp_path}:/all", "-v", f"{goes}:/goes")
    if shares.run("-d", "--name", "fills", *mounts, images.busybox, "sleep", "600") is None:
        return
    full = ("exec", "fills", "dd", "if=/dev/zero", "of=/all/small/f", "bs=64k", "count=32")
    done = shares.host.hyper(*full, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr, "a file system below is there as well, and is full"
    assert (small / "f").stat().st_size > 0
    goes.rmdir()
    gone = shares.host.hyper("exec", "fills", "sh", "-c", "echo x > /goes/f", check=False)
    assert gone.returncode == 1
    assert shares.host.hyper("exec", "fills", "echo", "on").stdout == "on\n"


def test_a_file_system_without_maps_can_only_be_read(shares: Shares, images: Images) -> None:
    read = ("run", "--rm", "-v", "/proc/sys/kernel:/d:ro", images.busybox, "cat", "/d/ostype")
    written = ("run", "--rm", "-v", "/proc/sys/kernel:/d", images.busybox, "true")
    done = shares.host.hyper(*written, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    if not shares.able:
        assert "make kernel" in done.stderr
        return
    assert "idmapped" in done.stderr
    assert ":ro" in done.stderr
    assert shares.host.hyper(*read).stdout == "Linux\n"
    assert shares.host.hyper("ps", "-a", "-q").stdout == ""


def test_the_daemons_own_directories_are_refused(shares: Shares, images: Images, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(shares.host.data_dir)
    for path in ("/", "/run", str(shares.host.state_dir), str(shares.host.data_dir / "containers"), str(link)):
        done = shares.host.hyper("create", "-v", f"{path}:/d:ro", images.busybox, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), (path, done.stderr)
        assert "the daemon's own" in done.stderr
    socket = shares.host.hyper("create", "-v", "/dev/null:/d", images.busybox, check=False)
    assert "neither a directory nor a file" in socket.stderr
    assert shares.host.hyper("ps", "-a", "-q").stdout == ""


def test_a_file_can_be_mapped(shares: Shares, images: Images, tmp_path: Path) -> None:
    (tmp_path / "maps.c").write_text(MAPS)
    subprocess.run(["musl-gcc", "-static", "-o", tmp_path / "maps", tmp_path / "maps.c"], check=True)
    (tmp_path / "f").write_text("hello, you\n")
    if shares.run("--rm", "-v", f"{tmp_path}:/d", images.busybox, "/d/maps", "/d/f") is not None:
        assert (tmp_path / "f").read_text() == "HELLO, you\n"


def test_qemu_has_no_rights_beyond_the_directories(shares: Shares, images: Images, tmp_path: Path) -> None:
    if shares.run("-d", "--name", "one", "-v", f"{tmp_path}:/d", images.busybox, "sleep", "600") is None:
        return
    vm = shares.host.inspect("one")["vm"]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{vm['pid']}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [str(vm["uid"])] * 4
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0b11011, "chown, dac_override, fowner, fsetid"
    assert status["NoNewPrivs"] == "1"
    entered = [
        "nsenter",
        f"--user=/proc/{vm['pid']}/ns/user",
        f"--mount=/proc/{vm['pid']}/ns/mnt",
        "cat",
        "/etc/shadow",
    ]
    assert "Permission denied" in subprocess.run(entered, capture_output=True, text=True, check=False).stderr


def test_a_container_with_host_directories_is_kept_from_the_pool(images: Images, tmp_path: Path) -> None:
    """A VM that waits for anybody has no capability; one with host directories keeps four, for files alone."""
    with running_host(images.busybox, kernel=PRESENT[-1], pool_depth=1) as own:
        done = own.hyper(
            "run", "-d", "--name", "first", "-v", f"{tmp_path}:/d", images.busybox, "sleep", "9", check=False
        )
        if "9p" in about(own)["kernel_lacks"]:
            assert done.returncode == 125
        else:
            vm = own.inspect("first")["vm"]
            assert vm["start_path"] == "template"
            assert "host directories" in vm["start_path_reason"]
            own.hyper("exec", "first", "sh", "-c", "echo here > /d/f")
            assert (tmp_path / "f").read_text() == "here\n"
        assert about(own)["pool_waiting"] == 1
