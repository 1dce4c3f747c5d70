"""Fetch images from registries with skopeo: manifests and configurations checked, blobs into an OCI layout.

Credentials are skopeo's (`skopeo login`, or a `config.json` of docker); none pass through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import DiskFull, ImageUnknown, RuntimeFault, Upstream, WrongDigest
from runtime.images import manifest
from runtime.images.image import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.images.reference import Reference

INSPECT_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 6 * 3600.0
STALL_TIMEOUT_S = 120.0  # a copy whose files have not grown for so long is given up
POLL_S = 0.2
SLACK_BYTES = 16 << 20  # over the announced size: the layout's own files, a layer that skopeo compressed anew
LAYOUT = "oci"
TAG = "image"

_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_POLICIES = (Path("/etc/containers/policy.json"), Path("~/.config/containers/policy.json"))

# Beginnings of what skopeo, the registry or Go's network code say, and what they mean to a user.
_UNKNOWN = ("manifest unknown", "name unknown", "repository name not known", "not found: manifest", "404 (not found)")
_DENIED = ("access to the resource is denied", "unauthorized", "authentication required", "403 (forbidden)")
_DIGEST = ("does not match provided manifest digest", "digest did not match", "digest mismatch", "digest doesn't match")
_REMEDIES = (
    ("no such host", "no such host name: check the name and this host's DNS"),
    ("server misbehaving", "its name could not be looked up: check this host's DNS"),
    ("connection refused", "nothing listens there: check that the registry runs, and the port"),
    ("no route to host", "there is no way to it: check the network and firewalls"),
    ("network is unreachable", "there is no way to it: check this host's network"),
    ("i/o timeout", "it does not answer: check the network and firewalls"),
    ("tls handshake timeout", "it does not answer: check the network and firewalls"),
    (
        "server gave http response to https client",
        "it speaks plain HTTP: put it into insecure_registries if that is meant",
    ),
    ("x509", "its certificate is not trusted: install its CA, or put the registry into insecure_registries"),
    ("toomanyrequests", "it refuses more requests for now: wait, or log in with: skopeo login"),
    ("429", "it refuses more requests for now: wait, or log in with: skopeo login"),
)


class Registry:
    """What can be fetched of one reference. `tls_verify` False accepts any certificate, and plain HTTP."""

    def __init__(self, reference: Reference, *, tls_verify: bool, temporary: Path) -> None:
        self._reference = reference
        self._tls = str(tls_verify).lower()
        self._temporary = temporary
        self._general = ["skopeo", "--tmpdir", str(temporary)]
        if not any(policy.expanduser().exists() for policy in _POLICIES):
            self._general.append("--insecure-policy")  # no policy was made: skopeo would refuse everything

    async def fetch_manifest(self) -> tuple[str, manifest.Manifest]:
        """The manifest for our platform and its digest; both what was asked for and what an index names are verified.

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
        return digest, parsed

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

    async def copy(self, digest: str, wanted: manifest.Manifest, progress: Callable[[Progress], None]) -> None:
        """Copy into the OCI layout `oci` in the temporary directory, tagged `image`; skopeo verifies every blob.

        Raises:
            Upstream: the registry failed, stalled, or sent more than the manifest announces.
            DiskFull: the temporary directory's file system is full.
            ImageUnknown, WrongDigest: as above.
        """
        source = f"docker://{self._reference.at(digest)}"
        argv = [*self._general, "copy", f"--src-tls-verify={self._tls}", source, f"oci:{LAYOUT}:{TAG}"]
        run = asyncio.create_task(command.run(argv, timeout_s=COPY_TIMEOUT_S, cwd=self._temporary))
        try:
            await self._watch(run, wanted, progress)
            done = await run
        except TimeoutError as err:
            raise Upstream(f"{self._host} did not send the image within {COPY_TIMEOUT_S:.0f} s") from err
        finally:
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await run
        if done.returncode != 0:
            raise self._fault(done)

    async def _watch(
        self, run: asyncio.Task[command.Finished], wanted: manifest.Manifest, progress: Callable[[Progress], None]
    ) -> None:
        """Report how the layout grows (skopeo says nothing of it) until the copy ends.

        Raises:
            Upstream: it stalls, or floods.
        """
        sizes = {layer.digest: layer.size_bytes for layer in wanted.layers}
        total = sum(sizes.values())
        loop = asyncio.get_running_loop()
        seen: set[str] = set()
        current, changed_at = -1, loop.time()
        while True:
            finished, _ = await asyncio.wait({run}, timeout=POLL_S)
            present, written = await asyncio.to_thread(_measure, self._temporary)
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
        argv = [*self._general, "inspect", f"--tls-verify={self._tls}", "--raw", *options, f"docker://{what}"]
        limit = manifest.CONFIG_LIMIT_BYTES if options else manifest.MANIFEST_LIMIT_BYTES
        try:
            done = await command.run(argv, timeout_s=INSPECT_TIMEOUT_S, stdout_limit_bytes=limit)
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

    def _fault(self, done: command.Finished) -> RuntimeFault:
        message = say(done)
        lower = message.lower()
        if "no space left on device" in lower or "disk quota exceeded" in lower:
            return DiskFull(f"{self._temporary.parent}: no space left while pulling {self._reference}; free some space")
        if any(text in lower for text in _DIGEST):
            return WrongDigest(f"{self._reference}: the registry sent content that has another digest: {message}")
        if any(text in lower for text in _UNKNOWN):
            part = "digest" if self._reference.digest else "tag"
            return ImageUnknown(
                f"{self._host} has no image {self._reference}; check the name and the {part}", field="image"
            )
        for text, remedy in _REMEDIES:
            if text in lower:
                return Upstream(f"{self._host} cannot be reached; {remedy} ({message})")
        if any(text in lower for text in _DENIED):
            return ImageUnknown(
                f"{self._host} gives no access to {self._reference}; check the name, or log in with: skopeo login"
                f" {self._reference.registry}",
                field="image",
            )
        return Upstream(f"{self._host} failed: {message}")


def say(done: command.Finished) -> str:
    """What skopeo says in its log line, without the line's frame and its preamble."""
    found = _MESSAGE.findall(done.last_line)
    text = found[-1].replace('\\"', '"') if found else done.last_line
    return re.sub(r'^Error parsing image name "[^"]*": ', "", text)[:500]


def _measure(temporary: Path) -> tuple[set[str], int]:
    """Digests of the blobs that are there, and the bytes in the layout: blobs, and those that skopeo is writing."""
    present: set[str] = set()
    written = 0
    for path in temporary.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # skopeo renames files while we look
            if path.is_file():
                written += path.stat().st_size
                if path.parent.name == "sha256":
                    present.add(f"sha256:{path.name}")
    return present, written
