"""Templates: one booted, agent-ready guest a shape, whose memory is shared copy-on-write by all its clones.

Memory is served from a sealed memfd: no guest, and no process at all, can change it. A copy on disk brings it back
after a restart of the daemon. A template is found by a digest of all that shaped it, so a stale one is never used.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import mmap
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from runtime import cgroups, sparse
from runtime.errors import GuestFailed, RuntimeFault
from runtime.network import links
from runtime.vm import launch, machine, monitor
from runtime.vm.launch import Host, Order, Template
from runtime.vm.monitor import Command

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.cgroups import HostCgroups
    from runtime.vm.machine import Shape
    from runtime.vm.monitor import Monitor

log = logging.getLogger(__name__)

_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TSC_TOLERANCE = 1e-4  # a template of another boot of the host is good if its clock rate is within this
_SAVE_TIMEOUT_S = 30.0
_RETRY_S = 60.0  # what failed may have been the moment's: a full disk, a QEMU that was killed
_CHUNK_BYTES = 16 * 4096


@dataclass(frozen=True, slots=True)
class _Provided:
    """A template on its way; `looked` is set once it is loaded, or known not to be on disk."""

    task: asyncio.Task[None]
    looked: asyncio.Event


class Templates:
    """The templates of one host: loaded, built on first use, and closed at the end."""

    def __init__(self, directory: Path, host: Host, uid: int, host_cgroups: HostCgroups) -> None:
        self._directory = directory
        self._host = host
        self._uid = uid
        self._host_cgroups = host_cgroups
        self._ready: dict[str, Template] = {}
        self._failed: dict[str, tuple[str, float]] = {}  # why, and when to try again (monotonic)
        self._provided: dict[str, _Provided] = {}
        self._one_at_a_time = asyncio.Lock()

    def prepare(self, shape: Shape) -> None:
        """Begin to load or build the template of a shape, unless it is there, begun, or has just failed."""
        key = self.key(shape)
        _, retry_at = self._failed.get(key, ("", 0.0))
        if key not in self._ready and key not in self._provided and time.monotonic() >= retry_at:
            looked = asyncio.Event()
            task = asyncio.create_task(self._provide(key, shape, looked), name=f"template {key}")
            self._provided[key] = _Provided(task, looked)

    async def get(self, shape: Shape) -> tuple[Template | None, str | None]:
        """The template of a shape, or None and the reason why there is none; waits for one to be loaded, not built."""
        self.prepare(shape)
        key = self.key(shape)
        if key in self._provided:
            await self._provided[key].looked.wait()
        if key in self._ready:
            return self._ready[key], None
        if key in self._provided:
            return None, "template is being built"
        return None, f"template failed: {self._failed.get(key, ('the daemon ends', 0.0))[0]}"

    async def settled(self, shape: Shape) -> Template:
        """The template of a shape, waiting until it is built.

        Raises:
            GuestFailed: it cannot be built; the message says why.
        """
        self.prepare(shape)
        provided = self._provided.get(self.key(shape))
        if provided is not None:
            await asyncio.shield(provided.task)
        template, reason = await self.get(shape)
        if template is None:
            raise GuestFailed(reason or "no template")
        return template

    def ready(self) -> list[Template]:
        """The templates that can be cloned now."""
        return list(self._ready.values())

    def key(self, shape: Shape) -> str:
        """Digest of all that shapes a template but the clock rate, which is compared with a tolerance."""
        shaped_by = [self._host.kernel.key, self._host.qemu_version, machine.LAYOUT, asdict(shape)]
        shaped_by.append(machine.kernel_command_line(self._host.kernel, 0))
        return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:24]

    async def close(self) -> None:
        """Stop building and let the memory go; clones keep theirs."""
        tasks = [provided.task for provided in self._provided.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for template in self._ready.values():
            os.close(template.ram)
        self._ready.clear()

    async def _provide(self, key: str, shape: Shape, looked: asyncio.Event) -> None:
        try:
            template = await asyncio.to_thread(self._load, key, shape)
            if template is None:
                looked.set()
                async with self._one_at_a_time:
                    template = await self._build(key, shape)
        except (RuntimeFault, OSError) as err:
            log.warning("template %s cannot be built, VMs boot cold: %s", key, err)
            self._failed[key] = (str(err), time.monotonic() + _RETRY_S)
        else:
            self._ready[key] = template
        finally:
            self._provided.pop(key, None)
            looked.set()

    def _load(self, key: str, shape: Shape) -> Template | None:
        directory = self._directory / key
        try:
            tsc_khz = int(json.loads((directory / "meta.json").read_text())["tsc_khz"])
            if abs(tsc_khz / self._host.tsc_khz - 1) > _TSC_TOLERANCE:
                shutil.rmtree(directory)
                return None
            with (directory / "ram").open("rb") as ram:
                return Template(key, shape, _sealed_copy(ram.fileno(), shape.ram_bytes), directory / "state")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError) as err:
            log.warning("template %s on disk is unusable and is built anew: %s", key, err)
            shutil.rmtree(directory, ignore_errors=True)
            return None

    async def _build(self, key: str, shape: Shape) -> Template:
        work = self._directory / f".{key}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, mode=0o700)
        ram = os.memfd_create("hyper-template", os.MFD_CLOEXEC)
        state = os.open(work / "state", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        groups = self._host_cgroups.create(f"template-{key}")
        try:
            os.truncate(ram, shape.ram_bytes)
            order = self._order(key, shape, work, cgroups.directories(groups))
            await self._boot_and_save(order, ram, state)
            await asyncio.to_thread(_save, ram, work / "ram", shape.ram_bytes)
            (work / "meta.json").write_text(json.dumps({"tsc_khz": self._host.tsc_khz, "shape": asdict(shape)}))
            sealed = await asyncio.to_thread(_sealed_copy, ram, shape.ram_bytes)
            template = Template(key, shape, sealed, work / "state")
            await self._verify(template, order)
            (work / launch.SHARED).rmdir()
            for name in work.iterdir():
                if name.name not in {"ram", "state", "meta.json"}:
                    name.unlink()
            final = self._directory / key
            shutil.rmtree(final, ignore_errors=True)
            work.rename(final)
            return Template(key, shape, sealed, final / "state")
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            os.close(ram)
            os.close(state)
            await asyncio.shield(self._host_cgroups.remove(groups))

    async def _boot_and_save(self, order: Order, ram: int, state: int) -> None:
        started = await launch.start(self._host, order, "template", ram=ram)
        started.agent.close()
        try:
            async with asyncio.timeout(_SAVE_TIMEOUT_S), monitor.opened(order.directory) as qmp:
                # The guest runs on while it is saved, so that a clone runs from its first moment.
                save = Command("migrate", {"uri": "fd:state"})
                await qmp.run(Command("getfd", {"fdname": "state"}, state), launch.IGNORE_SHARED, save)
                while (status := await _migration(qmp)) != "completed":
                    if status in {"failed", "cancelled"}:
                        raise GuestFailed("QEMU could not save the state of the template")
                    await asyncio.sleep(0.01)
        except TimeoutError as err:
            raise GuestFailed(f"QEMU did not save the template within {_SAVE_TIMEOUT_S:g} s") from err
        finally:
            await asyncio.shield(started.process.kill())

    async def _verify(self, template: Template, order: Order) -> None:
        started = await launch.start(self._host, order, "clone", template=template)
        started.agent.close()
        await started.process.kill()

    def _order(self, key: str, shape: Shape, directory: Path, groups: tuple[Path, ...]) -> Order:
        console = directory / "console.log"
        # Another daemon on this machine may be building the same template, or a killed one's QEMU not yet be gone.
        tap = links.tap_name(f"t{secrets.token_hex(6)}")
        return Order(f"template-{key}", directory, shape, self._uid, groups, tap, None, console)


async def _migration(qmp: Monitor) -> str:
    answer = await qmp.execute("query-migrate")
    return str(answer.get("status")) if isinstance(answer, dict) else "failed"


def _data_chunks(source: int, size: int) -> list[tuple[int, bytes]]:
    """The parts of a file that are not zero, as (offset, bytes); reads no holes."""
    chunks: list[tuple[int, bytes]] = []
    zero = bytes(_CHUNK_BYTES)
    with mmap.mmap(source, size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as view:
        for begin, end in sparse.data_ranges(source):
            for start in range(begin, end, _CHUNK_BYTES):
                part = view[start : min(start + _CHUNK_BYTES, end)]
                if part != zero[: len(part)]:
                    chunks.append((start, part))
    return chunks


def _sealed_copy(source: int, size: int) -> int:
    """A memfd with the content of `source`, holes where it is zero, that nothing can change any more."""
    target = os.memfd_create("hyper-template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(target, size)
        for offset, part in _data_chunks(source, size):
            _write_pages(target, offset, part)
        fcntl.fcntl(target, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(target)
        raise
    return target


def _save(source: int, path: Path, size: int) -> None:
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
        for offset, part in _data_chunks(source, size):
            _write_pages(file.fileno(), offset, part)
        os.fsync(file.fileno())


def _write_pages(target: int, offset: int, part: bytes) -> None:
    """Write the pages of a chunk that are not zero."""
    page = mmap.PAGESIZE
    zero = bytes(page)
    for start in range(0, len(part), page):
        content = part[start : start + page]
        if content != zero:
            os.pwrite(target, content, offset + start)
