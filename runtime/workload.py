"""What a guest is asked to run, from the container's specification and its image."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from runtime import cgroups, disks
from runtime.vm import machine
from runtime.vm.launch import Root

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.disks import Mounted
    from runtime.images.image import Image
    from runtime.life import Container
    from runtime.spec import Spec
    from runtime.vm import launch

_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments(spec: Spec, image: Image) -> list[str]:
    """The container's command line, by Docker's rules: an entrypoint of the caller's drops the image's Cmd."""
    if spec.entrypoint is not None:
        return [*spec.entrypoint, *(spec.args or ())]
    return [*image.config.entrypoint, *(spec.args or image.config.cmd)]


def environment(spec: Spec, image: Image, hostname: str) -> list[str]:
    """The image's environment under the caller's, who takes a variable away by its name alone.

    What is not there of PATH, HOSTNAME and HOME, the guest sets.
    """
    merged: dict[str, str] = {}
    for entry in (_DEFAULT_PATH, f"HOSTNAME={hostname}", *image.config.env, *spec.env):
        name, equals, value = entry.partition("=")
        merged[name] = value
        if not equals:
            del merged[name]
    return [f"{name}={value}" for name, value in merged.items()]


def root(container: Container, image: Image) -> Root:
    """What a start of this container begins with."""
    env = environment(container.spec, image, "")
    path = next((entry for entry in env if entry.startswith("PATH=")), _DEFAULT_PATH)
    return Root(image.file, next(iter(arguments(container.spec, image)), ""), path.partition("=")[2])


def writable(container: Container) -> Path:
    """The file of its writable layer."""
    return container.data_directory / "writable.ext4"


def process(container: Container, image: Image, *, layer_mounted: Mounted | None = None) -> dict[str, object]:
    """The members of `hyper-start` but for the volumes; `layer_mounted`: how its writable layer is mounted already."""
    spec, guest, limits = container.spec, container.record.guest, container.record.limits
    layer: dict[str, object] = {"device": guest.writable_device, "fstype": "ext4"}
    if guest.writable_device:
        keep = not spec.auto_remove
        layer |= disks.mount_options(writable(container), keep=keep, mounted=layer_mounted)
    return {
        "root": {
            "image": {"device": guest.image_device, "fstype": "erofs"},
            "writable": layer if guest.writable_device else None,
            "read_only": spec.read_only,
        },
        "tmpfs": [one.model_dump() for one in spec.tmpfs],
        "args": arguments(spec, image),
        "env": environment(spec, image, spec.hostname or container.id[:12]),
        "cwd": spec.cwd or image.config.working_dir or "/",
        "user": spec.user or image.config.user,
        "tty": spec.tty,
        "init": spec.init,
        "rows": spec.terminal_size[0] if spec.terminal_size else 0,
        "cols": spec.terminal_size[1] if spec.terminal_size else 0,
        "stdin": spec.stdin,
        "stop_signal": spec.stop_signal or image.config.stop_signal or "SIGTERM",
        "cgroup": {
            "memory_max": limits.memory_bytes,
            "memory_swap_max": 0,
            "cpu_quota_us": None if limits.cpu_quota is None else int(limits.cpu_quota * cgroups.CPU_PERIOD_US),
            "cpu_period_us": cgroups.CPU_PERIOD_US,
            "cpu_weight": None,
            "pids_max": None,
        },
    }


def mounts(spec: Spec, volumes: tuple[launch.Volume, ...]) -> list[dict[str, object]]:
    """The volumes as `hyper-start` takes them; their content is the directory `data` of each disk.

    Host directories are in the one that QEMU exports, under their numbers (`runtime.vm.sharing`).
    """
    disks_left = iter(zip(volumes, machine.VOLUME_DEVICES, strict=False))
    numbers = itertools.count()
    found: list[dict[str, object]] = []
    for mount in spec.volumes:
        if mount.of_host:
            shared = {"device": machine.SHARED_TAG, "fstype": "9p", "options": machine.SHARED_OPTIONS}
            where = {**shared, "directory": str(next(numbers)), "device_read_only": False, "copy": False}
        else:
            volume, device = next(disks_left)
            how = {"options": ""} if volume.read_only else disks.mount_options(volume.file)
            where = {"device": device, "fstype": "ext4", **how, "directory": "data"}
            where |= {"device_read_only": volume.read_only, "copy": not mount.nocopy}
        found.append({"path": mount.target, "read_only": mount.read_only, **where})
    return found
