"""Fetch images from registries with skopeo: manifests and configurations checked, blobs into an OCI layout.

The blobs go into the host's blob store as they are in the registry. Those that are there already are not fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import RuntimeFault, Upstream
from runtime.images import manifest, skopeo
from runtime.images.bars import Bars
from runtime.images.image import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.images.access import Access
    from runtime.images.blobs import BlobStore
    from runtime.images.reference import Reference

INSPECT_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 6 * 3600.0
STALL_TIMEOUT_S = 120.0  # a copy whose files have not grown for so long is given up
POLL_S = 0.2
SLACK_BYTES = 16 << 20  # over the announced size: the layout's own files, a layer that skopeo compressed anew
LAYOUT = "oci"
TAG = "image"


class Registry:
    """What can be fetched of one reference. `tls_verify` False accepts any certificate, and plain HTTP."""

    def __init__(
        self, reference: Reference, access: Access, *, tls_verify: bool, temporary: Path, blobs: BlobStore
    ) -> None:
        self._reference = reference
        self._access = access
        self._tls = str(tls_verify).lower()
        self._temporary = temporary
        self._blobs = blobs

    async def fetch_manifest(self) -> tuple[bytes, manifest.Manifest]:
        """The manifest for our platform, as it is and parsed.

        Both what was asked for and what an index names are verified.

        Raises:
            ImageUnknown, Upstream, WrongDigest, WrongPlatform: as in `docs/explanation/images.md`.
        """
        what = str(self._reference)
        content = await self._inspect(what)
        digest = self._reference.digest or manifest.digest_of(content)
        manifest.verify(content, digest, what)
        parsed = manifest.parse(content, what)
        if isinstance(parsed, manifest.Index):
            digest = parsed.choose(what)
            content = await self._inspect(str(self._reference.at(digest)))
            manifest.verify(content, digest, what)
            parsed = manifest.parse(content, what)
            if isinstance(parsed, manifest.Index):
                raise Upstream(f"{what}: the index names another index, which is not supported")
        return content, parsed

    async def fetch_config(self, manifest_digest: str, expected: manifest.Descriptor) -> bytes:
        """The configuration, verified.

        Raises:
            ImageUnknown, Upstream, WrongDigest: as above.
        """
        if expected.size_bytes > manifest.CONFIG_LIMIT_BYTES:
            raise Upstream(f"{self._reference}: a configuration of {expected.size_bytes} bytes is not taken")
        content = await self._inspect(str(self._reference.at(manifest_digest)), "--config")
        manifest.verify(content, expected.digest, str(self._reference))
        return content

    async def copy(self, digest: str, wanted: manifest.Manifest, progress: Callable[[Progress], None]) -> set[str]:
        """Fetch the layers that are not in the blob store yet; skopeo verifies every digest.

        Returns:
            Digests of what skopeo has made beside them: manifest and configuration converted to OCI's form.

        Raises:
            Upstream: the registry failed, stalled, or sent more than the manifest announces.
            DiskFull: the temporary directory's file system is full.
            ImageUnknown, WrongDigest: as above.
        """
        with self._access.auth_file() as (auth, descriptors):
            argv = [*skopeo.argv(self._temporary, "copy"), *auth, f"--src-tls-verify={self._tls}"]
            if self._access.cert_dir is not None:
                argv.append(f"--src-cert-dir={self._access.cert_dir}")
            argv += ["--dest-oci-accept-uncompressed-layers", f"--dest-shared-blob-dir={self._blobs.directory}"]
            argv += [f"docker://{self._reference.at(digest)}", f"oci:{LAYOUT}:{TAG}"]
            sizes = {layer.digest: layer.size_bytes for layer in wanted.layers}
            bars = Bars(sizes)
            run = asyncio.create_task(
                command.run(
                    argv, timeout_s=COPY_TIMEOUT_S, cwd=self._temporary, pass_fds=descriptors, on_terminal=bars.feed
                )
            )
            try:
                await self._watch(run, sizes, bars, progress)
                done = await run
            except TimeoutError as err:
                raise Upstream(f"{self._host} did not send the image within {COPY_TIMEOUT_S:.0f} s") from err
            finally:
                run.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await run
        if done.returncode != 0:
            raise self._fault(done)
        return await asyncio.to_thread(self._made)

    def _made(self) -> set[str]:
        index = json.loads((self._temporary / LAYOUT / "index.json").read_bytes())
        made: str = index["manifests"][0]["digest"]
        try:
            config: str = json.loads(self._blobs.path(made).read_bytes())["config"]["digest"]
        except FileNotFoundError:  # nobody has it pinned: the garbage collection was faster
            return {made}
        return {made, config}

    async def _watch(
        self,
        run: asyncio.Task[command.Finished],
        sizes: dict[str, int],
        bars: Bars,
        progress: Callable[[Progress], None],
    ) -> None:
        """Report how the layers come, and how the layout grows, until the copy ends.

        Raises:
            Upstream: it stalls, or floods.
        """
        total = sum(sizes.values())
        loop = asyncio.get_running_loop()
        seen: set[str] = set()
        current, changed_at = -1, loop.time()
        while True:
            finished, _ = await asyncio.wait({run}, timeout=POLL_S)
            for step in bars.moved("downloading"):
                progress(step)
            present, written = await asyncio.to_thread(self._measure, sizes)
            for layer in [digest for digest in sizes if digest in present and digest not in seen]:
                seen.add(layer)
                progress(Progress("downloaded", layer, sizes[layer], sizes[layer]))
            if written != current:
                current, changed_at = written, loop.time()
                progress(Progress("downloading", None, min(written, total), total))
            if finished:
                return
            if written > total + SLACK_BYTES:
                raise Upstream(f"{self._host} sends more than the {total} bytes that the image's manifest announces")
            if loop.time() - changed_at > STALL_TIMEOUT_S:
                raise Upstream(
                    f"{self._host} has sent nothing for {STALL_TIMEOUT_S:.0f} s: check the network, and try again"
                )

    async def _inspect(self, what: str, *options: str) -> bytes:
        limit = manifest.CONFIG_LIMIT_BYTES if options else manifest.MANIFEST_LIMIT_BYTES
        try:
            with self._access.auth_file() as (auth, descriptors):
                argv = [*skopeo.argv(self._temporary, "inspect"), *auth, f"--tls-verify={self._tls}", "--raw"]
                if self._access.cert_dir is not None:
                    argv.append(f"--cert-dir={self._access.cert_dir}")
                argv += [*options, f"docker://{what}"]
                done = await command.run(
                    argv, timeout_s=INSPECT_TIMEOUT_S, stdout_limit_bytes=limit, pass_fds=descriptors
                )
        except TimeoutError as err:
            raise Upstream(
                f"{self._host} did not answer within {INSPECT_TIMEOUT_S:.0f} s: check the network and firewalls"
            ) from err
        except command.OutputTooLarge as err:
            raise Upstream(f"{what}: the registry's answer is larger than {limit} bytes") from err
        if done.returncode != 0:
            raise self._fault(done)
        return done.stdout

    @property
    def _host(self) -> str:
        return f"the registry {self._reference.registry}"

    def _measure(self, sizes: dict[str, int]) -> tuple[set[str], int]:
        """Which of these blobs are here, and the bytes of them and of those that skopeo is writing."""
        present = {digest for digest in sizes if self._blobs.has(digest)}
        written = sum(sizes[digest] for digest in present)
        for path in self._temporary.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # skopeo renames files while we look
                if path.is_file():
                    written += path.stat().st_size
        return present, written

    def _fault(self, done: command.Finished) -> RuntimeFault:
        return skopeo.fault(done, self._reference, self._temporary, logged_in=bool(self._access.logins))
