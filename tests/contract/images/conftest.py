"""A real registry on loopback, for images that the tests make by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.images import ImageStore
from tests.contract.images import layouts

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class TestRegistry:
    """A running `docker-registry`; `root` is where it keeps its blobs."""

    __test__ = False

    host: str
    root: Path
    scratch: Path

    def push(self, name: str, layers: list[bytes], **options: Any) -> str:
        """Push an image of these layers as `name` (with its tag); return the digest of its manifest."""
        layout = self.scratch / name.replace("/", "_").replace(":", "_")
        shutil.rmtree(layout, ignore_errors=True)
        digest = layouts.write_layout(layout, layers, **options)
        self.copy(f"oci:{layout}:image", name)
        return digest

    def copy(self, source: str, name: str, *options: str) -> None:
        """Copy any skopeo source to `name`."""
        command = ["skopeo", "copy", "-q", *options, "--dest-tls-verify=false", source, f"docker://{self.host}/{name}"]
        subprocess.run(command, check=True, capture_output=True)

    def blob(self, digest: str) -> Path:
        """The file of a blob in the registry."""
        value = digest.removeprefix("sha256:")
        return self.root / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRegistry]:
    missing = [name for name in ("docker-registry", "skopeo", "umoci", "mkfs.erofs") if shutil.which(name) is None]
    if missing:
        pytest.fail(f"not on this host: {', '.join(missing)}; run: make setup")
    directory = tmp_path_factory.mktemp("registry")
    with serve(directory, {}, {}) as port:
        yield TestRegistry(f"127.0.0.1:{port}", directory / "root", tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A registry with TLS of a CA of its own that wants a password: its address, and the directory with the CA."""
    directory = tmp_path_factory.mktemp("locked")
    (directory / "ca").mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", directory / "key.pem",
         "-out", directory / "ca/ca.crt"], check=True, capture_output=True,
    )  # fmt: skip
    (directory / "htpasswd").write_text(
        "robot:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
    )  # secret
    auth = {"auth": {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}}
    tls = {"tls": {"certificate": str(directory / "ca/ca.crt"), "key": str(directory / "key.pem")}}
    with serve(directory, auth, tls) as port:
        yield f"127.0.0.1:{port}", directory / "ca"


@contextmanager
def serve(directory: Path, settings: dict[str, Any], http: dict[str, Any]) -> Iterator[int]:
    """Run a `docker-registry` with its storage in a directory; gives its port."""
    port = free_port()
    config = directory / "config.yml"
    whole = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "root")}},
        "http": {"addr": f"127.0.0.1:{port}", **http},
        **settings,
    }
    config.write_text(json.dumps(whole))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "the registry does not answer"
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[ImageStore]:
    store = ImageStore(data_dir)
    yield store
    store.close()


def leftovers(data_dir: Path) -> list[str]:
    """What is in the image directory beside whole images."""
    return [
        str(path.relative_to(data_dir))
        for path in (data_dir / "images").iterdir()
        if sorted(one.name for one in path.iterdir()) != ["config.json", "image.erofs"]
    ]


def processes_below(directory: Path) -> list[str]:
    """Command lines of processes whose working directory or arguments lie in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cwd = str((process / "cwd").readlink())
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(directory) in command or cwd.startswith(str(directory))):
            found.append(command)
    return found
