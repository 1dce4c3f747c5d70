"""Volumes, snapshots, and files in and out, through the command line, on real micro-VMs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from runtime.client import Chunks, Client, ClientError
from runtime.errors import DiskFull, HostUnable
from runtime.volumes import Volumes
from tests.host import Host, wait_for
from tests.places import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

SESSIONS = 64  # of a guest


def groups(name: str) -> list[str]:
    """The control groups of this name."""
    return [at for at, names, _ in os.walk("/sys/fs/cgroup") if name in names]


@pytest.fixture
def disks(host: Host) -> Iterator[Host]:
    """The shared host; volumes and snapshots of the test are removed with its containers."""
    yield host
    names = host.hyper("ps", "-a", "-q", "--no-trunc").stdout.split()
    if names:
        host.hyper("rm", "-f", *names)
    for kind in ("volume", "snapshot"):
        left = host.hyper(kind, "ls", "-q").stdout.split()
        if left:
            host.hyper(kind, "rm", *left)
    assert sorted(path.name for path in (host.data_dir / "volumes").iterdir()) == []


def test_a_volume_outlives_containers_and_is_written_by_one(disks: Host, images: Images) -> None:
    disks.hyper("volume", "create", "--size", "64m", "--label", "team=shop", "data")
    first = (
        "run",
        "--rm",
        "-v",
        "data:/d",
        images.busybox,
        "sh",
        "-c",
        "id > /d/f; chown 5:6 /d/f; df -m /d | tail -1; dd if=/dev/urandom of=/d/big bs=1M count=8; md5sum /d/big",
    )
    size, written = disks.hyper(*first).stdout.splitlines()
    assert 40 < int(size.split()[1]) <= 64
    disks.run("--name", "holds", "-v", "data:/d", images.busybox, "sleep", "600")
    told = disks.hyper("exec", "holds", "stat", "-c", "%u %g", "/d/f").stdout
    assert told == "5 6\n"
    # The VM was ended as soon as its container had, for the sake of --rm.
    assert disks.hyper("exec", "holds", "md5sum", "/d/big").stdout.strip() == written
    seen = json.loads(disks.hyper("volume", "inspect", "data").stdout)[0]
    assert (seen["size_bytes"], seen["labels"]) == (64 << 20, {"team": "shop"})
    assert [user["name"] for user in seen["containers"]] == ["holds"]
    assert 0 < seen["used_bytes"] < 10 << 20
    assert "holds" in disks.hyper("volume", "ls").stdout
    second = disks.hyper("run", "--rm", "-v", "data:/x:ro", images.busybox, "true", check=False)
    assert (second.returncode, "in use by holds" in second.stderr) == (125, True)
    for command in (("volume", "rm", "data"), ("volume", "create", "--size", "65m", "data")):
        assert disks.hyper(*command, check=False).returncode == 125
    disks.hyper("stop", "-t", "1", "holds")
    read = ("run", "-d", "-v", "data:/x:ro", images.busybox, "sh", "-c", "cat /x/f; touch /x/g; sleep 600")
    readers = [disks.hyper(*read).stdout.strip() for _ in range(2)]
    for reader in readers:
        wait_for(lambda one=reader: "Read-only" in disks.hyper("logs", one).stderr, "it is read-only")  # type: ignore[misc]  # bound at once
        assert "uid=0" in disks.hyper("logs", reader).stdout
    writer = disks.hyper("start", "holds", check=False)
    assert (writer.returncode, "in use by" in writer.stderr) == (125, True)
    disks.hyper("rm", "-f", *readers)
    disks.hyper("start", "holds")
    disks.hyper("rm", "-f", "-v", "holds")
    assert disks.hyper("volume", "ls", "-q").stdout == "data\n"


def test_new_volumes_get_the_images_content_and_anonymous_ones_go(disks: Host, images: Images) -> None:
    script = "ls /bin/busybox /etc/passwd; ls -A /new | wc -l"
    done = disks.hyper("run", "--rm", "-v", "/etc", "-v", "named:/new", images.busybox, "sh", "-c", script)
    assert done.stdout.splitlines() == ["/bin/busybox", "/etc/passwd", "0"]
    assert disks.hyper("volume", "ls", "-q").stdout == "named\n", "--rm took the anonymous one"
    unnamed = disks.hyper("volume", "create", "--size", "64m").stdout.strip()
    disks.hyper("run", "--rm", "-v", f"{unnamed}:/new", "-v", "/own", images.busybox, "touch", "/new/mine")
    failed = disks.hyper("run", "-v", f"{unnamed}:/new", images.busybox, "/nosuch", check=False)
    assert failed.returncode == 127
    disks.hyper("create", "--name", "names", "-v", f"{unnamed}:/new", images.busybox, "ls", "/new")
    assert "mine" in disks.hyper("start", "-a", "names").stdout
    disks.hyper("rm", "-v", "names")
    assert set(disks.hyper("volume", "ls", "-q").stdout.split()) == {"named", unnamed}, "whoever names one keeps it"
    disks.hyper("volume", "rm", unnamed)
    disks.run("--name", "keeps", "-v", "/var/lib", images.busybox, "sleep", "600")
    disks.hyper("rm", "-f", "keeps")
    left = disks.hyper("volume", "ls", "-q").stdout.split()
    assert len(left) == 2
    assert "Total reclaimed space" in disks.hyper("volume", "prune", "-f").stdout
    assert disks.hyper("volume", "ls", "-q").stdout == "named\n"
    assert disks.hyper("volume", "prune", check=False).returncode == 125, "nobody said yes"
    disks.hyper("volume", "prune", "-f", "--all")
    assert disks.hyper("volume", "ls", "-q").stdout == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-v", "a:relative"], "PATH"),
        (["-v", "a:/x:wrong"], "ro"),
        (["-v", "a:/proc/x"], "/proc"),
        (["-v", "a:/x/../y"], "absolute"),
        (["-v", "v*:/x"], "volume name"),
        (["-v", "some/dir:/x"], "absolute path of the host"),
        (["-v", "a:/x", "-v", "b:/x"], "two volumes"),
        (["-v", "a:/x", "-v", "a:/y"], "twice"),
        (["-v", "a:/x", "-v", "b:/y", "-v", "c:/z"], "3 volumes"),
    ],
)
def test_wrong_volumes_are_refused_in_one_line(disks: Host, images: Images, options: list[str], said: str) -> None:
    done = disks.hyper("create", *options, images.busybox, "true", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
    assert said in done.stderr
    assert disks.hyper("volume", "ls", "-q").stdout == ""
    assert disks.hyper("ps", "-aq").stdout == ""


def test_wrong_names_and_sizes_are_refused(disks: Host) -> None:
    for command in (
        ("volume", "create", "--size", "1m", "small"),
        ("volume", "create", "--size", "x", "small"),
        ("volume", "create", "../x"),
        ("volume", "create", "--snapshot", "nosuch", "v"),
        ("volume", "inspect", "nosuch"),
        ("volume", "rm", "nosuch"),
        ("volume", "sing"),
        ("snapshot", "create", "--volume", "nosuch"),
        ("snapshot", "create"),
        ("snapshot", "rm", "nosuch"),
    ):
        done = disks.hyper(*command, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), (command, done.stderr)
    disks.hyper("volume", "rm", "-f", "nosuch")


def test_a_snapshot_of_a_volume_in_use_is_consistent(disks: Host, images: Images) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i > /d/new; mv /d/new /d/count; done"
    disks.run("--name", "counts", "-v", "data:/d", images.busybox, "sh", "-c", script)

    def count(name: str = "counts") -> int:
        return int(disks.hyper("exec", name, "cat", "/d/count").stdout or 0)

    before = wait_for(lambda: count() if count() > 10 else 0, "it counts")
    assert disks.hyper("snapshot", "create", "--volume", "data", "then").stdout == "then\n"
    after = count()
    assert disks.hyper("snapshot", "create", "--volume", "data", "then", check=False).returncode == 125
    wait_for(lambda: count() > after, "it counts on")
    disks.hyper("volume", "create", "--snapshot", "then", "copy")
    file = json.loads(disks.hyper("volume", "inspect", "copy").stdout)[0]["file"]
    checked = subprocess.run(["e2fsck", "-fn", file], capture_output=True, check=False, text=True)
    assert checked.returncode == 0, checked.stdout
    kept = int(disks.hyper("run", "--rm", "-v", "copy:/d:ro", images.busybox, "cat", "/d/count").stdout)
    assert before <= kept <= after
    disks.hyper("rm", "-f", "counts")
    disks.hyper("volume", "rm", "data")
    disks.hyper("volume", "create", "--snapshot", "then", "again")
    again = disks.hyper("run", "--rm", "-v", "again:/d", images.busybox, "cat", "/d/count").stdout
    assert int(again) == kept, "a snapshot outlives its volume"
    assert json.loads(disks.hyper("snapshot", "ls", "--format", "json").stdout)[0]["volume"] == "data"


def test_what_takes_room_is_told_and_can_be_pruned(disks: Host, images: Images) -> None:
    disks.run("--name", "up", "-v", "data:/d", images.busybox, "sleep", "600")
    disks.hyper("run", "--name", "over", images.busybox, "true")
    found = json.loads(disks.hyper("system", "df", "--format", "json").stdout)
    assert (found["containers"]["count"], found["containers"]["active"]) == (2, 1)
    assert (found["volumes"]["count"], found["volumes"]["active"]) == (1, 1)
    assert found["images"]["bytes"] > 0
    assert "Local Volumes" in disks.hyper("system", "df").stdout
    disks.hyper("system", "prune", "-f")
    assert disks.hyper("ps", "-a", "--format", "{{.Names}}").stdout.split() == ["up"]
    assert disks.hyper("volume", "ls", "-q").stdout == "data\n"


def test_a_cold_boot_has_volumes_too_and_half_made_ones_are_swept(images: Images) -> None:
    own = Host(accel="tcg", template="false")
    try:
        own.start()
        own.hyper("pull", images.busybox)
        own.hyper("run", "--rm", "-v", "a:/a", "-v", "b:/b", images.busybox, "sh", "-c", "echo 1 > /a/f; echo 2 > /b/f")
        read = own.hyper("run", "--rm", "-v", "b:/x", "-v", "a:/y:ro", images.busybox, "cat", "/x/f", "/y/f")
        assert read.stdout == "2\n1\n"
        own.run("--name", "killed", "-v", "a:/a", images.busybox, "sh", "-c", "while :; do date > /a/f; done")
        own.hyperd.kill()
        for name in (".new-half", "norow"):
            directory: Path = own.data_dir / "volumes" / name
            directory.mkdir()
            (directory / "volume.ext4").touch()
        (own.data_dir / "snapshots" / ".new-half").mkdir()
        own.start()
        assert sorted(path.name for path in (own.data_dir / "volumes").iterdir()) == ["a", "b", "norow"]
        assert own.hyper("volume", "ls", "-q").stdout.split() == ["a", "b"]
        assert list((own.data_dir / "snapshots").iterdir()) == []
        done = own.hyper("run", "--rm", "-v", "a:/a", images.busybox, "true", check=False)
        assert "in use by killed" in done.stderr, "an adopted VM still has its volume"
        os.kill(own.inspect("killed")["vm"]["pid"], 9)
        wait_for(lambda: own.inspect("killed")["state"] == "exited", "the kill is seen")
        refused = own.hyper("run", "--rm", "-v", "a:/a:ro", images.busybox, "true", check=False)
        assert "not unmounted" in refused.stderr
        own.hyper("run", "--rm", "-v", "a:/a", images.busybox, "true")
        own.hyper("run", "--rm", "-v", "a:/a:ro", images.busybox, "true")
    finally:
        own.close()


def test_files_are_copied_both_ways(disks: Host, images: Images, tmp_path: Path) -> None:
    tree = tmp_path / "my tree"
    (tree / "sub dir").mkdir(parents=True)
    (tree / "sub dir" / "ü file").write_bytes(os.urandom(300_000))
    (tree / "exec").write_text("#!/bin/sh\n")
    (tree / "exec").chmod(0o755)
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "hard").hardlink_to(tree / "exec")
    os.chown(tree / "exec", 1234, 1235)
    disks.run("--name", "box", images.busybox, "sleep", "600")
    disks.hyper("cp", str(tree), "box:/new")
    told = disks.hyper(
        "exec", "box", "sh", "-c", "cd /new; stat -c '%n %a %u %h' exec; readlink link; ls; id -u"
    ).stdout
    assert told.splitlines() == ["exec 755 0 2", "/etc/passwd", "exec", "hard", "link", "sub dir", "0"]
    disks.hyper("cp", "-a", f"{tree}/.", "box:/new")
    assert disks.hyper("exec", "box", "stat", "-c", "%u %g", "/new/exec").stdout == "1234 1235\n"
    back = tmp_path / "back"
    disks.hyper("cp", "box:/new", str(back))
    assert subprocess.run(["diff", "-r", "--no-dereference", tree, back], check=False).returncode == 0
    assert (back / "exec").stat().st_uid == os.getuid()
    assert (back / "exec").stat().st_nlink == 2
    disks.hyper("cp", "box:/new/exec", str(back))
    disks.hyper("cp", str(tree / "exec"), "box:/etc/renamed")
    assert disks.hyper("exec", "box", "cat", "/etc/renamed").stdout == "#!/bin/sh\n"
    streamed = subprocess.run(
        [disks.hyper_program, "cp", "box:/etc/passwd", "-"],
        env={**os.environ, **disks.env},
        capture_output=True,
        check=True,
    )
    disks.hyper("cp", "-", "box:/tmp", stdin=streamed.stdout)
    same = "cmp /etc/passwd /tmp/passwd && echo same"
    assert disks.hyper("exec", "box", "sh", "-c", same).stdout == "same\n"
    disks.hyper("stop", "-t", "0", "box")
    disks.hyper("cp", str(tree / "exec"), "box:/root/late")
    disks.hyper("cp", "box:/root/late", str(tmp_path / "late"))
    assert (tmp_path / "late").read_text() == "#!/bin/sh\n"
    assert disks.inspect("box")["state"] == "exited"
    for source, target in (
        ("box:/nowhere", str(tmp_path)),
        (str(tree), str(back)),
        ("/nowhere", "box:/x"),
        (str(tree), "box:/etc/passwd"),
        ("box:/etc/passwd", f"{tmp_path}/no/such/place"),
        ("box:/a", "box:/b"),
    ):
        done = disks.hyper("cp", source, target, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), (source, target, done.stderr)
    disks.hyper("start", "box")
    assert disks.hyper("exec", "box", "cat", "/root/late").stdout == "#!/bin/sh\n"


def test_copies_that_are_broken_off_leave_nothing(disks: Host, images: Images) -> None:
    client = Client(str(disks.state_dir / "hyperd.sock"))
    logged = disks.hyperd.log.stat().st_size
    box = disks.run("--name", "box", images.busybox, "sh", "-c", "head -c 64000000 /dev/zero > /big; exec sleep 600")
    file = tarfile.TarInfo("half")
    file.size = 1 << 20

    def half() -> Iterator[bytes]:
        yield file.tobuf()
        yield bytes(4096)
        raise InterruptedError(4, "the user breaks it off")

    for _ in range(SESSIONS + 1):  # each of which would be one that the guest has not any more
        with pytest.raises(ClientError, match="the input: the user breaks it off"):
            client.call("PUT", "/v1/containers/box/archive?path=/tmp", Chunks(half()))
    wait_for(lambda: client.call("GET", "/v1/streams")["sessions"] == 0, "no session is open")
    done = disks.hyper("exec", "box", "sh", "-c", "until [ $(stat -c %s /big) = 64000000 ]; do usleep 50000; done; ps")
    assert "sleep 600" in done.stdout
    disks.hyper("stop", "-t", "0", "box")
    pieces = client.stream("GET", "/v1/containers/box/archive?path=/big")
    assert next(pieces)
    assert groups(f"files-{box}")
    pieces.close()  # type: ignore[attr-defined]  # a generator
    wait_for(lambda: not groups(f"files-{box}"), "the VM for its files is gone, with its groups")
    disks.hyper("start", "box")
    assert "Traceback" not in disks.hyperd.log.read_text()[logged:]


def test_a_container_cannot_write_outside_the_place_that_was_named(disks: Host, images: Images, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    script = "mkdir -p /w; ln -s $0 /w/door; mkfifo /w/pipe; touch /w/plain; chmod 6777 /w/plain; sleep 600"
    disks.run("--name", "evil", images.busybox, "sh", "-c", script, str(outside))
    target = tmp_path / "target"
    wait_for(lambda: disks.hyper("exec", "evil", "test", "-e", "/w/plain", check=False).returncode == 0, "it is there")
    done = disks.hyper("cp", "evil:/w", str(target))
    assert "pipe is left out" in done.stderr
    assert (target / "plain").stat().st_mode & 0o7777 == 0o777, "no set-user-id from a container"
    assert (target / "door").is_symlink()
    disks.hyper("exec", "evil", "sh", "-c", "rm /w/door; mkdir /w/door; echo x > /w/door/planted")
    done = disks.hyper("cp", "evil:/w/.", str(target), check=False)
    assert list(outside.iterdir()) == []
    assert not (outside / "planted").exists()


def test_what_changed_and_an_image_of_it(disks: Host, images: Images) -> None:
    script = (
        "rm /etc/group; mkdir /made; echo hello > /made/f; chmod 4755 /made/f; echo in > /v/f; echo ready; sleep 600"
    )
    disks.run("--name", "does", "-e", "OWN=1", "-w", "/etc", "-v", "data:/v", images.busybox, "sh", "-c", script)
    wait_for(lambda: disks.hyper("logs", "does").stdout == "ready\n", "the changes")
    lines = ["C /etc", "D /etc/group", "A /made", "A /made/f"]
    assert disks.hyper("diff", "does").stdout.splitlines() == lines
    change = ["-c", 'CMD ["cat", "/made/f"]', "-c", "ENV COLOR=red", "-c", "LABEL team=shop"]
    digest = disks.hyper("commit", "-m", "why", "-a", "me", *change, "does", "made:1").stdout.strip()
    assert digest.startswith("sha256:")
    done = disks.hyper("run", "--name", "labelled", "--label", "own=x", "made:1")
    assert done.stdout == "hello\n"
    assert disks.inspect("labelled")["labels"] == {"team": "shop", "own": "x"}
    disks.hyper("rm", "labelled")
    look = "ls /v; stat -c %a /made/f; test -e /etc/group || echo gone; echo $COLOR"
    assert disks.hyper("run", "--rm", "made:1", "sh", "-c", look).stdout.split() == ["4755", "gone", "red"]
    asked = ("sh", "-c", "echo ${COLOR-none} ${OWN-none}")
    assert disks.hyper("run", "--rm", "-e", "COLOR", "made:1", *asked).stdout == "none 1\n"
    assert disks.hyper("exec", "-e", "OWN", "does", *asked).stdout == "none none\n"
    assert disks.hyper("exec", "does", "sh", "-c", "echo goes > /on; cat /on").stdout == "goes\n"
    assert json.loads(disks.hyper("inspect", "made:1").stdout)[0]["config"]["Labels"]["team"] == "shop"
    disks.hyper("stop", "-t", "0", "does")
    assert disks.hyper("diff", "does").stdout.splitlines() == [*lines, "A /on"]
    second = disks.hyper("commit", "does", "made:2").stdout.strip()
    assert second != digest
    config = json.loads(disks.hyper("inspect", "made:2").stdout)[0]["config"]
    assert (config["Cmd"], config["WorkingDir"], "OWN=1" in config["Env"]) == (["sh", "-c", script], "/etc", True)
    for command in (
        ("commit", "nosuch"),
        ("commit", "does", "No/Such:Name:x"),
        ("commit", "-c", "RUN x", "does"),
        ("diff", "nosuch"),
    ):
        refused = disks.hyper(*command, check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (125, 1), (command, refused.stderr)
    disks.hyper("rmi", "made:1", "made:2")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "40m", lazy=True) as place:
        yield place


async def test_a_full_disk_leaves_nothing_half_made(small: Path) -> None:
    volumes = Volumes(small, 64 << 20, list)
    await volumes.create("data")
    with volumes.file("data").open("r+b") as file:
        file.seek(30 << 20)
        file.write(os.urandom(20 << 20))
    with pytest.raises(DiskFull, match="free some"):
        await volumes.take_snapshot("data", "then")
    (small / "fills").write_bytes(bytes(shutil.disk_usage(small).free))
    with pytest.raises((DiskFull, HostUnable)):
        await volumes.create("more")
    assert [one.name for one in volumes.all()] == ["data"]
    assert volumes.snapshots() == []
    assert sorted(path.name for path in small.glob("*/*")) == ["data"]
    volumes.close()


def test_a_pool_vm_takes_volumes(images: Images) -> None:
    own = Host(accel="tcg", pool_depth=1)
    try:
        own.start()
        own.hyper("pull", images.busybox)

        def waits() -> bool:
            return int(json.loads(own.hyper("info", "--format", "json").stdout)["pool_waiting"]) > 0

        wait_for(waits, "a clone waits", 60)
        script = "echo one > /a/f; echo two > /b/f; sleep 600"
        own.run("--name", "first", "-v", "a:/a", "-v", "b:/b", images.busybox, "sh", "-c", script)
        assert own.inspect("first")["vm"]["start_path"] == "pool"
        wait_for(lambda: own.hyper("exec", "first", "cat", "/b/f").stdout == "two\n", "it writes")
        own.hyper("snapshot", "create", "--volume", "b", "then")
        own.hyper("rm", "-f", "first")
        own.run("--name", "second", "-v", "a:/a:ro", images.busybox, "sleep", "600")
        vm = own.inspect("second")["vm"]
        assert (vm["start_path"], "read-only volume" in vm["start_path_reason"]) == ("template", True)
        assert own.hyper("exec", "second", "cat", "/a/f").stdout == "one\n"
    finally:
        own.close()
