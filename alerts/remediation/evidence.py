"""What a container was like before it was acted on: hyperd saves it, and with it the exporter's last samples.

The samples are given to hyperd: the controller may write nowhere but to a directory of its own, and so everything about
one moment is in one place and has one end. A rollback of a broken service must not be prevented by a full disk: what
could not be saved is written down instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alerts.errors import HyperdAway, HyperdRefused, NoSamples

if TYPE_CHECKING:
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Decision
    from alerts.remediation.samples import Exporter


class EvidenceSaver:
    """Has evidence saved."""

    def __init__(self, hyperd: Hyperd, exporter: Exporter) -> None:
        self._hyperd = hyperd
        self._exporter = exporter

    async def save(self, intent: Decision, reason: str) -> str:
        """Save it once for an intent; returns where, or why not. Raises nothing that has to do with evidence."""
        assert intent.container_id is not None  # noqa: S101 -- an intent has it
        samples, missing = None, ""
        mark = f'id="{intent.container_id}"'.encode()
        try:
            samples = (await self._exporter.lines(lambda line: mark in line)).decode(errors="replace")
        except NoSamples as err:
            missing = f", without samples: {err}"
        try:
            # Its own id: hyperd knows one call by one id.
            saved = await self._hyperd.evidence(intent.container_id, reason, f"{intent.id}-evidence", samples)
        except (HyperdAway, HyperdRefused) as err:
            return f"not saved: {err}"
        return f"{saved.path}{missing}"
