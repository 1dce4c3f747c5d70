from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from runtime import command
from runtime.errors import HostUnable


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def wait_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while not gone(pid):  # noqa: ASYNC110 -- another process: there is no event
            await asyncio.sleep(0.01)


async def test_result() -> None:
    done = await command.run(["sh", "-c", "echo out; echo first >&2; echo last >&2; exit 3"], timeout_s=10)
    assert (done.returncode, done.stdout, done.stderr, done.last_line) == (3, b"out\n", "first\nlast\n", "last")
    quiet = await command.run(["sh", "-c", "exit 4"], timeout_s=10)
    assert quiet.last_line == "sh ended with 4 and said nothing"
    killed = await command.run(["sh", "-c", "kill -9 $$"], timeout_s=10)
    assert killed.returncode == -9


async def test_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DEBIAN_PACKAGES", {"no-such-program": "its-package"})
    with pytest.raises(HostUnable, match="apt-get install its-package"):
        await command.run(["no-such-program"], timeout_s=1)


async def test_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        await command.run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], timeout_s=0.5)
    await wait_gone(int((tmp_path / "pid").read_text()))


async def test_cancellation_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(command.run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], timeout_s=60))
    async with asyncio.timeout(10):
        while not pid_file.exists() or not pid_file.read_text().strip():  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_gone(int(pid_file.read_text()))


async def test_output_is_bounded() -> None:
    with pytest.raises(command.OutputTooLarge):
        await command.run(["cat", "/dev/zero"], timeout_s=30, stdout_limit_bytes=1 << 20)
    done = await command.run(["sh", "-c", "head -c 1000000 /dev/zero >&2; echo end >&2"], timeout_s=30)
    assert len(done.stderr) == command.STDERR_KEPT_BYTES
    assert done.stderr.endswith("end\n")


async def test_limits() -> None:
    done = await command.run(
        ["sh", "-c", "ulimit -v; ulimit -f"], timeout_s=10, memory_limit_bytes=1 << 30, file_limit_bytes=1 << 20
    )
    assert done.stdout.split() == [b"1048576", b"2048"]  # KiB, and blocks of 512 bytes


async def test_stdin_is_empty_and_the_environment_ours() -> None:
    done = await command.run(["sh", "-c", "cat; echo $A $HOME"], timeout_s=10, env={"A": "1"})
    assert done.stdout.decode().split() == ["1", os.environ.get("HOME", "")]
