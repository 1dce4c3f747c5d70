"""Which packages of Debian's form an image has: `var/lib/dpkg/status` and `os-release`, read out of the image file.

The file system is one that `build.py` has written, layers and whiteouts applied and each file in one piece, so that
`dump.erofs` tells where a file lies; it follows no link. What stands in the files is a stranger's: they are bounded,
and of a package nothing is taken but a name and a version of the form that dpkg allows.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from runtime import command
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.images.image import Image

STATUS = "/var/lib/dpkg/status"
OS_RELEASES = ("/etc/os-release", "/usr/lib/os-release")  # the first one counts, os-release(5)
STATUS_LIMIT_BYTES: Final = 16 << 20
OS_RELEASE_LIMIT_BYTES: Final = 64 << 10
PACKAGES_LIMIT: Final = 20_000
KEPT: Final = 32
"""Of so many images the packages are remembered; a long list takes some 2 MB."""
_TIMEOUT_S = 30.0
_MEMORY_BYTES = 1 << 30

_PLAIN = re.compile(rb"^Size: ([0-9]+) +On-disk size: [0-9]+ +regular file$.*\bLayout: 0\b", re.MULTILINE | re.DOTALL)
_EXTENT = re.compile(rb"^ +[0-9]+: +[0-9]+\.\. *[0-9]+ \| *[0-9]+ : +([0-9]+)\.\. *[0-9]+ \| *[0-9]+$", re.MULTILINE)
_FIELD = re.compile(rb"^(Package|Status|Version|Source): (.{1,300})$", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")
_VERSION = re.compile(r"[0-9A-Za-z.+:~-]{1,128}")
_SOURCE = re.compile(rf"({_NAME.pattern})(?: \(({_VERSION.pattern})\))?")
_RELEASE = re.compile(r"""^(ID|VERSION_ID)=["']?([A-Za-z0-9._-]{1,64})["']?$""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Package:
    """One that is installed, and the source package that it was built from, each with its version."""

    name: str
    version: str
    source: str
    source_version: str


@dataclass(frozen=True, slots=True)
class PackageList:
    """What an image has; None is what it does not say.

    `distribution` and `version` are `ID` and `VERSION_ID` of os-release(5): `debian` and `12`.
    """

    distribution: str | None
    version: str | None
    packages: tuple[Package, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """As the API has it."""
        return asdict(self)


class Packages:
    """The packages of images. An image does not change, so each is read once, and the latest are remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, PackageList] = OrderedDict()

    async def of(self, image: Image) -> PackageList:
        """Those of one image.

        Raises:
            RuntimeFault: the image file cannot be read.
        """
        found = self._known.get(image.digest) or await read(image.file)
        self._known[image.digest] = found
        self._known.move_to_end(image.digest)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found


def parse_status(raw: bytes) -> tuple[Package, ...]:
    """The packages that a `status` of dpkg says are installed; what has not its form is left out."""
    found = []
    for stanza in islice(_stanzas(raw), PACKAGES_LIMIT):
        fields = {one[1]: one[2].decode(errors="replace") for one in _FIELD.finditer(stanza)}
        name, version = fields.get(b"Package", ""), fields.get(b"Version", "")
        source = _SOURCE.fullmatch(fields.get(b"Source", name))
        installed = fields.get(b"Status", "").endswith(" installed")
        if installed and source and _NAME.fullmatch(name) and _VERSION.fullmatch(version):
            found.append(Package(name, version, source[1], source[2] or version))
    return tuple(found)


def parse_release(raw: bytes) -> tuple[str | None, str | None]:
    """`ID` and `VERSION_ID` of an os-release."""
    found = dict(_RELEASE.findall(raw.decode(errors="replace")))
    return found.get("ID"), found.get("VERSION_ID")


def _stanzas(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        end = raw.find(b"\n\n", start)
        end = len(raw) if end < 0 else end
        yield raw[start:end]
        start = end + 2


async def read(file: Path) -> PackageList:
    """What an image file has.

    Raises:
        RuntimeFault: it cannot be read.
    """
    release = None
    for path in OS_RELEASES:
        release = release or await _content(file, path, OS_RELEASE_LIMIT_BYTES)
    status = await _content(file, STATUS, STATUS_LIMIT_BYTES)
    packages = None if status is None else await asyncio.to_thread(parse_status, status)
    return PackageList(*parse_release(release or b""), packages)


async def _content(file: Path, path: str, limit_bytes: int) -> bytes | None:
    """A file in an image file; None if there is none by that very name, or it is larger than the limit.

    Raises:
        RuntimeFault: the image file cannot be read.
    """
    argv = ["dump.erofs", "-e", f"--path={path}", str(file)]
    done = await command.run(argv, timeout_s=_TIMEOUT_S, memory_limit_bytes=_MEMORY_BYTES)
    if done.returncode != 0:
        raise RuntimeFault(f"{file} cannot be read: {done.last_line}")
    plain, extents = _PLAIN.search(done.stdout), _EXTENT.findall(done.stdout)
    if plain is None or len(extents) != 1 or int(plain[1]) > limit_bytes:
        return None
    return await asyncio.to_thread(_part, file, int(extents[0]), int(plain[1]))


def _part(file: Path, offset: int, size_bytes: int) -> bytes:
    with file.open("rb") as image:
        image.seek(offset)
        return image.read(size_bytes)
