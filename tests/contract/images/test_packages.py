"""Packages of real images: what dpkg itself says of this host, and images that say what is not so."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.errors import RuntimeFault
from runtime.images import packages
from runtime.images.packages import Package, PackageList, Packages
from tests.contract.images.layouts import entry, layer

if TYPE_CHECKING:
    from runtime.images import ImageStore
    from tests.contract.images.conftest import TestRegistry

ONE = b"Package: a1\nStatus: install ok installed\nVersion: 1-1\n"
STATUS = Path("/var/lib/dpkg/status")
RELEASE = b'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n'


def said_by_dpkg() -> set[Package]:
    form = "${db:Status-Status} ${Package} ${Version} ${source:Package} ${source:Version}\n"
    said = subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True).stdout
    return {Package(*line.split()[1:]) for line in said.splitlines() if line.startswith("installed ")}


async def test_an_image_has_the_packages_that_dpkg_says_it_has(registry: TestRegistry, store: ImageStore) -> None:
    real = STATUS.read_bytes()
    directories = [entry(name, tarfile.DIRTYPE) for name in ("etc", "usr", "usr/lib", "var", "var/lib", "var/lib/dpkg")]
    base = layer(
        *directories,
        entry("etc/os-release", tarfile.SYMTYPE, linkname="../usr/lib/os-release"),
        entry("usr/lib/os-release", data=RELEASE),
        entry("var/lib/dpkg/status", data=ONE),
    )
    registry.push("packages:1", [base, layer(entry("var/lib/dpkg/status", data=real))])
    registry.push("packages:2", [base, layer(entry("var/lib/dpkg/.wh.status"))])
    whole, without = [await store.pull(f"{registry.host}/packages:{number}") for number in (1, 2)]
    asked = Packages()
    found = await asked.of(whole)
    installed = said_by_dpkg()
    assert (found.distribution, found.version) == ("debian", "12")
    assert found.packages is not None
    assert set(found.packages) == installed
    assert len(installed) > 50
    assert any(one.source_version != one.version for one in installed)
    assert await asked.of(without) == PackageList("debian", "12", None)
    shutil.rmtree(whole.file.parent)
    assert await asked.of(whole) is found, "an image does not change"
    with pytest.raises(RuntimeFault, match="cannot be read"):
        await Packages().of(whole)
    for number in range(packages.KEPT):
        await asked.of(replace(without, digest=str(number)))
    with pytest.raises(RuntimeFault, match="cannot be read"):
        await asked.of(whole)


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "large", "link above", "none"])
def test_what_is_no_plain_file_of_its_name_is_not_read(kind: str, tmp_path: Path) -> None:
    root, file = tmp_path / "root", tmp_path / "image.erofs"
    directory = root / "var/lib/dpkg"
    (directory.parent if kind == "link above" else directory).mkdir(parents=True)
    status = directory / "status"
    if kind == "link":
        status.symlink_to("/var/lib/dpkg/status")
    elif kind == "directory":
        status.mkdir()
    elif kind == "pipe":
        os.mkfifo(status)
    elif kind == "large":
        with status.open("wb") as sparse:
            sparse.truncate(packages.STATUS_LIMIT_BYTES + 1)
    elif kind == "link above":
        directory.symlink_to("/var/lib/dpkg")
    subprocess.run(["mkfs.erofs", "--quiet", "-Enoinline_data", file, root], check=True)
    assert asyncio.run(packages.read(file)) == PackageList(None, None, None)


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (b"", []),
        (ONE, ["a1"]),
        (ONE + b"\n" + ONE.replace(b"a1", b"b2"), ["a1", "b2"]),
        (ONE.replace(b"a1", b"../a"), []),
        (ONE.replace(b"1-1", b"1 1"), []),
        (ONE.replace(b"ok installed", b"ok not-installed") + b"\n" + ONE, ["a1"]),
        (ONE.replace(b"install ok installed", b"deinstall ok config-files"), []),
        (ONE + b"Source: b1 (2\n", []),
        (ONE + b" Package: z\nDescription: a\n Version: 7\n", ["a1"]),
        (b"\xff\xfe" * 1000 + b"\n\n" + ONE, ["a1"]),
        (b"\n" * 10 + ONE, ["a1"]),
        (b"\n" * (4 * packages.PACKAGES_LIMIT) + ONE, []),
    ],
)
def test_of_a_status_is_taken_what_has_its_form(raw: bytes, names: list[str]) -> None:
    assert [one.name for one in packages.parse_status(raw)] == names


def test_the_source_has_a_version_of_its_own_or_the_package_s() -> None:
    raw = ONE + b"Source: src (1)\n\n" + ONE + b"Source: src\n\n" + ONE
    assert packages.parse_status(raw) == (
        Package("a1", "1-1", "src", "1"), Package("a1", "1-1", "src", "1-1"), Package("a1", "1-1", "a1", "1-1"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (RELEASE, ("debian", "12")),
        (b"ID='ubuntu'\nVERSION_ID=22.04\n", ("ubuntu", "22.04")),
        (b"ID=debian\n", ("debian", None)),
        (b"XID=a\nID=$(x)\nVERSION_ID=\n\xff", (None, None)),
    ],
)
def test_a_release_names_itself(raw: bytes, found: tuple[str | None, str | None]) -> None:
    assert packages.parse_release(raw) == found
