"""What a container was like before it was acted on: hyperd saves it, and the exporter's last samples go beside it.

A rollback of a broken service must not be prevented by a full disk: what could not be saved is written down instead.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from alerts.errors import HyperdAway, HyperdRefused

if TYPE_CHECKING:
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Decision

SAMPLES_FILE: Final = "samples.prom"
SAMPLES_TIMEOUT_S: Final = 5.0
MAX_SCRAPE_BYTES: Final = 64 << 20
MAX_SAMPLES_BYTES: Final = 4 << 20


class EvidenceSaver:
    """Saves evidence under `directory`, which is `<data_dir>/evidence`."""

    def __init__(self, hyperd: Hyperd, exporter_url: str, directory: Path) -> None:
        self._hyperd = hyperd
        self._exporter_url = exporter_url
        self._directory = directory

    async def save(self, intent: Decision, reason: str) -> str:
        """Save it once for an intent; returns where, or why not. Raises nothing that has to do with evidence."""
        assert intent.container_id is not None  # noqa: S101 -- an intent has it
        samples, saved = await asyncio.gather(
            self._samples(intent.container_id),
            # Its own id: hyperd knows one call by one id.
            self._hyperd.evidence(intent.container_id, reason, f"{intent.id}-evidence"),
            return_exceptions=True,
        )
        if isinstance(saved, HyperdAway | HyperdRefused):
            return f"not saved: {saved}"
        if isinstance(saved, BaseException):
            raise saved
        if isinstance(samples, BaseException):
            return f"{saved.path}, without samples: {samples or type(samples).__name__}"
        try:
            await asyncio.to_thread(self._write, Path(saved.path), samples)
        except OSError as err:
            return f"{saved.path}, without samples: {err.strerror}"
        return saved.path

    async def _samples(self, container_id: str) -> bytes:
        """The lines of a container in the exporter's answer."""
        mark = f'id="{container_id}"'.encode()
        found = bytearray()
        rest, seen = b"", 0
        async with (
            asyncio.timeout(SAMPLES_TIMEOUT_S),
            httpx.AsyncClient(timeout=SAMPLES_TIMEOUT_S, trust_env=False) as client,
            client.stream("GET", f"{self._exporter_url.rstrip('/')}/metrics") as answer,
        ):
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                seen += len(piece)
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if mark in line and len(found) + len(line) < MAX_SAMPLES_BYTES:
                        found += line + b"\n"
                if seen > MAX_SCRAPE_BYTES:
                    break
        return bytes(found)

    def _write(self, path: Path, samples: bytes) -> None:
        if path.parent != self._directory:
            raise OSError(0, f"{path} is not in {self._directory}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path / SAMPLES_FILE, flags, 0o600), "wb") as file:
            file.write(samples)
