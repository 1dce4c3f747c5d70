from __future__ import annotations

import gzip
import hashlib
import io
import random
import subprocess
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


def blob(directory: Path, content: bytes) -> Path:
    path = directory / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return path


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
    packed = blob(tmp_path, gzip.compress(archive("a", "b", size=10)))
    plain = blob(tmp_path, archive("c", size=5))
    small = subprocess.run(["zstd", "-c"], input=archive("d", size=7), capture_output=True, check=True)
    small_blob = blob(tmp_path, small.stdout)
    blobs = [packed, plain, small_blob]
    assert layers.scan(blobs, 100, 10) == {"bytes": 32, "entries": 4, "compressions": ["gzip", "none", "zstd"]}
    assert "31 bytes" in str(layers.scan(blobs, 31, 10)["error"])
    assert layers.scan(blobs, 31, 10)["layer"] == f"sha256:{small_blob.name}"
    assert "3 entries" in str(layers.scan(blobs, 100, 3)["error"])


def test_a_damaged_or_lost_layer(tmp_path: Path) -> None:
    one = blob(tmp_path, archive("a"))
    one.write_bytes(archive("b"))
    assert layers.scan([one], 100, 10)["is_damaged"] is True
    assert "is missing" in str(layers.scan([tmp_path / "lost"], 100, 10)["error"])


@pytest.mark.parametrize("size", [20, 60, 3000])
def test_a_cut_zstd_layer(tmp_path: Path, size: int) -> None:
    content = archive("a") + random.Random(1).randbytes(10_000)
    packed = subprocess.run(["zstd", "-c"], input=content, capture_output=True, check=True).stdout
    assert "is not a whole tar archive" in str(layers.scan([blob(tmp_path, packed[:size])], 1 << 20, 1000)["error"])


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
    assert "more than 1000000 bytes" in str(layers.scan([blob(tmp_path, out.getvalue())], 1_000_000, 10)["error"])


def test_what_stands_behind_the_archive_counts(tmp_path: Path) -> None:
    bomb = blob(tmp_path, gzip.compress(archive("a") + bytes(100 << 20)))
    assert "unpacks to more than" in str(layers.scan([bomb], 1 << 20, 10)["error"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000), position=st.integers(0, 3000), packed=st.booleans())
def test_any_bytes_end_in_an_answer(tmp_path: Path, data: bytes, position: int, packed: bool) -> None:
    whole = archive("a", "b/c", size=700)
    damaged = whole[:position] + data + whole[position + len(data) :]
    one = blob(tmp_path, gzip.compress(damaged, 1) if packed else damaged)
    answer = layers.scan([one], 1 << 20, 100)
    one.unlink()
    assert set(answer) in ({"bytes", "entries", "compressions"}, {"error", "layer", "is_damaged"})
    assert answer.get("is_damaged") is not True
