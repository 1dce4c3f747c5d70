"""Which QEMU to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import HostUnable

if TYPE_CHECKING:
    from runtime.config import Config

PROGRAM = "qemu-system-x86_64"


def find(config: Config) -> tuple[str, str]:
    """The configured program, else the newest that `make qemu` built, else the distribution's; and why this one.

    Raises:
        HostUnable: it is not on this host.
    """
    if config.qemu:
        return command.find(config.qemu), "named by the setting 'qemu' (HYPER_QEMU)"
    built = [path for path in config.qemu_dir.glob(f"[!.]*/bin/{PROGRAM}") if path.is_file()]
    if built:
        return str(max(built, key=lambda path: path.stat().st_mtime)), f"built by 'make qemu', in {config.qemu_dir}"
    return command.find(PROGRAM), "the distribution's; 'make qemu' builds one that takes less memory"


async def version(program: str, memory: Path, uid: int) -> str:
    """What it says of its version; remembered in `memory` for as long as the program stays the same file.

    It is asked as the user `uid`: whatever only root can reach is of no use to a VM.

    Raises:
        HostUnable: it does not run.
    """
    status = Path(program).stat()
    key = [program, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    try:
        remembered = json.loads(memory.read_text())
        if remembered["key"] == key:
            return str(remembered["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or of another version: ask again
    found = await _ask(program, uid)
    temporary = memory.with_suffix(".new")
    temporary.write_text(json.dumps({"key": key, "version": found}))
    temporary.replace(memory)
    return found


async def _ask(program: str, uid: int) -> str:
    as_user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    finished = await command.run([*as_user, program, "--version"], timeout_s=10)
    first_line = finished.stdout.decode(errors="replace").partition("\n")[0]
    if finished.returncode != 0 or not first_line:
        why = f"it must run as user {uid}, without rights to directories of root alone: {finished.last_line}"
        raise HostUnable(f"{program} does not run; {why}", field="qemu")
    return first_line.removeprefix("QEMU emulator version ")
