from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.images import layers

if TYPE_CHECKING:
    from pathlib import Path


def archive(*names: str, size: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("a/b", True),
        ("./a", True),
        ("/a", True),
        ("a/..", True),
        ("a/../b", True),
        ("..", False),
        ("a/../..", False),
        ("a/../../a/b", False),
        ("/../a", False),
        ("..a", True),
        ("a//..//..", False),
        ("", True),
    ],
)
def test_inside(name: str, stays: bool) -> None:
    assert layers.inside(name) is stays


def test_adds_up_all_layers(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(gzip.compress(archive("a", "b", size=10)))
    (tmp_path / "2").write_bytes(archive("c", size=5))
    assert layers.scan([tmp_path / "1", tmp_path / "2"], 100, 10) == {"bytes": 25, "entries": 3}
    assert "24 bytes" in str(layers.scan([tmp_path / "1", tmp_path / "2"], 24, 10)["error"])
    assert layers.scan([tmp_path / "1", tmp_path / "2"], 24, 10)["layer"] == "sha256:2"
    assert "2 entries" in str(layers.scan([tmp_path / "1", tmp_path / "2"], 100, 2)["error"])


def test_sparse_files_count_as_what_they_become(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": "1099511627776",
    }
    data = b"1\n1099511627775\n1\n".ljust(512, b"\0") + b"x"
    info.size = len(data)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    (tmp_path / "1").write_bytes(out.getvalue())
    assert "more than 1000000 bytes" in str(layers.scan([tmp_path / "1"], 1_000_000, 10)["error"])


def test_what_stands_behind_the_archive_counts(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(gzip.compress(archive("a") + bytes(100 << 20)))
    assert "unpacks to more than" in str(layers.scan([tmp_path / "1"], 1 << 20, 10)["error"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=3000), position=st.integers(0, 3000), packed=st.booleans())
def test_any_bytes_end_in_an_answer(tmp_path: Path, data: bytes, position: int, packed: bool) -> None:
    whole = archive("a", "b/c", size=700)
    damaged = whole[:position] + data + whole[position + len(data) :]
    (tmp_path / "1").write_bytes(gzip.compress(damaged, 1) if packed else damaged)
    answer = layers.scan([tmp_path / "1"], 1 << 20, 100)
    assert set(answer) in ({"bytes", "entries"}, {"error", "layer"})
