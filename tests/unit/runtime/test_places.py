"""What an image is given so that no start has to make it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runtime.images.build import make_places

FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")


def test_what_is_missing_is_made(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        make_places(tmp_path)
    finally:
        os.umask(before)
    for name in ("dev", "etc", "proc", "sys"):
        assert stat.filemode((tmp_path / name).lstat().st_mode) == "drwxr-xr-x"
    for name in FILES:
        assert stat.filemode((tmp_path / name).lstat().st_mode) == "-rw-r--r--"
        assert (tmp_path / name).read_bytes() == b""


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir(mode=0o700)
    (etc / "hosts").write_text("1.2.3.4 mine\n")
    (etc / "resolv.conf").symlink_to("../run/nowhere")
    (tmp_path / "dev").symlink_to("etc")
    for path in (etc, tmp_path):
        os.utime(path, ns=(1_000_000_007, 2_000_000_009))
    make_places(tmp_path)
    assert (etc / "hosts").read_text() == "1.2.3.4 mine\n"
    assert (etc / "resolv.conf").readlink() == Path("../run/nowhere")
    assert (tmp_path / "dev").readlink() == Path("etc")
    assert (etc / "hostname").is_file()
    assert stat.S_IMODE(etc.stat().st_mode) == 0o700
    assert etc.stat().st_mtime_ns == tmp_path.stat().st_mtime_ns == 2_000_000_009


@pytest.mark.parametrize("what", ["link", "file"])
def test_nothing_is_made_outside_of_it(tmp_path: Path, what: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    if what == "link":
        (root / "etc").symlink_to(outside)
    else:
        (root / "etc").write_text("")
    make_places(root)
    assert list(outside.iterdir()) == []
