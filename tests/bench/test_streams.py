"""How fast streams are, in MB/s: output of `run`, `logs`, `exec`, and stdin. 100 MB each, every byte counted."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Images
    from tests.host import Host

SIZE = 100_000_000
GROWTH_BYTES = 32 << 20


def through(host: Host, *arguments: str, data: bytes = b"") -> tuple[float, int, str]:
    """Seconds, bytes and digest of what a `hyper` writes."""
    began = time.monotonic()
    digest, count = hashlib.sha256(), 0
    with subprocess.Popen(
        [host.hyper_program, *arguments], env={**os.environ, **host.env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if data:
            process.stdin.write(data)
        process.stdin.close()
        while piece := process.stdout.read(1 << 20):
            digest.update(piece)
            count += len(piece)
        assert process.wait() == 0
    return time.monotonic() - began, count, digest.hexdigest()


@pytest.mark.timeout(300)
def test_throughput(host: Host, images: Images) -> None:
    make = f"dd if=/dev/zero bs=100000 count={SIZE // 100_000} 2>/dev/null"
    expected = hashlib.sha256(bytes(SIZE)).hexdigest()
    host.run("--name", "box", images.busybox, "sleep", "600")
    before = psutil.Process(host.hyperd.pid).memory_info().rss
    print(f"\n{SIZE / 1e6:.0f} MB each, TCG, MB/s")
    began = time.monotonic()
    host.hyper("exec", "box", "sh", "-c", f"{make} | cat > /dev/null")
    print(f"{'in the guest':>12}  {SIZE / (time.monotonic() - began) / 1e6:7.1f}  (the same through a pipe to cat)")
    for name, arguments in (
        ("run", ("run", "--name", "wrote", images.busybox, "sh", "-c", make)),
        ("logs", ("logs", "wrote")),
        ("exec", ("exec", "box", "sh", "-c", make)),
    ):
        seconds, count, digest = through(host, *arguments)
        print(f"{name:>12}  {count / seconds / 1e6:7.1f}")
        assert (count, digest) == (SIZE, expected), name
    lines = SIZE // 20
    seconds, count, _ = through(host, "exec", "box", "sh", "-c", f"yes | head -c {lines}")
    print(f"{'exec, yes':>12}  {count / seconds / 1e6:7.1f}")
    assert count == lines
    seconds, _, _ = through(host, "exec", "-i", "box", "sh", "-c", "cat > /dev/null", data=bytes(SIZE))
    print(f"{'exec stdin':>12}  {SIZE / seconds / 1e6:7.1f}")
    growth = psutil.Process(host.hyperd.pid).memory_info().rss - before
    print(f"hyperd's memory grew by {growth / 1e6:.1f} MB")
    assert growth < GROWTH_BYTES
