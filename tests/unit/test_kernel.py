"""Which guest kernel is taken and why, what it can do, and what is said of one that will not do."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import Config
from runtime.errors import HostUnable
from runtime.vm import kernel, kernel_options

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "runtime" / "kernel" / "config"
SCRIPT = ROOT / "scripts" / "kernel"
REQUIRED = [option for feature in kernel.FEATURES if feature.required for option in feature.options]
BUILT_IN = "".join(f"CONFIG_{option}=y\n" for option in REQUIRED)
BY_ACPI = BUILT_IN + "CONFIG_ACPI=y\n"


def image(version: str, payload: bytes = b"") -> bytes:
    """A file with the boot header's fields that are read (Documentation/arch/x86/boot.rst)."""
    header = bytearray(0x400)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x20E, 0x300 - 0x200)
    text = f"{version} (root@build) #1 SMP".encode() + b"\0"
    header[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<II", header, 0x248, 64, len(payload))
    return bytes(header) + b"\0" * 64 + payload


def embed(options: str) -> bytes:
    return b"\x7fELF code" + b"IKCFG_ST" + gzip.compress(options.encode()) + b"IKCFG_ED" + b"more code"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    init = tmp_path / "init"
    init.write_bytes(b"\x7fELF program")
    return Config(data_dir=tmp_path / "data", guest_init=init)


@pytest.fixture
def put(config: Config) -> Callable[..., Path]:
    """Put a kernel below the data directory, with a configuration beside it."""

    def one(version: str, options: str | None = BY_ACPI, directory: str = "") -> Path:
        place = config.data_dir / "kernels" / (directory or version)
        place.mkdir(parents=True)
        (place / "vmlinuz").write_bytes(image(version))
        if options is not None:
            (place / "config").write_text(options)
        return place / "vmlinuz"

    return one


def test_the_newest_is_by_number_and_the_reason_is_told(config: Config, put: Callable[..., Path]) -> None:
    put("6.1.0-9-cloud-amd64")
    newest = put("6.1.0-56-cloud-amd64")
    found = kernel.find(config)
    assert (found.file, found.version) == (newest, "6.1.0-56-cloud-amd64")
    assert "distribution's newest" in found.reason
    assert "make kernel" in found.reason


def test_ours_goes_before_newer_ones_and_half_made_ones_are_not_seen(config: Config, put: Callable[..., Path]) -> None:
    put("6.9.0-1-amd64")
    put("6.1.99-hyper")
    newest = put("6.1.192-hyper")
    put("6.1.200-hyper", directory=".6.1.200-hyper.new")
    found = kernel.find(config)
    assert found.file == newest
    assert "built by 'make kernel'" in found.reason


def test_the_configured_one_goes_before_all(config: Config, put: Callable[..., Path], tmp_path: Path) -> None:
    put("6.1.192-hyper")
    own = tmp_path / "own" / "bzImage"
    own.parent.mkdir()
    own.write_bytes(image("5.10.0", embed(BY_ACPI)))
    found = kernel.find(config.model_copy(update={"kernel": own}))
    assert (found.file, found.version) == (own, "5.10.0")
    assert "HYPER_KERNEL" in found.reason


def test_an_unpacked_one_is_loaded_if_it_has_an_entry_for_that(config: Config, put: Callable[..., Path]) -> None:
    packed = put("6.1.192-hyper", BY_ACPI + "CONFIG_PVH=y\n")
    first = kernel.find(config)
    unpacked = packed.with_name("vmlinux")
    unpacked.write_bytes(b"\x7fELF Linux version 6.1.192-hyper (hyper@hyper)")
    found = kernel.find(config)
    assert (first.file, found.file) == (packed, unpacked)
    assert first.key != found.key, "a template is of one of them"
    unpacked.write_bytes(b"\x7fELF Linux version 6.1.19 (hyper@hyper)")
    with pytest.raises(HostUnable, match=r"vmlinux is not of the same kernel as .*make kernel"):
        kernel.find(config)
    packed.with_name("config").write_text(BY_ACPI)
    assert kernel.find(config).file == packed, "QEMU could not enter it"


def test_what_is_built_in_needs_no_modules_and_what_is_absent_is_told(config: Config, put: Callable[..., Path]) -> None:
    put("6.1.0", BUILT_IN + "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\nCONFIG_HW_RANDOM_VIRTIO=y\nCONFIG_9P_FS=y\n")
    found = kernel.find(config)
    assert found.needs_acpi is False
    assert found.lacks == ("9p", kernel.SEVERAL_CPUS), "the file system without its transport is of no use"
    found.require("virtio_rng", "anything")
    with pytest.raises(HostUnable, match=r"-v needs 9p, which the guest kernel 6\.1\.0 lacks.*make kernel") as refused:
        found.require("9p", "-v", field="volumes")
    assert refused.value.field == "volumes"


def test_a_modular_kernel_without_its_modules_is_refused(config: Config, put: Callable[..., Path]) -> None:
    put("6.1.0-77-test", BY_ACPI.replace("CONFIG_VIRTIO_BLK=y", "CONFIG_VIRTIO_BLK=m"))
    with pytest.raises(HostUnable, match=r"drivers as modules, and there are none in .*/modules.*make kernel"):
        kernel.find(config)


def test_a_kernel_that_nothing_is_known_of_is_refused(config: Config, put: Callable[..., Path]) -> None:
    put("6.1.0-77-test", None)
    with pytest.raises(HostUnable, match=r"no modules in .* nothing tells what is built into it.*make kernel"):
        kernel.find(config)


def test_a_kernel_that_lacks_what_guests_need_is_refused(config: Config, put: Callable[..., Path]) -> None:
    put("6.1.0", BY_ACPI.replace("CONFIG_EROFS_FS=y\n", ""))
    with pytest.raises(HostUnable, match=r"lacks erofs, which every guest needs.*make kernel"):
        kernel.find(config)


def test_a_kernel_that_cannot_find_its_devices_is_refused(config: Config, put: Callable[..., Path]) -> None:
    put("6.1.0", BUILT_IN)
    with pytest.raises(HostUnable, match=r"neither by ACPI .* nor on its command line"):
        kernel.find(config)


def test_modules_beside_the_kernel_count_and_get_acpi(config: Config, put: Callable[..., Path]) -> None:
    place = put("6.1.0-77-test", None).parent / "modules"
    (place / "kernel").mkdir(parents=True)
    names = [feature.modules[0] for feature in kernel.FEATURES if feature.required]
    (place / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in names))
    found = kernel.find(config)
    assert found.needs_acpi is True
    assert found.lacks == ("virtio_rng", "9p")


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda data: data, id="plain"),
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(bz2.compress, id="bzip2"),
        pytest.param(lzma.compress, id="xz"),
        pytest.param(lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE), id="lzma"),
        pytest.param(lambda data: subprocess.run(["lz4", "-lc"], input=data, stdout=-1, check=True).stdout, id="lz4"),
    ],
)
def test_options_are_read_from_the_image(pack: Callable[[bytes], bytes]) -> None:
    size = b"\x10\x27\0\0"  # what the kernel's build appends to some formats
    found = kernel_options.embedded(image("6.1.0", pack(embed("CONFIG_ACPI=y\n# CONFIG_PCI is not set\n")) + size))
    assert found == "CONFIG_ACPI=y\n# CONFIG_PCI is not set\n"
    assert kernel_options.parse(found) == {"ACPI": "y"}


