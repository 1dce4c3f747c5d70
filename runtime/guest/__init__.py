"""The guest init: the static C program that is PID 1 of every micro-VM.

It mounts, loads modules, speaks `docs/reference/agent-protocol.md` over virtio-serial, and runs one container.
There is no Python here; `make -C runtime/guest OUT=DIR` builds `DIR/init`, and `runtime.vm.initrd` packs it.
"""
