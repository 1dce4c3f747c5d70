"""Volumes: disks of their own that outlive containers, and snapshots of them.

A volume is a sparse ext4 file that one VM at a time may write to, or several may read. What is known of volumes stands
in the daemon's database; the container's own writable layer is not among them (`runtime.disks`). A directory of the
host can stand in a volume's place (`runtime.volumes.host_directories`); nothing is known of it but its path.
"""

from __future__ import annotations

from runtime.volumes.index import Snapshot, Volume
from runtime.volumes.store import Volumes

__all__ = ["Snapshot", "Volume", "Volumes"]
