"""Build an image with buildah, below `data_dir/build`; the result is an image as if it had been pulled.

RUN steps are run as root on the host, in a chroot and with the host's network: whoever may build may do on the host
what root may do. That is the right of everybody who reaches the daemon's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import Conflict, DiskFull, ImageUnknown, InvalidInput, RuntimeFault, Upstream
from runtime.images import context, reference, skopeo
from runtime.images.bases import bases
from runtime.images.image import Progress
from runtime.images.load import take
from runtime.images.push import lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from runtime.images.access import Access
    from runtime.images.image import Image
    from runtime.images.store import ImageStore

BUILD_TIMEOUT_S = 2 * 3600.0
STEP_TIMEOUT_S = 600.0
LINE_LIMIT_CHARACTERS = 4096
MESSAGE_CHARACTERS = 500
CONTEXT_LIMIT_BYTES = 8 << 30
KEPT_CONTEXT_LIMIT_BYTES = 256 << 20
_LOOPBACK = re.compile(r"(?<![\w.:-])((?:127\.[0-9]+\.[0-9]+\.[0-9]+|localhost):[0-9]{1,5})(?=/)")
POLICY = "policy.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller chooses. `args` are in the image's record; a secret in them is one no more.

    `fresh_bases`: images of this host that are built from are fetched again, unless they were built here.
    """

    tags: Sequence[str] = ()
    args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    no_cache: bool = False
    fresh_bases: bool = False


@dataclass(frozen=True, slots=True)
class _Reached:
    """How registries are reached: buildah's options and environment, and the descriptor of the credentials."""

    flags: Sequence[str]
    env: Mapping[str, str]
    descriptors: tuple[int, ...]


