"""A real registry on loopback: docker-registry with its storage in a directory of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from tests.images.build import TAG

if TYPE_CHECKING:
    from types import TracebackType

READY_TIMEOUT_S = 20.0
PUSH_TIMEOUT_S = 120.0


def config(address: str, storage: Path) -> dict[str, Any]:
    """The configuration of docker-registry; its file is YAML, of which JSON is a part."""
    return {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": address},
    }


def push(layout: Path, reference: str) -> str:
    """Copy the image of an OCI layout to a registry without TLS, and return the digest of its manifest there.

    Raises:
        RuntimeError: skopeo failed; the message has what it said.
    """
    with TemporaryDirectory() as scratch:
        argv = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
        done = subprocess.run(
            [*argv, f"--digestfile={scratch}/digest", f"oci:{layout}:{TAG}", f"docker://{reference}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PUSH_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise RuntimeError(f"skopeo could not push {reference}: {done.stderr.strip()}")
        return Path(scratch, "digest").read_text().strip()


class Registry:
    """`with Registry(directory) as registry:` runs one until the end of the block.

    `address` is host:port; the port is a free one unless it is given. `notified` is a URL that is told of pushes.
    """

    def __init__(self, directory: Path, port: int | None = None, notified: str | None = None) -> None:
        self.directory = directory
        self.notified = notified
        self.address = f"127.0.0.1:{port or _free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "registry.yml"
        settings = config(self.address, self.directory / "storage")
        if self.notified is not None:
            endpoint = {"name": "test", "url": self.notified, "timeout": "2s", "threshold": 3, "backoff": "1s"}
            settings["notifications"] = {"endpoints": [endpoint]}
        file.write_text(json.dumps(settings))
        with (self.directory / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def push(self, layout: Path, repository: str, tag: str = TAG) -> str:
        """Push an image and return its digest; it is then at `{address}/{repository}:{tag}`."""
        return push(layout, f"{self.address}/{repository}:{tag}")

    def stop(self) -> None:
        """End the registry; what was pushed stays in the directory."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://{self.address}/v2/", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)  # between two looks at the condition
        log = (self.directory / "registry.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"docker-registry did not answer on {self.address} within {READY_TIMEOUT_S:.0f} s:\n{log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
