"""Which QEMU to run."""

from __future__ import annotations

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
    directory = config.data_dir / "qemu"
    built = [path for path in directory.glob(f"[!.]*/bin/{PROGRAM}") if path.is_file()]
    if built:
        return str(max(built, key=lambda path: path.stat().st_mtime)), f"built by 'make qemu', in {directory}"
    return command.find(PROGRAM), "the distribution's; 'make qemu' builds one that takes less memory"


async def version(program: str) -> str:
    """What it says of its version.

    Raises:
        HostUnable: it does not run.
    """
    finished = await command.run([program, "--version"], timeout_s=10)
    first_line = finished.stdout.decode(errors="replace").partition("\n")[0]
    if finished.returncode != 0 or not first_line:
        raise HostUnable(f"{program} does not run: {finished.last_line}", field="qemu")
    return first_line.removeprefix("QEMU emulator version ")
