"""`GET /stats`: what `hyper stats` shows, as JSON. A number that is not known is null."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collector.snapshot import Snapshot


def render(snapshot: Snapshot, now_s: float) -> bytes:
    """The containers that there are, removed ones left out, by name."""
    containers = sorted(snapshot.containers.values(), key=lambda c: (c.name, c.id))
    answer = {
        "containers": [
            {
                "id": container.id,
                "name": container.name,
                "state": container.state,
                **asdict(container.summary),
                "memory_limit_bytes": container.memory_limit_bytes,
                "sample_age_s": _age(container.sampled_at.get("guest"), now_s),
            }
            for container in containers
            if not container.removed
        ]
    }
    return json.dumps(answer).encode()


def _age(sampled_at: float | None, now_s: float) -> float | None:
    return None if sampled_at is None else round(max(0.0, now_s - sampled_at), 3)
