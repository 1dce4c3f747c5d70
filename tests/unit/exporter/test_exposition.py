"""The exposition is sent in pieces: they are one text of one moment, and come as HTTP has it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from collector.catalogue import container
from collector.snapshot import ContainerSnapshot, Point, Snapshot, Summary
from exporter.exposition import Exposition
from exporter.server import Application

COUNT = 1500
METRICS = (container.MEMORY_USAGE_BYTES, container.MEMORY_RSS)


def snapshot(value: float) -> Snapshot:
    containers = {
        f"{number:064x}": ContainerSnapshot(
            id=f"{number:064x}",
            name=f"wéb{number}",
            state="running",
            base_values=(f"{number:064x}", f"wéb{number}", "", "", "", ""),
            points=tuple(Point(metric, (), value) for metric in METRICS),
            summary=Summary(),
            memory_limit_bytes=0,
            taken_at=0.0,
            sampled_at={"guest": 0.0},
        )
        for number in range(COUNT)
    }
    return Snapshot(1, 0.0, MappingProxyType(containers), ())


def test_all_pieces_are_of_the_moment_at_which_they_were_asked_for() -> None:
    exposition = Exposition()
    exposition.update(snapshot(1))
    whole = exposition.render("text", (), 1.0)
    pieces = exposition.pieces("text", (), 1.0)
    first = next(pieces)
    exposition.update(snapshot(2))
    rest = [*pieces]
    assert len(rest) > 1
    assert b"".join([first, *rest]) == whole
    lines = [line for line in whole.decode().splitlines() if not line.startswith("#")]
    assert len(lines) == COUNT * (len(METRICS) + 1)
    assert lines[-1].endswith(" 1.000")
    assert exposition.render("text", (), 1.0) != whole


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_length_of_an_answer_is_told_where_it_is_known(method: str, encoding: bytes) -> None:
    application = Application("0")
    application.publish(snapshot(1))
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("a scrape has no body")

    scope = {"type": "http", "path": "/metrics", "method": method, "headers": [(b"accept-encoding", encoding)]}
    await application(scope, receive, send)
    start, *bodies = sent
    length = dict(start["headers"]).get(b"content-length")
    size = sum(len(message.get("body", b"")) for message in bodies)
    assert start["status"] == 200
    assert (length is None) == (encoding == b"identity")
    assert (size > 0) == (method == "GET")
    assert length is None or method == "HEAD" or int(length) == size
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [False]
