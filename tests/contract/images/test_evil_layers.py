"""Layers that try to leave their root, on the real umoci: refused, or confined; never a file outside."""

from __future__ import annotations

import gzip
import tarfile
from typing import TYPE_CHECKING

import pytest

from runtime.errors import BadLayer
from tests.contract.images.conftest import leftovers, processes_below
from tests.contract.images.layouts import busybox_root, entry, layer

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.images import ImageStore
    from tests.contract.images.conftest import TestRegistry

UP = "../" * 24
LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


def refused(outside: str) -> dict[str, list[bytes]]:
    below = outside.lstrip("/")
    return {
        "dotdot": [layer(entry(f"{UP}{below}/escaped", data=b"x"))],
        "inner-dotdot": [layer(entry(f"a/{UP}{below}/escaped", data=b"x"))],
        "hard-link": [layer(entry("h", HARD, linkname=f"{UP}{below}/secret"))],
        "hard-link-absolute": [layer(entry("h", HARD, linkname=f"{outside}/secret"))],
        "hard-link-through-link": [
            layer(entry("s", LINK, linkname=outside)),
            layer(entry("h", HARD, linkname="s/secret")),
        ],
        "hard-link-then-write": [layer(entry("h", HARD, linkname=f"{UP}{below}/secret"), entry("h", data=b"owned"))],
        "whiteout-dotdot": [layer(entry(f"{UP}{below}/.wh.secret"))],
        "whiteout-of-parent": [layer(entry(".wh..."))],
        "whiteout-of-self": [layer(entry(".wh.."))],
        "root-is-link": [layer(entry(".", LINK, linkname=outside), entry("escaped", data=b"x"))],
        "root-is-file": [layer(entry("/", data=b"x"))],
    }


def confined(outside: str) -> dict[str, list[bytes]]:
    below = outside.lstrip("/")
    return {
        "absolute": [layer(entry(f"{outside}/escaped", data=b"x"))],
        "link-then-write": [layer(entry("s", LINK, linkname=outside), entry("s/escaped", data=b"x"))],
        "relative-link-then-write": [layer(entry("s", LINK, linkname=UP + below), entry("s/escaped", data=b"x"))],
        "link-in-lower-layer": [layer(entry("s", LINK, linkname=outside)), layer(entry("s/escaped", data=b"x"))],
        "file-over-link": [layer(entry("f", LINK, linkname=f"{outside}/secret")), layer(entry("f", data=b"owned"))],
        "whiteout-through-link": [layer(entry("s", LINK, linkname=outside)), layer(entry("s/.wh.secret"))],
        "opaque-through-link": [layer(entry("s", LINK, linkname=outside)), layer(entry("s/.wh..wh..opq"))],
        "directory-over-link": [
            layer(entry("s", LINK, linkname=outside)),
            layer(entry("s", tarfile.DIRTYPE, mode=0o777)),
        ],
    }


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir(mode=0o700)
    (path / "secret").write_text("secret")
    return path


def assert_untouched(outside: Path) -> None:
    assert [one.name for one in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (outside / "secret").stat().st_nlink == 1
    assert outside.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", sorted(refused("/x")))
async def test_refused(registry: TestRegistry, store: ImageStore, data_dir: Path, outside: Path, kind: str) -> None:
    registry.push(f"evil/{kind}:1", refused(str(outside))[kind])
    with pytest.raises(BadLayer) as caught:
        await store.pull(f"{registry.host}/evil/{kind}:1")
    assert "\n" not in str(caught.value)
    assert_untouched(outside)
    assert leftovers(data_dir) == []
    assert processes_below(data_dir) == []
    assert await store.list() == ()


@pytest.mark.parametrize("kind", sorted(confined("/x")))
async def test_confined(registry: TestRegistry, store: ImageStore, data_dir: Path, outside: Path, kind: str) -> None:
    registry.push(f"evil/{kind}:1", confined(str(outside))[kind])
    image = await store.pull(f"{registry.host}/evil/{kind}:1")
    assert image.file.is_file()
    assert_untouched(outside)
    assert leftovers(data_dir) == []


def _huge_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.pax_headers = {"comment": "a" * (2 << 20)}
    return layer((info, b""))


BROKEN = {
    "not-gzip": b"\x1f\x8b" + b"garbage" * 100,
    "not-tar": gzip.compress(b"garbage" * 1000),
    "cut-gzip": gzip.compress(layer(*busybox_root()))[:-5000],
    "cut-tar": gzip.compress(layer(*busybox_root())[:100_000]),
    "huge-header": gzip.compress(_huge_header()),
    "wrong-diff-id": gzip.compress(layer(entry("other", data=b"x"))),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(50),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
async def test_broken(registry: TestRegistry, store: ImageStore, data_dir: Path, kind: str) -> None:
    registry.push(f"broken/{kind}:1", [BROKEN[kind]], raw_layers=True)
    with pytest.raises(BadLayer) as caught:
        await store.pull(f"{registry.host}/broken/{kind}:1")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert leftovers(data_dir) == []
