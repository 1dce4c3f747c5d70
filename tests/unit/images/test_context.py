from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from runtime.cli.ignore import Ignored
from runtime.client import ClientError
from runtime.errors import InvalidInput
from runtime.images import context
from runtime.images.bases import bases

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("patterns", "left_out", "sent"),
    [
        (["*.log"], ["a.log"], ["b/a.log", "a.log.txt"]),
        (["**/*.log"], ["a.log", "b/c/a.log"], ["alog"]),
        (["/node_modules/"], ["node_modules", "node_modules/x/y"], ["a/node_modules"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "b"]),
        (["*", "!keep", "!src/*.c"], ["other", "src/x.h", "src"], ["keep", "keep/below", "src/x.c"]),
        (["docs", "!docs/README.md", "docs/README.md"], ["docs/README.md"], []),
        (["fil?", "[ab].txt", "[^x].c"], ["file", "a.txt", "y.c"], ["fil", "fi/e", "c.txt", "x.c"]),
        (["# comment", "", "  spaced  ", "!"], ["spaced"], ["# comment"]),
        ([r"\*star"], ["*star"], ["xstar"]),
        ([".git"], [".git", ".git/config"], [".gitignore"]),
        (["./a/./b"], ["a/b"], ["a"]),
    ],
)
def test_dockerignore(patterns: list[str], left_out: list[str], sent: list[str]) -> None:
    ignored = Ignored(patterns)
    assert [name for name in left_out if not ignored.covers(name)] == []
    assert [name for name in sent if ignored.covers(name)] == []


@pytest.mark.parametrize("pattern", ["[a", "[z-a]"])
def test_a_wrong_pattern(pattern: str) -> None:
    with pytest.raises(ClientError, match=r"\.dockerignore"):
        Ignored([pattern])


def archive(*entries: tuple[str, bytes, bytes | str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = content if isinstance(content, bytes) else b""
            info.linkname = content if isinstance(content, str) else ""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


FILE, LINK, HARD, DIRECTORY = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
START = ("Containerfile", FILE, b"FROM scratch\n")


def unpacked(tmp_path: Path, *entries: tuple[str, bytes, bytes | str], limit_bytes: int = 1000) -> str:
    file = tmp_path / "archive"
    file.write_bytes(archive(*entries))
    return context.unpack(file, tmp_path / "out", limit_bytes)


def test_a_context_and_its_digest(tmp_path: Path) -> None:
    entries = [START, ("context/d", DIRECTORY, b""), ("context/d/f", FILE, b"1"), ("context/l", LINK, "../../etc")]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "3").mkdir()
    digest = unpacked(tmp_path / "1", *entries)
    root = tmp_path / "1/out"
    assert (root / "context/d/f").read_bytes() == b"1"
    assert str((root / "context/l").readlink()) == "../../etc"
    assert (root / "Containerfile").read_bytes() == b"FROM scratch\n"
    assert unpacked(tmp_path / "2", entries[0], entries[3], *entries[1:3]) == digest  # the order does not matter
    entries[2] = ("context/d/f", FILE, b"2")
    assert unpacked(tmp_path / "3", *entries) != digest


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("context/f", FILE, b"")], "has no Containerfile"),
        ([START, ("context/../../f", FILE, b"")], "leaves it"),
        ([START, ("/etc/f", FILE, b"")], "neither Containerfile nor below context/"),
        ([START, ("context", LINK, "/etc")], "wrong kind"),
        ([START, ("context/l", LINK, "/etc"), ("context/l", FILE, b"")], "comes twice"),
        ([START, ("context/l", LINK, "/etc"), ("context/l/f", FILE, b"")], "not a whole archive"),
        ([START, ("context/h", HARD, "/etc/shadow")], "neither a file"),
        ([START, ("context/dev", tarfile.CHRTYPE, b"")], "neither a file"),
        ([("Containerfile", LINK, "/etc/shadow")], "not a plain file"),
        ([START, ("context/big", FILE, bytes(1001))], "more than 1000 bytes"),
        ([START, ("context/f", FILE, b""), ("context/f/g", FILE, b"")], "not a whole archive"),
    ],
)
def test_a_hostile_context(tmp_path: Path, entries: list[tuple[str, bytes, bytes | str]], message: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InvalidInput, match=message) as caught:
        unpacked(tmp_path / "in", *entries)
    assert caught.value.field == "context"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"x" * 2000)
    with pytest.raises(InvalidInput, match="not a whole archive"):
        context.unpack(tmp_path / "archive", tmp_path / "out", 1000)


def test_the_images_that_a_containerfile_names() -> None:
    text = """
FROM --platform=linux/amd64 127.0.0.1:5000/base:1 AS build
from other as Second
FROM scratch
FROM $VARIABLE
FROM build
COPY --from=build /a /a
COPY --from=0 /a /a
COPY --from=tools:2 /b /b
FROM Bad:Name
"""
    assert bases(text, {}) == ["127.0.0.1:5000/base:1", "other", "tools:2"]


HEADING = """
# ARG BASE=comment
ARG BASE=myapp:dev TAG="1.2"
arg REGISTRY=127.0.0.1:5000/team \\
    EMPTY=
ARG FULL=${REGISTRY}/web:$TAG
ARG NONE
"""


@pytest.mark.parametrize(
    ("name", "args", "found"),
    [
        ("$BASE", {}, ["myapp:dev"]),
        ("${BASE} AS build", {"BASE": "other:1"}, ["other:1"]),
        ("--platform=$BUILDPLATFORM app:${TAG}", {}, ["app:1.2"]),
        ("$FULL", {}, ["127.0.0.1:5000/team/web:1.2"]),
        ("$FULL", {"TAG": "2"}, ["127.0.0.1:5000/team/web:2"]),
        ("app:${EMPTY:-dev}", {}, ["app:dev"]),
        ("app:${NONE:-${UNKNOWN:-$TAG}}", {}, ["app:1.2"]),
        ("app:${NONE:-dev}", {"NONE": "given"}, ["app:given"]),
        ("app${TAG:+-slim}", {}, ["app-slim"]),
        ("app${EMPTY:+-slim}", {}, ["app"]),
        ("$UNKNOWN", {"UNKNOWN": "app"}, []),
        ("app:$LATER", {}, []),
        ("$BASE", {"BASE": "$TAG$BASE"}, []),
    ],
)
def test_what_stands_before_the_first_from_is_substituted(name: str, args: dict[str, str], found: list[str]) -> None:
    assert bases(f"{HEADING}FROM {name}\nARG LATER=1\nCOPY --from=$BASE /a /a\n", args) == found


def test_a_stage_may_be_chosen_by_a_variable() -> None:
    assert bases("ARG KIND=dev\nFROM app:1 AS dev\nFROM $KIND\n", {}) == ["app:1"]


@pytest.mark.parametrize("mtime", ["1e300", "inf", "-inf", "nan"])
def test_a_time_that_no_file_can_have(tmp_path: Path, mtime: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("Containerfile", "context/f"):
            info = tarfile.TarInfo(name)
            info.pax_headers = {"mtime": mtime}
            tar.addfile(info)
    (tmp_path / "archive").write_bytes(out.getvalue())
    with pytest.raises(InvalidInput, match="not a whole archive"):
        context.unpack(tmp_path / "archive", tmp_path / "out", 1000)
