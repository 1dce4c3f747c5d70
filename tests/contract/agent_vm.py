"""A bare micro-VM with the guest init and nothing of the runtime: what the agent's contract tests talk to.

The client here is written from `docs/reference/agent-protocol.md` alone, so that it can disagree with
the runtime's own.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from runtime.vm import initrd
from tests.fakeguest import build_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(os.environ.get("HYPER_TEST_KERNELS", "/var/lib/hyper/kernels"))
BOOT_TIMEOUT_S = 60.0  # a cold boot takes 2 s to 3 s without KVM, on a machine that does nothing else
ANSWER_TIMEOUT_S = 30.0
PROGRAMS = ("qemu-system-x86_64", "mkfs.erofs", "mke2fs", "busybox", "musl-gcc", "make")
CREDIT_BYTES = 256 * 1024
FRAME_BYTES = 32768
RESET, DATA, EOF, CREDIT, EXIT, CLOSE = range(6)

PASSWD = """root:x:0:0:root:/root:/bin/sh
alice:x:1000:1001:Alice:/home/alice:/bin/sh
"""
GROUP = """root:x:0:
alice:x:1001:alice
audio:x:29:bob,alice
video:x:44:alicex
"""


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """What `condition` returns as soon as it is true; fails at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.01)
    return found


def kernel(*, with_modules: bool = False) -> tuple[Path, Path | None]:
    """A kernel and the contents of its `lib/modules/<version>`: `HYPER_TEST_KERNEL_DIR`, else the newest installed.

    `with_modules`: the newest that has any; one with all built in has nothing else either.
    """
    named = os.environ.get("HYPER_TEST_KERNEL_DIR")
    places = [Path(named)] if named else sorted(KERNELS.glob("*/"), reverse=True)
    for place in places:
        modules = [path for path in (*sorted(place.glob("lib/modules/*")), place / "modules") if path.is_dir()]
        if (place / "vmlinuz").is_file() and (modules or not with_modules):
            return place / "vmlinuz", modules[0] if modules else None
    pytest.skip(f"no guest kernel in {named or KERNELS}: set HYPER_TEST_KERNEL_DIR")


def has_9p() -> bool:
    """Whether the kernel of the tests has 9p built in: what the initramfs takes along is built in or there."""
    vmlinuz, _ = kernel()
    config = vmlinuz.with_name("config")
    return config.is_file() and "CONFIG_9P_FS=y" in config.read_text().splitlines()


BEGINNINGS = {
    "spins": "while :; do :; done",
    "eats": "a=0123456789; while :; do a=$a$a$a; done",
    "forks": "(sleep 1000 &) & (sleep 1000 &)",
    "writes": "echo written >/tmp/written",
    "makes": "exec mkdir /tmp/made",
    "kills": "kill -9 1",
}
"""Programs of the image that would do something as soon as they are begun."""


@dataclass(frozen=True, slots=True)
class Assets:
    """What every VM of a test run shares."""

    vmlinuz: Path
    initrd: Path
    image: Path
    acpi: str  # "on", or "off" for a kernel with all built in, which reads its devices from the command line


@functools.cache
def assets() -> Assets:
    """Build the init, its initramfs and a small image, once."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH")
    vmlinuz, modules = kernel()
    place = Path(tempfile.mkdtemp(prefix="hyper-agent-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    subprocess.run(["make", "-s", "-C", str(ROOT / "runtime/guest"), f"OUT={place}"], check=True, timeout=120)
    assert (place / "init").stat().st_size < 1 << 20
    made = initrd.build(place / "init", modules, place / "initrd.cpio")
    # A cloud kernel has no 9p: volumes of the host's directories are refused there.
    assert modules is None or set(made.missing) <= {"9p", "9pnet_virtio"}, made
    root = place / "root"
    for name in ("bin", "etc", "tmp", "home/alice", "opt"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    listed = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    for name in ("nest", "hunt"):
        build_program(name, root / "bin")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / "etc/machine-id").touch()
    (root / "etc/resolv.conf").symlink_to("../run/nowhere/resolv.conf")
    (root / "bin/not-executable").write_text("#!/bin/sh\n")
    (root / "bin/no-interpreter").write_text("#!/nowhere\n")
    (root / "bin/no-format").write_bytes(b"\x7fELF nonsense")
    for name, script in BEGINNINGS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    for name in ("no-interpreter", "no-format", *BEGINNINGS):
        (root / "bin" / name).chmod(0o755)
    subprocess.run(
        ["mkfs.erofs", "-Enoinline_data", str(place / "image.erofs"), str(root)], check=True, capture_output=True
    )
    return Assets(vmlinuz, place / "initrd.cpio", place / "image.erofs", "on" if modules else "off")


def with_module(name: str, out: Path) -> Assets:
    """`assets` with a distribution's kernel, whose init loads one more module; its initramfs is written to `out`."""
    vmlinuz, modules = kernel(with_modules=True)
    shared = assets()
    made = initrd.build(shared.initrd.with_name("init"), modules, out, wanted=(*initrd.WANTED, name))
    assert name in made.modules, made
    return replace(shared, vmlinuz=vmlinuz, initrd=out, acpi="on")


