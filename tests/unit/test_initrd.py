"""The initramfs: what is in the archive, in which order modules come, and what is said of a kernel that lacks some."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.vm import initrd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def module(depends: str = "", softdep: str = "") -> bytes:
    """A 64-bit ELF file with the two sections that matter."""
    info = b"license=GPL\0" + f"depends={depends}\0".encode()
    if softdep:
        info += f"softdep={softdep}\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = b"\0" * 64
    for name, offset, size in ((1, 64, len(info)), (10, 64 + len(info), len(names))):
        sections += struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
    return header + info + names + sections


def entries(archive: bytes) -> Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    """Name, mode, content and device number of every file, read by the format's description."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        mode, size, major, minor, length = numbers[1], numbers[6], numbers[9], numbers[10], numbers[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at = (at + 110 + length + 3) & ~3
        data = archive[at : at + size]
        at = (at + size + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(archive)
            return
        yield name, mode, data, (major, minor)


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "init"
    path.write_bytes(b"\x7fELF program")
    return path


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    root = tmp_path / "modules"
    drivers = root / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (drivers / "virtio_ring.ko").write_bytes(module())
    (drivers / "virtio.ko").write_bytes(module("virtio_ring"))
    (drivers / "virtio_mmio.ko").write_bytes(module("virtio_ring,virtio"))
    (drivers / "virtio-rng.ko.xz").write_bytes(lzma.compress(module("virtio")))
    (drivers / "crc.ko").write_bytes(module())
    (drivers / "libcrc.ko").write_bytes(module("", "pre: crc absent post: virtio"))
    (root / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/lib/rng-core.ko\n")
    return root


def order(path: Path) -> list[str]:
    files = {name: data for name, _, data, _ in entries(path.read_bytes())}
    listed = files["modules/order"].decode().split()
    assert {f"modules/{name}" for name in listed} == {name for name in files if name.endswith(".ko")}
    return listed


def test_modules_come_after_what_they_need(init: Path, modules: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = initrd.build(init, modules, out, wanted=["virtio_rng", "virtio_mmio", "libcrc"])
    assert made.modules == ("virtio_ring", "virtio", "virtio_rng", "virtio_mmio", "crc", "libcrc")
    assert order(out) == [f"{name}.ko" for name in made.modules]
    content = {name: data for name, _, data, _ in entries(out.read_bytes())}
    assert content["modules/virtio_rng.ko"] == module("virtio")  # decompressed


def test_what_a_kernel_has_built_in_or_lacks_is_told_apart(init: Path, modules: Path, tmp_path: Path) -> None:
    made = initrd.build(init, modules, tmp_path / "out", wanted=["ext4", "rng_core", "erofs", "virtio-mmio"])
    assert (made.builtin, made.missing) == (("ext4", "rng_core"), ("erofs",))
    assert made.modules == ("virtio_ring", "virtio", "virtio_mmio")


def test_a_kernel_without_modules_gets_an_init_alone(init: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = initrd.build(init, None, out, wanted=["ext4"])
    assert (made.modules, made.missing) == ((), ("ext4",))
    files = {name: (mode, data, device) for name, mode, data, device in entries(out.read_bytes())}
    assert files["init"] == (0o100755, b"\x7fELF program", (0, 0))
    assert files["dev/console"] == (0o020600, b"", (5, 1))
    assert files["proc"][0] == 0o040755
    assert "modules/order" not in files


def test_cpio_reads_the_archive(init: Path, modules: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    initrd.build(init, modules, out, wanted=["virtio_mmio"])
    done = subprocess.run(["busybox", "cpio", "-t"], input=out.read_bytes(), capture_output=True, check=True)
    assert done.stdout.decode().split() == [name for name, _, _, _ in entries(out.read_bytes())]


def test_equal_input_gives_an_equal_archive(init: Path, modules: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        initrd.build(init, modules, tmp_path / name, wanted=["virtio_mmio"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_archive_that_is_there_is_left_and_another_replaced(init: Path, modules: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    initrd.build(init, modules, out, wanted=["virtio_mmio"])
    inode = out.stat().st_ino
    initrd.build(init, modules, out, wanted=["virtio_mmio"])
    assert out.stat().st_ino == inode
    whole = out.read_bytes()
    out.write_bytes(whole[:-1])
    initrd.build(init, modules, out, wanted=["virtio_mmio"])
    assert out.read_bytes() == whole


def test_zstd_modules_are_unpacked_by_zstd(
    init: Path, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = modules / "kernel" / "overlay.ko.zst"
    if shutil.which("zstd"):
        place.write_bytes(subprocess.run(["zstd", "-cq"], input=module(), capture_output=True, check=True).stdout)
        assert initrd.build(init, modules, tmp_path / "out", wanted=["overlay"]).modules == ("overlay",)
        place.write_bytes(b"not zstd")
        with pytest.raises(initrd.InitrdError, match="zstd failed"):
            initrd.build(init, modules, tmp_path / "out", wanted=["overlay"])
    place.write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(initrd.InitrdError, match="install it"):
        initrd.build(init, modules, tmp_path / "out", wanted=["overlay"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"overlay\.ko: .*not a 64-bit"),
        (b"\x7fELF\x01\x01" + b"\0" * 100, r"overlay\.ko: .*not a 64-bit"),
        (module()[:70], r"overlay\.ko: .*cut short"),
        (module().replace(b".modinfo", b".nothing"), r"overlay\.ko: .*no section"),
        (module("gone"), "needs the module gone"),
    ],
)
def test_a_broken_module_is_named_and_the_old_archive_stays(
    init: Path, modules: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    (modules / "kernel" / "overlay.ko").write_bytes(content)
    with pytest.raises(initrd.InitrdError, match=message):
        initrd.build(init, modules, out, wanted=["overlay"])
    assert out.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"init", "modules", "out"}


def test_a_damaged_xz_file_is_named(init: Path, modules: Path, tmp_path: Path) -> None:
    (modules / "kernel" / "overlay.ko.xz").write_bytes(lzma.compress(module())[:-20])
    with pytest.raises(initrd.InitrdError, match=r"overlay\.ko\.xz"):
        initrd.build(init, modules, tmp_path / "out", wanted=["overlay"])


def test_what_is_not_there_is_named(modules: Path, init: Path, tmp_path: Path) -> None:
    with pytest.raises(initrd.InitrdError, match="cannot read the guest init"):
        initrd.build(tmp_path / "none", modules, tmp_path / "out", wanted=[])
    with pytest.raises(initrd.InitrdError, match="no such directory"):
        initrd.build(init, tmp_path / "none", tmp_path / "out", wanted=[])


def test_soft_dependencies_may_go_in_circles(init: Path, modules: Path, tmp_path: Path) -> None:
    (modules / "kernel" / "one.ko").write_bytes(module("", "pre: two"))
    (modules / "kernel" / "two.ko").write_bytes(module("", "pre: one"))
    made = initrd.build(init, modules, tmp_path / "out", wanted=["one"])
    assert set(made.modules) == {"one", "two"}
