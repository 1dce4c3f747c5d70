"""Templates: one booted, agent-ready guest a shape, whose memory is shared copy-on-write by all its clones.

An image that is started again gets one of its own, which has its root mounted and has begun its program once.

Memory is served from a sealed memfd: no guest, and no process at all, can change it. A copy on disk brings it back
after a restart of the daemon. A template is found by a digest of all that shaped it, so a stale one is never used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import cgroups, disks, sparse
from runtime.errors import GuestFailed, RuntimeFault
from runtime.network import links
from runtime.vm import hotplug, launch, machine, monitor
from runtime.vm.launch import Host, Order, Root, Template
from runtime.vm.monitor import Command

if TYPE_CHECKING:
    from runtime.cgroups import HostCgroups
    from runtime.vm.agent import Agent
    from runtime.vm.machine import Shape
    from runtime.vm.monitor import Monitor

log = logging.getLogger(__name__)

_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TSC_TOLERANCE = 1e-4  # a template of another boot of the host is good if its clock rate is within this
_SAVE_TIMEOUT_S = 30.0
# What a kernel puts off for a second after its boot, such as to settle its clock and the state of a link, would be done
# again by every clone.
_SETTLE_S = 1.2
_RETRY_S = 60.0  # what failed may have been the moment's: a full disk, a QEMU that was killed
_CHUNK_BYTES = 16 * 4096
_META = "meta.json"
_LAYER = "layer"  # the file that the guest had mounted, as it was when the guest was stopped
_OURS = re.compile(r"[0-9a-f]{24}|\.[0-9a-f]{24}\.\d+")  # directories of templates, and of one in the making
_ASKED = 256  # images that were asked for once
_LET_GO_S = 15.0  # a clone that is being started may still need a template that is given up


@dataclass(frozen=True, slots=True)
class _Provided:
    """A template on its way; `looked` is set once it is loaded, or known not to be on disk."""

    task: asyncio.Task[None]
    looked: asyncio.Event


class Templates:
    """The templates of one host: loaded, built on first use, and closed at the end."""

    def __init__(
        self,
        directory: Path,
        host: Host,
        uid: int,
        host_cgroups: HostCgroups,
        layer_bytes: int | None = None,
        *,
        images: int = 0,
    ) -> None:
        """`layer_bytes`: size of the writable layer that the guests have mounted; None for none.

        `images`: how many there are with an image mounted, at most.
        """
        self._directory = directory
        self._layer_bytes = layer_bytes
        self._images = images if layer_bytes else 0
        self._asked: dict[str, None] = {}
        self._host = host
        self._uid = uid
        self._host_cgroups = host_cgroups
        self._ready: dict[str, Template] = {}
        self._failed: dict[str, tuple[str, float]] = {}  # why, and when to try again (monotonic)
        self._provided: dict[str, _Provided] = {}
        self._leaving: list[Template] = []
        self._one_at_a_time = asyncio.Lock()

    def prepare(self, shape: Shape, root: Root | None = None) -> None:
        """Begin to load or build the template of a shape, unless it is there, begun, or has just failed."""
        key = self.key(shape, root)
        _, retry_at = self._failed.get(key, ("", 0.0))
        if key not in self._ready and key not in self._provided and time.monotonic() >= retry_at:
            looked = asyncio.Event()
            task = asyncio.create_task(self._provide(key, shape, root, looked), name=f"template {key}")
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

    def of_image(self, shape: Shape, root: Root) -> Template | None:
        """The template that has this image mounted, if it is there; begins to make it when it is asked for again."""
        if not self._images:
            return None
        try:
            key = self.key(shape, root)
        except OSError:
            return None  # the start will say what is missing
        template = self._ready.pop(key, None)
        if template is not None:
            self._ready[key] = template  # the last one is the one used last
        elif key in self._asked or (self._directory / key / _META).exists():
            self.prepare(shape, root)
        else:
            self._asked[key] = None
            if len(self._asked) > _ASKED:
                self._asked.pop(next(iter(self._asked)))
        return template

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

    def key(self, shape: Shape, root: Root | None = None) -> str:
        """Digest of all that shapes a template but the clock rate, which is compared with a tolerance.

        Raises:
            OSError: the image's file is not there.
        """
        command_line = machine.kernel_command_line(self._host.kernel, 0, shape.accel)
        image: list[object] = []
        if root:  # made again of the same digest it may be laid out in another way
            status = root.image.stat()
            image = [str(root.image), status.st_ino, status.st_mtime_ns]
        return _digest([*self._made_with(), asdict(shape), command_line, *image])

    def _made_with(self) -> list[object]:
        """What is the same for all templates of this daemon."""
        return [self._host.kernel.key, self._host.qemu_version, machine.LAYOUT, self._layer_bytes]

    def sweep(self) -> None:
        """Remove what is on disk of other kernels, QEMUs, layouts, images, and what a killed daemon left half made."""
        made_with = _digest(self._made_with())
        for directory in self._directory.iterdir() if self._directory.is_dir() else ():
            if not _OURS.fullmatch(directory.name):
                continue
            try:
                about = json.loads((directory / _META).read_text())
                image = about.get("image")
                if about["made_with"] == made_with and (not image or (self._images and Path(image).exists())):
                    continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                pass  # of an earlier version of ours, or half made
            log.info("template %s is of no use any more and is removed", directory.name)
            shutil.rmtree(directory, ignore_errors=True)

    async def close(self) -> None:
        """Stop building and let the memory go; clones keep theirs."""
        tasks = [provided.task for provided in self._provided.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for template in list(self._leaving):
            self._let_go(template)
        for template in self._ready.values():
            os.close(template.ram)
        self._ready.clear()

    async def _provide(self, key: str, shape: Shape, root: Root | None, looked: asyncio.Event) -> None:
        try:
            template = await asyncio.to_thread(self._load, key, shape, root)
            if template is None:
                looked.set()
                async with self._one_at_a_time:
                    template = await self._build(key, shape, root)
        except (RuntimeFault, OSError) as err:
            what = "start without it" if root else "boot cold"
            log.warning("template %s cannot be built, VMs %s: %s", key, what, err)
            self._failed[key] = (str(err), time.monotonic() + _RETRY_S)
        else:
            self._ready[key] = template
            self._give_up()
        finally:
            self._provided.pop(key, None)
            looked.set()

    def _give_up(self) -> None:
        """Of those with an image let the ones go that are too many, used longest ago, or whose image is gone."""
        own = {key: template.image for key, template in self._ready.items() if template.image}
        kept = [key for key, image in own.items() if image.exists()][-self._images :]
        for key in own.keys() - set(kept):
            template = self._ready.pop(key)
            self._leaving.append(template)
            asyncio.get_running_loop().call_later(_LET_GO_S, self._let_go, template)

    def _let_go(self, template: Template) -> None:
        """Close what is given up, and remove it, unless it is wanted again."""
        if template in self._leaving:
            self._leaving.remove(template)
            os.close(template.ram)
            if not any(template.key in known for known in (self._ready, self._provided)):
                shutil.rmtree(self._directory / template.key, ignore_errors=True)

    def _load(self, key: str, shape: Shape, root: Root | None) -> Template | None:
        directory = self._directory / key
        try:
            tsc_khz = int(json.loads((directory / _META).read_text())["tsc_khz"])
            if abs(tsc_khz / self._host.tsc_khz - 1) > _TSC_TOLERANCE:
                shutil.rmtree(directory)
                return None
            layer = disks.read_content(directory / _LAYER) if self._layer_bytes else None
            with (directory / "ram").open("rb") as ram:
                sealed = _sealed_copy(ram.fileno(), shape.ram_bytes)
            return Template(key, shape, sealed, directory / "state", layer, root.image if root else None)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError) as err:
            log.warning("template %s on disk is unusable and is built anew: %s", key, err)
            shutil.rmtree(directory, ignore_errors=True)
            return None

    async def _build(self, key: str, shape: Shape, root: Root | None) -> Template:
        work = self._directory / f".{key}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        async with contextlib.AsyncExitStack() as after:
            undo = after.enter_context(contextlib.ExitStack())
            undo.callback(shutil.rmtree, work, ignore_errors=True)
            work.mkdir(parents=True, mode=0o700)
            ram = os.memfd_create("hyper-template", os.MFD_CLOEXEC)
            after.callback(os.close, ram)
            state = os.open(work / "state", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            after.callback(os.close, state)
            groups = self._host_cgroups.create(f"template-{key}")
            after.push_async_callback(lambda: asyncio.shield(self._host_cgroups.remove(groups)))
            order = self._order(key, shape, work, cgroups.directories(groups), root)
            await self._boot_and_save(order, root, ram, state)
            await asyncio.to_thread(_save, ram, work / "ram", shape.ram_bytes)
            about = {"tsc_khz": self._host.tsc_khz, "shape": asdict(shape), "made_with": _digest(self._made_with())}
            about |= {"image": str(root.image)} if root else {}
            (work / _META).write_text(json.dumps(about))
            layer = await asyncio.to_thread(_kept_layer, work / _LAYER) if self._layer_bytes else None
            sealed = await asyncio.to_thread(_sealed_copy, ram, shape.ram_bytes)
            undo.callback(os.close, sealed)
            template = Template(key, shape, sealed, work / "state", layer, order.image)
            await self._verify(template, order)
            (work / launch.SHARED).rmdir()
            for name in work.iterdir():
                if name.name not in {"ram", "state", _META, _LAYER}:
                    name.unlink()
            final = self._directory / key
            shutil.rmtree(final, ignore_errors=True)
            work.rename(final)
            undo.pop_all()
            return replace(template, state=final / "state")

    async def _boot_and_save(self, order: Order, root: Root | None, ram: int, state: int) -> None:
        started = await launch.start(self._host, order, "template", ram=ram)
        try:
            async with asyncio.timeout(_SAVE_TIMEOUT_S), monitor.opened(order.directory) as qmp:
                if self._layer_bytes:
                    await _mount_layer(order.directory / _LAYER, self._layer_bytes, root, started.agent, qmp)
                await asyncio.sleep(_SETTLE_S)
                started.agent.close()
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

    def _order(self, key: str, shape: Shape, directory: Path, groups: tuple[Path, ...], root: Root | None) -> Order:
        console = directory / "console.log"
        # Another daemon on this machine may be building the same template, or a killed one's QEMU not yet be gone.
        tap = links.tap_name(f"t{secrets.token_hex(6)}")
        image = root.image if root else None
        return Order(f"template-{key}", directory, shape, self._uid, groups, tap, None, console, image=image)


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


async def _mount_layer(file: Path, size_bytes: int, root: Root | None, agent: Agent, qmp: Monitor) -> None:
    """Let the guest mount an empty layer. Until it is stopped it may write to the file, and then never again."""
    await disks.make_writable(file, size_bytes)
    await hotplug.Plug().plug(qmp, (hotplug.Disk("writable", file, read_only=False),))
    await launch.mount_ahead(agent, disks.mount_options(file), root)


def _kept_layer(path: Path) -> disks.Content:
    """What the guest has left in the file, which outlives a crash of the host with the memory that belongs to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return disks.read_content(path)


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
