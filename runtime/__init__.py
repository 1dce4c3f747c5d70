"""The per-host runtime: launches OCI images as QEMU micro-VMs and owns their life.

Nothing here knows of metrics. What other rooms may use is the record of a container (`runtime.record`), the
configuration (`runtime.config`) and the client of the daemon's API (`runtime.client`).
"""
