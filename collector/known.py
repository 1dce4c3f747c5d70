"""What a guest calls its interfaces and disks, over an epoch: names are series, and Prometheus keeps each that it saw.

A guest may rename them at each sample. What it named first is taken, and nothing beyond: so its series stay as few as
they are in one sample.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collector.sources.guest import GuestSample

MAX_INTERFACES: Final = 8


class Known:
    """The first names of an epoch: `MAX_INTERFACES` of interfaces, one number of each disk."""

    def __init__(self) -> None:
        self._interfaces: set[str] = set()
        self._numbers: dict[str, bytes] = {}

    def of(self, sample: GuestSample, devices: Iterable[str]) -> tuple[GuestSample, int]:
        """The sample without later names, and how many there were. `devices`: the disks that have series."""
        later = {interface.name for interface in sample.interfaces if not self._takes(interface.name)}
        if later:
            kept = tuple(interface for interface in sample.interfaces if interface.name not in later)
            sample = replace(sample, interfaces=kept)
        renumbered = {device for device in devices if device in sample.disks and not self._has(device, sample)}
        if renumbered:
            kept_disks = {device: disk for device, disk in sample.disks.items() if device not in renumbered}
            sample = replace(sample, disks=kept_disks)
        return sample, len(later) + len(renumbered)

    def _has(self, device: str, sample: GuestSample) -> bool:
        number, _ = sample.disks[device]
        return self._numbers.setdefault(device, number) == number

    def _takes(self, name: str) -> bool:
        if name not in self._interfaces:
            if len(self._interfaces) == MAX_INTERFACES:
                return False
            self._interfaces.add(name)
        return True