class Builder:
    """Builds one image at a time."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._directory = store.data_dir / "build"
        self._storage = self._directory / "storage"
        self._run = self._directory / "run"
        self._lock = asyncio.Lock()

    async def build(
        self, archive: Path, temporary: Path, options: Options, access: Access, progress: Callable[[Progress], None]
    ) -> Image:
        """Build what a client has sent.

        Args:
            archive: `Containerfile` and `context/` as tar.
            temporary: A directory of the store's `temporary`.
            options: What the caller chooses.
            access: How registries are reached.
            progress: Told of each step, and of each line that the build prints.

        Raises:
            InvalidInput: the context, a tag or the Containerfile is wrong, or a RUN step failed.
            Upstream: an image that it is built from cannot be fetched.
            DiskFull, HostUnable: as everywhere.
        """
        kept = await asyncio.to_thread(_digest_to_keep, archive)
        return await self._make(archive, kept, temporary, options, access, progress)

    async def _make(
        self,
        archive: Path,
        kept: str | None,
        temporary: Path,
        options: Options,
        access: Access,
        progress: Callable[[Progress], None],
    ) -> Image:
        """Build from an archive. With the digest `kept` it is a blob, or becomes one; without, it goes."""
        tags = [str(_tag(text)) for text in options.tags]
        source = temporary / "source"
        digest = await asyncio.to_thread(context.unpack, archive, source, CONTEXT_LIMIT_BYTES)
        if kept is None:
            archive.unlink()
        text = (source / context.CONTAINERFILE).read_text(errors="replace")
        if self._lock.locked():
            progress(Progress("waiting"))
        async with self._lock:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            try:
                with access.auth_file() as (auth, descriptors):
                    reached = self._reach(text, temporary, options, access)
                    reached = _Reached([*reached.flags, *auth], reached.env, descriptors)
                    based_on = await self._fetch(text, temporary, reached, options, access, progress)
                    await self._build(source, temporary, options, reached, progress)
                out = await self._export(temporary)
            finally:
                await asyncio.shield(self._buildah("rm", "--all"))
        made_by = {
            "containerfile": text,
            "context_digest": digest,
            "archive_digest": kept,
            "bases": based_on,
            "args": dict(options.args),
            "labels": dict(options.labels),
            "target": options.target,
            "builder": (await self._buildah("--version")).stdout.decode().strip(),
            "built_at": time.time(),
        }
        content = (out / "manifest.json").read_bytes()
        manifest_digest = hashlib.sha256(content).hexdigest()
        (out / manifest_digest).write_bytes(content)
        with self._store.blobs.pinned((kept,) if kept else ()):
            if kept and not self._store.blobs.has(kept):
                self._store.blobs.adopt(archive, kept)
            image = await take(self._store, out, temporary, f"sha256:{manifest_digest}", tags, progress, made_by)
        progress(Progress("done", None, image.size_bytes, image.size_bytes))
        return image

    async def rebuild(
        self,
        image: Image,
        temporary: Path,
        access: Access,
        progress: Callable[[Progress], None],
        *,
        no_cache: bool = False,
        unnamed: bool = False,
    ) -> Image:
        """Build an image again from what it was built from, on what its bases are by now.

        It gives its names on, unless the result is to be `unnamed`. Without `no_cache` steps that have the same base
        and files are not run again: then the result may be the same image.

        Raises:
            Conflict: it was not built here, or its context was too large to be kept.
            InvalidInput, Upstream, DiskFull, HostUnable: as `build`.
        """
        made_by = image.build
        if made_by is None:
            raise Conflict(f"{image.name} was not built on this host: build it again where it was built", field="image")
        kept = made_by.get("archive_digest")
        with self._store.blobs.pinned((kept,) if kept else ()):
            if not kept or not self._store.blobs.has(kept):
                limit = f"{KEPT_CONTEXT_LIMIT_BYTES >> 20} MiB"
                raise Conflict(
                    f"the files that {image.name} was built from are not kept (at most {limit}): "
                    "build it again with hyper build",
                    field="image",
                )
            names = () if unnamed else image.references
            options = Options(names, made_by["args"], made_by["labels"], made_by["target"], no_cache, fresh_bases=True)
            return await self._make(self._store.blobs.path(kept), kept, temporary, options, access, progress)

    async def prune(self) -> int:
        """Forget all that earlier builds have left to go on from; return the bytes freed."""
        async with self._lock:
            freed = await asyncio.to_thread(self.size_bytes)
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
            return freed - await asyncio.to_thread(self.size_bytes)

    def size_bytes(self) -> int:
        """What builds take on the disk."""
        total = 0
        for path in self._directory.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    total += path.stat().st_size
        return total

    def _reach(self, text: str, temporary: Path, options: Options, access: Access) -> _Reached:
        """How buildah is to reach registries; those on loopback need no TLS, as everywhere here."""
        (temporary / POLICY).write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        named = [text, *options.args.values(), *bases(text, options.args)]
        plain = {*_LOOPBACK.findall("\n".join(named)), *self._store.insecure_registries}
        lines = ['unqualified-search-registries = ["docker.io"]', 'short-name-mode = "disabled"']
        lines += [f"[[registry]]\nlocation = {json.dumps(one)}\ninsecure = true" for one in sorted(plain)]
        (temporary / "registries.conf").write_text("\n".join(lines))
        flags = ["--signature-policy", POLICY]
        if access.tls_verify is not None:
            flags.append(f"--tls-verify={str(access.tls_verify).lower()}")
        if access.cert_dir is not None:
            flags += ["--cert-dir", str(access.cert_dir)]
        return _Reached(flags, {"CONTAINERS_REGISTRIES_CONF": str(temporary / "registries.conf")}, ())

    async def _fetch(
        self,
        text: str,
        temporary: Path,
        reached: _Reached,
        options: Options,
        access: Access,
        progress: Callable[[Progress], None],
    ) -> dict[str, str]:
        """Let FROM find the images of this host, and fetch the others anew: a tag may have moved since they were used.

        A name with a variable that is not known here is left to the build, which may take what an earlier build has
        fetched. Returns the digests of the others by their names.
        """
        found: dict[str, str] = {}
        for number, name in enumerate(bases(text, options.args)):
            wanted = reference.parse(name)
            try:
                image = await self._store.resolve(str(wanted))
            except ImageUnknown:
                found[name] = await self._pull(name, wanted, temporary, reached, progress)
            else:
                if options.fresh_bases and image.build is None and not wanted.digest:
                    image = await self._store.pull(str(wanted), access=access, progress=progress)
                progress(Progress("building", text=f"{name} is {image.digest} of this host"))
                await self._offer(image, wanted, temporary / f"base-{number}", temporary)
                found[name] = image.digest
        return found

    async def _pull(
        self,
        name: str,
        wanted: reference.Reference,
        temporary: Path,
        reached: _Reached,
        progress: Callable[[Progress], None],
    ) -> str:
        """Fetch a base into buildah's storage; returns its digest."""
        progress(Progress("building", text=f"Fetching {name}"))
        argv = [*self._argv(), "pull", "--quiet", "--policy", "always", *reached.flags, str(wanted)]
        done = await command.run(
            argv, timeout_s=BUILD_TIMEOUT_S, cwd=temporary, env=reached.env, pass_fds=reached.descriptors
        )
        if done.returncode != 0:
            raise _full(done, temporary) or Upstream(
                f"{name}, which is built from, cannot be fetched: {_say(done)}", field="context"
            )
        seen = await self._buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", str(wanted))
        return seen.stdout.decode().strip()

    async def _offer(self, image: Image, wanted: reference.Reference, source: Path, temporary: Path) -> None:
        blobs = await asyncio.to_thread(lay_out, self._store, image, source)
        with self._store.blobs.pinned(blobs):
            argv = [*skopeo.argv(temporary, "copy"), "--quiet", f"dir:{source}"]
            argv.append(f"containers-storage:[vfs@{self._storage}+{self._run}]{wanted}")
            done = await command.run(argv, timeout_s=STEP_TIMEOUT_S)
        if done.returncode != 0:
            raise _full(done, temporary) or RuntimeFault(f"{wanted} cannot be built from: {skopeo.say(done)}")

    async def _build(
        self,
        source: Path,
        temporary: Path,
        options: Options,
        reached: _Reached,
        progress: Callable[[Progress], None],
    ) -> None:
        argv = [*self._argv(), "build", "--isolation", "chroot", "--format", "docker", "--iidfile", "iid"]
        argv += [*reached.flags, "--file", str(source / context.CONTAINERFILE)]
        argv += ["--no-cache"] if options.no_cache else ["--layers"]
        argv += ["--target", options.target] if options.target else []
        for key, value in options.args.items():
            argv += ["--build-arg", f"{key}={value}"]
        for key, value in options.labels.items():
            argv += ["--label", f"{key}={value}"]
        shown = _Lines(progress)
        try:
            done = await command.run(
                [*argv, str(source / context.CONTEXT)],
                timeout_s=BUILD_TIMEOUT_S,
                cwd=temporary,
                env=reached.env,
                pass_fds=reached.descriptors,
                on_output=shown.take,
            )
        except TimeoutError as err:
            raise InvalidInput(f"the build has not ended after {BUILD_TIMEOUT_S:.0f} s", field="context") from err
        shown.end()
        if done.returncode != 0:
            raise _full(done, temporary) or InvalidInput(f"the build failed: {_say(done)}", field="context")

    async def _export(self, temporary: Path) -> Path:
        out = temporary / "built"
        iid = (temporary / "iid").read_text().strip()
        done = await self._buildah("push", "--quiet", "--signature-policy", POLICY, iid, f"dir:{out}", cwd=temporary)
        if done.returncode != 0:
            raise _full(done, temporary) or RuntimeFault(f"what was built cannot be read: {_say(done)}")
        return out

    def _argv(self) -> list[str]:
        return ["buildah", "--root", str(self._storage), "--runroot", str(self._run), "--storage-driver", "vfs"]

    async def _buildah(self, *arguments: str, cwd: Path | None = None) -> command.Finished:
        return await command.run([*self._argv(), *arguments], timeout_s=STEP_TIMEOUT_S, cwd=cwd)