class JsonPort:
    """A client of one JSON port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = _connect(path)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._held = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def line(self) -> bytes:
        """The next answer, as bytes without the newline; b"" if the VM is gone."""
        while b"\n" not in self._held:
            data = self._socket.recv(1 << 16)
            if not data:
                return b""
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line

    def answer(self) -> dict[str, Any]:
        answer = json.loads(self.line())
        assert isinstance(answer, dict)
        return answer

    def ask(self, execute: str, **arguments: Any) -> dict[str, Any]:
        self.send(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
        return self.answer()

    def call(self, execute: str, **arguments: Any) -> Any:
        """What the command returns; fails the test if that is an error."""
        answer = self.ask(execute, **arguments)
        assert "return" in answer, answer
        return answer["return"]

    def refusal(self, execute: str, **arguments: Any) -> tuple[str, str]:
        """Class and text of the error that the command is answered with."""
        answer = self.ask(execute, **arguments)
        assert "error" in answer, answer
        return answer["error"]["class"], answer["error"]["desc"]

    def close(self) -> None:
        self._socket.close()


@dataclass(slots=True)
class Session:
    """What came of one session."""

    out: dict[int, bytes] = field(default_factory=lambda: {1: b"", 2: b""})
    ended: set[int] = field(default_factory=set)
    exit: dict[str, Any] | None = None
    may_send: int = CREDIT_BYTES


class Streams:
    """A client of the streams port that gives credit back as it takes data."""

    def __init__(self, path: Path) -> None:
        self._socket = _connect(path)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._held = b""
        self.sessions: dict[int, Session] = {}
        self.stingy = False  # give no credit back
        self.reset()

    def reset(self) -> None:
        nonce = os.urandom(8)
        self.send(0, RESET, 0, nonce)
        mark = b"\xff" * 16 + struct.pack("<IBBHI", 0, RESET, 0, 0, 8) + nonce
        while mark not in self._held:
            self._receive()
        self._held = self._held.partition(mark)[2]

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        assert data, "the VM is gone"
        self._held += data

    def send(self, session: int, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        self._socket.sendall(struct.pack("<IBBHI", session, kind, stream, 0, len(payload)) + payload)

    def step(self) -> None:
        """Take one frame."""
        while len(self._held) < 12:
            self._receive()
        number, kind, stream, zero, length = struct.unpack_from("<IBBHI", self._held)
        assert zero == 0
        assert length <= FRAME_BYTES
        while len(self._held) < 12 + length:
            self._receive()
        payload, self._held = self._held[12 : 12 + length], self._held[12 + length :]
        session = self.sessions.setdefault(number, Session())
        if kind == DATA:
            assert stream not in session.ended, "data after the end"
            session.out[stream] += payload
            if not self.stingy:
                self.send(number, CREDIT, stream, struct.pack("<I", length))
        elif kind == EOF:
            session.ended.add(stream)
        elif kind == CREDIT:
            session.may_send += struct.unpack("<I", payload)[0]
        elif kind == EXIT:
            session.exit = json.loads(payload)
        else:
            pytest.fail(f"frame of type {kind}")

    def write(self, number: int, data: bytes) -> None:
        """Send stdin within the credit that the guest gives."""
        session = self.sessions.setdefault(number, Session())
        while data:
            while not session.may_send:
                self.step()
            part = data[: min(FRAME_BYTES, session.may_send)]
            session.may_send -= len(part)
            self.send(number, DATA, 0, part)
            data = data[len(part) :]

    def finish(self, number: int) -> Session:
        """Everything until the session's exit."""
        session = self.sessions.setdefault(number, Session())
        while session.exit is None:
            self.step()
        return session

    def close(self) -> None:
        self._socket.close()


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while True:
        try:
            client.connect(str(path))
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {path}"
            time.sleep(0.005)
        else:
            return client