def test_an_image_without_options_says_nothing() -> None:
    assert kernel_options.embedded(image("6.1.0", gzip.compress(b"code"))) is None
    assert kernel_options.embedded(b"IKCFG_ST" + b"no gzip" + b"IKCFG_ED") is None


@given(st.binary(max_size=2048))
def test_no_image_breaks_the_reader(junk: bytes) -> None:
    kernel_options.embedded(junk)
    kernel_options.embedded(image("6.1.0", junk))


def test_our_own_list_has_all_that_guests_need() -> None:
    options = kernel_options.parse(OURS.read_text())
    wanted = [option for feature in kernel.FEATURES for option in feature.options]
    wanted += ["VIRTIO_MMIO_CMDLINE_DEVICES", "X86_MPPARSE", "IKCONFIG"]
    assert [option for option in wanted if options.get(option) != "y"] == []
    assert options["LOCALVERSION"] == f'"{kernel.OURS}"'


def test_our_own_list_names_no_option_twice_and_nothing_is_a_module() -> None:
    lines = [line for line in OURS.read_text().splitlines() if line and not line.startswith("#")]
    names = [line.partition("=")[0] for line in lines]
    assert len(names) == len(set(names))
    assert all(name.startswith("CONFIG_") for name in names)
    assert [line for line in lines if line.endswith("=m")] == []


def checked(made: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "check", made], capture_output=True, text=True, check=False)


def test_the_build_ends_where_an_option_was_dropped_and_names_it(tmp_path: Path) -> None:
    lines = [line for line in OURS.read_text().splitlines() if line.startswith("CONFIG_") and not line.endswith("=n")]
    made = tmp_path / ".config"
    made.write_text("\n".join(lines))
    assert (checked(made).returncode, checked(made).stderr) == (0, "")
    dropped = [line for line in lines if line != "CONFIG_X86_MPPARSE=y"]
    made.write_text("\n".join([*dropped, "CONFIG_PCI=y", "CONFIG_NR_CPUS=16000"]).replace("CONFIG_NR_CPUS=16\n", ""))
    done = checked(made)
    assert done.returncode == 1
    assert "3 lines" in done.stderr
    assert done.stderr.split(": ")[-1].split() == ["CONFIG_NR_CPUS=16", "CONFIG_X86_MPPARSE=y", "CONFIG_PCI=n"]