class _Lines:
    """Makes lines of what a build prints."""

    def __init__(self, progress: Callable[[Progress], None]) -> None:
        self._progress = progress
        self._rest = b""

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT_CHARACTERS:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._tell(line)

    def end(self) -> None:
        if self._rest:
            self._tell(self._rest)

    def _tell(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode(errors="replace")[:LINE_LIMIT_CHARACTERS]
        self._progress(Progress("building", text=text))


def _digest_to_keep(archive: Path) -> str | None:
    """The digest by which an archive is kept for the next build; None if it is too large for that."""
    if archive.stat().st_size > KEPT_CONTEXT_LIMIT_BYTES:
        return None
    with archive.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _tag(text: str) -> reference.Reference:
    try:
        wanted = reference.parse(text)
    except InvalidInput as err:
        raise InvalidInput(err.message, field="tags") from err
    if wanted.digest:
        raise InvalidInput(f"{text!r} has a digest; a tag is name:tag", field="tags")
    return wanted


def _full(done: command.Finished, temporary: Path) -> DiskFull | None:
    if "no space left on device" in done.stderr.lower():
        return DiskFull(f"{temporary.parent}: no space left while building; free some space")
    return None


def _say(done: command.Finished) -> str:
    """The last line that is no mere exit status: buildah ends with that of its RUN step."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("exit status")]
    line = (said or lines or [done.last_line])[-1].removeprefix("Error: ")
    return (
        line if len(line) <= MESSAGE_CHARACTERS else f"{line[:100]} … {line[100 - MESSAGE_CHARACTERS :]}"
    )  # both count
