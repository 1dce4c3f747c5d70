"""Vulnerabilities in the form of OSV (the Open Source Vulnerability schema, 1.x), of Debian's and Ubuntu's packages.

Of a record it is taken in which versions of a source package there is a hole that a newer version closes: `introduced`
and `fixed` of its `ECOSYSTEM` ranges. What has no fixed version is for nobody to build again, and is left out; so are
other ecosystems, and records that were withdrawn.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from alerts.errors import BadFeed
from alerts.remediation import debian

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alerts.remediation.debian import Key
    from alerts.remediation.hyperd import Packages

MAX_BYTES: Final = 64 << 20
MAX_RECORDS: Final = 200_000
ECOSYSTEMS: Final = {"debian": "Debian", "ubuntu": "Ubuntu"}
"""By `ID` of os-release(5). Both sort versions as dpkg does, and OSV names their source packages."""
_LTS = ":LTS"  # which Ubuntu's `VERSION_ID` does not say

_Text = Annotated[str, StringConstraints(max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Event(_Part):
    introduced: _Text | None = None
    fixed: _Text | None = None


class _Range(_Part):
    type: _Text
    events: list[_Event] = Field(max_length=1000)


class _Package(_Part):
    ecosystem: _Text
    name: _Text


class _Affected(_Part):
    package: _Package | None = None
    ranges: list[_Range] = Field(default_factory=list, max_length=1000)


class _Record(_Part):
    id: str = Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")
    withdrawn: _Text | None = None
    affected: list[_Affected] = Field(default_factory=list, max_length=1000)


_RECORDS = TypeAdapter(Annotated[list[_Record], Field(max_length=MAX_RECORDS)])


@dataclass(frozen=True, slots=True)
class Hole:
    """One vulnerability of a source package: versions in which it begins, and versions that close it."""

    id: str
    introduced: tuple[str, ...]
    fixed: tuple[str, ...]

    def is_in(self, version: Key) -> bool:
        """Whether a version has it, and a newer one has not."""
        # "0" is before all versions, also before one that begins with a tilde.
        begins = [(() if one == "0" else debian.key(one), True) for one in self.introduced]
        ends = [(debian.key(one), False) for one in self.fixed]
        before = [is_begin for at, is_begin in sorted([*begins, *ends]) if at <= version]
        return before[-1:] == [True] and any(at > version for at, _ in ends)


@dataclass(frozen=True, slots=True)
class Feed:
    """The holes of a file, by ecosystem and source package; `records` is how many records it has."""

    records: int = 0
    holes: Mapping[tuple[str, str], Sequence[Hole]] = field(default_factory=dict)

    def fixable(self, packages: Packages) -> frozenset[str]:
        """The ids of what an image's packages have and newer ones have not."""
        ecosystem = f"{ECOSYSTEMS.get(packages.distribution or '')}:{packages.version}"
        sources = {(one.source, debian.key(one.source_version)) for one in packages.packages or ()}
        return frozenset(
            hole.id
            for source, version in sources
            for hole in self.holes.get((ecosystem, source), ())
            if hole.is_in(version)
        )


def parse(raw: bytes) -> Feed:
    """The feed that a file is: a JSON list of records, or one record a line.

    Raises:
        BadFeed: it is too large, empty, or has what is no record of OSV; the message is one line and says where.
    """
    if len(raw) > MAX_BYTES:
        raise BadFeed(f"longer than {MAX_BYTES} bytes")
    count = 0
    holes: defaultdict[tuple[str, str], list[Hole]] = defaultdict(list)
    for record in _listed(raw) if raw.lstrip()[:1] == b"[" else _lines(raw):
        count += 1
        for affected in () if record.withdrawn else record.affected:
            package = affected.package
            if package is not None and package.ecosystem.partition(":")[0] in ECOSYSTEMS.values():
                found = [hole for one in affected.ranges if (hole := _hole(record.id, one))]
                holes[package.ecosystem.removesuffix(_LTS), package.name] += found
    return Feed(count, dict(holes))


def _listed(raw: bytes) -> list[_Record]:
    try:
        return _RECORDS.validate_json(raw)
    except ValidationError as err:
        raise BadFeed(_first(err)) from err


def _lines(raw: bytes) -> Iterator[_Record]:
    """The records one by one: all of them together take ten times the room of the file."""
    number = 0
    for number, line in enumerate(BytesIO(raw), 1):
        if number > MAX_RECORDS:
            raise BadFeed(f"more than {MAX_RECORDS} lines")
        try:
            yield _Record.model_validate_json(line)
        except ValidationError as err:
            raise BadFeed(f"line {number}: {_first(err)}") from err
    if not number:
        raise BadFeed("it is empty")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return f"{f'{where}: ' if where else ''}{first['msg'][:200]}"


def _hole(ident: str, found: _Range) -> Hole | None:
    """The hole that a range is, if something closes it."""
    introduced = tuple(one.introduced for one in found.events if one.introduced)
    fixed = tuple(one.fixed for one in found.events if one.fixed)
    if found.type != "ECOSYSTEM" or not fixed:
        return None
    for version in (*introduced, *fixed):
        if not debian.is_version(version):
            raise BadFeed(f"{ident}: {version!r} is no version of a Debian package")
    return Hole(ident, introduced, fixed)