class GuestVm:
    """One VM; `with` ends it."""

    def __init__(
        self, *, memory_mib: int = 128, extra: Sequence[str] = (), append: str = "", shared: Assets | None = None
    ) -> None:
        shared = shared or assets()
        self.place = Path(tempfile.mkdtemp(prefix="hyper-vm-"))
        self._next_session = 0
        writable = self.place / "writable.ext4"
        options = ["-m", "0", "-O", "^resize_inode", "-J", "size=16", "-E", "assume_storage_prezeroed=1"]
        subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, str(writable), "1G"], check=True, capture_output=True)
        arguments = ["qemu-system-x86_64", "-M", f"microvm,acpi={shared.acpi}", "-accel", "tcg", "-m", str(memory_mib)]
        arguments += ["-kernel", str(shared.vmlinuz), "-initrd", str(shared.initrd)]
        arguments += ["-append", f"console=ttyS0 quiet {clock()} {append}"]
        arguments += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        arguments += ["-serial", f"file:{self.place}/console.log", "-device", "virtio-serial-device"]
        for name, sock in (("control", "agent"), ("stats", "agent-stats"), ("streams", "streams")):
            arguments += ["-chardev", f"socket,id={name},path={self.place}/{sock}.sock,server=on,wait=off"]
            arguments += ["-device", f"virtserialport,chardev={name},name=hyper.{name}"]
        arguments += ["-qmp", f"unix:{self.place}/qmp-stats.sock,server=on,wait=off"]
        arguments += ["-chardev", f"file,id=log,path={self.place}/container.log,append=on"]
        arguments += ["-device", "virtserialport,chardev=log,name=hyper.log"]
        arguments += ["-drive", f"if=none,id=a,format=raw,readonly=on,file={shared.image}"]
        arguments += ["-device", "virtio-blk-device,drive=a"]
        arguments += ["-drive", f"if=none,id=b,format=raw,discard=unmap,file={writable}"]
        arguments += ["-device", "virtio-blk-device,drive=b", *extra]
        began = time.monotonic()
        self.process = subprocess.Popen(arguments)
        try:
            self.control = JsonPort(self.place / "agent.sock")
            self.control.call("guest-ping")
            self.boot_s = time.monotonic() - began
            self.stats = JsonPort(self.place / "agent-stats.sock")
            self.streams = Streams(self.place / "streams.sock")
        except BaseException:
            print(self.console())
            self.close()
            raise

    def console(self) -> str:
        path = self.place / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *args: str, **more: Any) -> dict[str, Any]:
        answer = self.control.call("hyper-start", **start_arguments(*args, **more))
        assert isinstance(answer, dict)
        return answer

    def exec(self, *args: str, **more: Any) -> int:
        """Start a session; return its number."""
        self._next_session += 1
        self.control.call("hyper-exec", session=self._next_session, args=list(args), **{"env": [], **more})
        return self._next_session

    def run(self, *args: str, **more: Any) -> tuple[int, bytes, bytes]:
        """Run a session to its end: exit code, stdout, stderr."""
        done = self.streams.finish(self.exec(*args, **more))
        assert done.exit is not None
        return done.exit["exit_code"], done.out[1], done.out[2]

    def wait(self) -> int:
        """Wait until the VM has ended by itself; QEMU's exit code."""
        return self.process.wait(timeout=60)

    def records(self) -> list[tuple[int, bytes]]:
        """The log's records as (type, payload); fails the test on a byte that belongs to none."""
        data, records, at = (self.place / "container.log").read_bytes(), [], 0
        while at < len(data):
            magic, kind, zero, length, time_ns = struct.unpack_from("<2sBBIQ", data, at)
            assert (magic, zero) == (b"HP", 0)
            assert length <= 65536
            assert time_ns > 0
            payload = data[at + 16 : at + 16 + length]
            assert len(payload) == length, "the last record is cut"
            records.append((kind, payload))
            at += 16 + length
        return records

    def output(self, kind: int = 1) -> bytes:
        return b"".join(payload for of, payload in self.records() if of == kind)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for kind, payload in self.records() if kind == 3]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for name in ("control", "stats", "streams"):
            if hasattr(self, name):
                getattr(self, name).close()
        shutil.rmtree(self.place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def start_arguments(*args: str, writable: bool = True, read_only: bool = False, **more: Any) -> dict[str, Any]:
    """Arguments of hyper-start for a program of the test image."""
    disk = {"device": "vdb", "fstype": "ext4", "options": "discard"} if writable else None
    root = {"image": {"device": "vda", "fstype": "erofs"}, "writable": disk, "read_only": read_only}
    return {"root": root, "tmpfs": [], "args": list(args), "env": [], "cwd": "/", "user": "", **more}


def clock() -> str:
    """Calibrating the TSC is a matter of luck under TCG: tell the guest."""
    found = re.search(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"tsc_early_khz={round(float(found[1]) * 1000)} tsc=reliable" if found else ""
