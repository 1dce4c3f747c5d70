"""Registries that hang, stall or flood: a hand-made server on loopback, the real skopeo in front of it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

from runtime.errors import Upstream
from runtime.images import registry as registry_module
from tests.contract.images.conftest import leftovers, processes_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.images import ImageStore

CONFIG = json.dumps(
    {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
).encode()
LAYER_BYTES = 1000
NOISE = os.urandom(1 << 20)  # zeros would do little: skopeo compresses what is not compressed


def descriptor(content: bytes, media_type: str) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


OCI = "application/vnd.oci.image"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": descriptor(CONFIG, f"{OCI}.config.v1+json"),
        "layers": [descriptor(bytes(LAYER_BYTES), f"{OCI}.layer.v1.tar+gzip")],
    }
).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """What a request meets is in the repository's name."""

    ended: threading.Event  # set when the test is over

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(b"{}", "application/json")
        elif self.path.startswith("/v2/hang/"):
            self.ended.wait(60)
        elif self.path.startswith("/v2/huge/manifests/"):
            self._flood()
        elif "/manifests/" in self.path:
            self._answer(MANIFEST, f"{OCI}.manifest.v1+json")
        elif self.path.endswith(hashlib.sha256(CONFIG).hexdigest()):
            self._answer(CONFIG, "application/octet-stream")
        elif self.path.startswith("/v2/flood/"):
            self._flood()
        else:  # stall: a beginning, and no more
            self.send_response(200)
            self.send_header("Content-Length", str(LAYER_BYTES))
            self.end_headers()
            self.wfile.write(b"x")
            self.wfile.flush()
            self.ended.wait(60)

    do_HEAD = do_GET  # noqa: N815 -- the name that http.server looks for

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _flood(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{OCI}.manifest.v1+json")
        self.end_headers()
        try:
            while not self.ended.is_set():
                self.wfile.write(NOISE)
        except OSError:
            return


@pytest.fixture
def host() -> Iterator[str]:
    handler = type("Bound", (Handler,), {"ended": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    handler.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("repository", "limit", "message"),
    [
        ("hang", "INSPECT_TIMEOUT_S", "did not answer within 1 s: check the network"),
        ("huge", None, "larger than|failed"),
        ("stall", "STALL_TIMEOUT_S", "has sent nothing for 1 s"),
        ("flood", None, "sends more than the 1000 bytes|another digest|failed"),
    ],
)
async def test_hostile_registry(
    host: str,
    store: ImageStore,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: str,
    limit: str | None,
    message: str,
) -> None:
    if limit:
        monkeypatch.setattr(registry_module, limit, 1.0)
    with pytest.raises(Upstream, match=message) as caught:
        await store.pull(f"{host}/{repository}:1")
    print(f"{repository}: {caught.value}")
    assert leftovers(data_dir) == []
    assert processes_below(data_dir) == []
