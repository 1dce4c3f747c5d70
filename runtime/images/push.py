"""Send an image that is here to a registry, under the digest it has."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import InvalidInput, Upstream
from runtime.images import reference, skopeo
from runtime.images.access import Access
from runtime.images.bars import Bars
from runtime.images.image import Progress
from runtime.images.store import say_nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.images.image import Image
    from runtime.images.store import ImageStore

PUSH_TIMEOUT_S = 6 * 3600.0
STALL_TIMEOUT_S = 300.0
POLL_S = 0.2
DIRECTORY = "push"


async def push(
    store: ImageStore,
    text: str,
    *,
    access: Access | None = None,
    progress: Callable[[Progress], None] = say_nothing,
) -> Image:
    """Push an image to the registry that its reference names.

    Manifest, configuration and layers go as they are, so the digest there is the digest here.

    Raises:
        InvalidInput: not a reference by tag.
        ImageUnknown: it is not here.
        Conflict: its blobs are not here.
        Upstream: the registry cannot be reached, gives no access, or fails.
    """
    wanted = reference.parse(text)
    if wanted.digest:
        raise InvalidInput(f"{text!r} has a digest; push a tag, such as {wanted.familiar_name}:1", field="image")
    access = access or Access()
    image = await store.resolve(str(wanted))
    _, parts, raw_config = await asyncio.to_thread(store.parts, image)
    names = {parts.config.digest, *(layer.digest for layer in parts.layers)}
    total = sum(layer.size_bytes for layer in parts.layers) + len(raw_config)
    with store.blobs.pinned(names):
        async with store.temporary() as temporary:
            lay_out(store, image, temporary / DIRECTORY)
            progress(Progress("uploading", None, 0, total))
            with access.auth_file() as (auth, descriptors):
                argv = [*skopeo.argv(temporary, "copy"), *auth, "--preserve-digests"]
                argv.append(f"--dest-tls-verify={str(store.tls_verify(wanted, access)).lower()}")
                if access.cert_dir is not None:
                    argv.append(f"--dest-cert-dir={access.cert_dir}")
                argv += [f"dir:{DIRECTORY}", f"docker://{wanted}"]
                sizes = {layer.digest: layer.size_bytes for layer in parts.layers}
                watch = _Watch(wanted.registry, total, Bars(sizes), progress)
                run = asyncio.create_task(
                    command.run(
                        argv,
                        timeout_s=PUSH_TIMEOUT_S,
                        cwd=temporary,
                        pass_fds=descriptors,
                        on_start=watch.started,
                        on_terminal=watch.bars.feed,
                    )
                )
                try:
                    done = await watch.until(run)
                except TimeoutError as err:
                    raise Upstream(f"the registry {wanted.registry} took more than {PUSH_TIMEOUT_S:.0f} s") from err
                finally:
                    run.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await run
            if done.returncode != 0:
                raise skopeo.fault(done, wanted, temporary, logged_in=bool(access.logins), pushing=True)
    progress(Progress("done", None, total, total))
    return image


def lay_out(store: ImageStore, image: Image, directory: Path) -> set[str]:
    """Make a directory that skopeo reads as `dir:`, of links to an image's blobs; return their digests.

    Raises:
        Conflict: a blob is not here.
    """
    content, parts, _ = store.parts(image)
    names = {parts.config.digest, *(layer.digest for layer in parts.layers)}
    directory.mkdir()
    (directory / "manifest.json").write_bytes(content)
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    for name in names:
        (directory / name.removeprefix("sha256:")).symlink_to(store.blobs.path(name).absolute())
    return names


class _Watch:
    """Tells how far skopeo is: with each layer by its bars, with all by what it has written, to its sockets mostly."""

    def __init__(self, registry: str, total: int, bars: Bars, progress: Callable[[Progress], None]) -> None:
        self.bars = bars
        self._registry = registry
        self._total = total
        self._progress = progress
        self._pid: int | None = None

    def started(self, pid: int) -> None:
        self._pid = pid

    async def until(self, run: asyncio.Task[command.Finished]) -> command.Finished:
        """Wait for the end.

        Raises:
            Upstream: nothing moves any more.
        """
        loop = asyncio.get_running_loop()
        last, changed_at = (0, 0), loop.time()
        while True:
            finished, _ = await asyncio.wait({run}, timeout=POLL_S)
            if finished:
                return await run
            for step in self.bars.moved("uploading"):
                self._progress(step)
            now = self._moved()
            if now != last:
                last, changed_at = now, loop.time()
                self._progress(Progress("uploading", None, min(now[1], self._total), self._total))
            if loop.time() - changed_at > STALL_TIMEOUT_S:
                raise Upstream(
                    f"the registry {self._registry} has taken nothing for {STALL_TIMEOUT_S:.0f} s: check the network,"
                    " and try again"
                )

    def _moved(self) -> tuple[int, int]:
        """Bytes read and written by skopeo so far (proc(5), `io`)."""
        try:
            lines = Path(f"/proc/{self._pid}/io").read_text().splitlines()
        except OSError:  # it has just ended, or has not begun
            return 0, 0
        values = dict(line.split(": ") for line in lines)
        return int(values["rchar"]), int(values["wchar"])
