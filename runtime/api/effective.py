"""What a container is by its own specification and by its image together, as `inspect` of one shows it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from runtime import health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.images.image import ImageConfig
    from runtime.spec import HealthSpec, Spec

_NANO = 10**9


def config(spec: Spec, image: ImageConfig, labels: Mapping[str, str]) -> dict[str, Any]:
    """In the names of the OCI configuration, as that of an image; merged by the rules by which it is started.

    `labels` are the container's, to which those of its image belong. A variable that only the image has comes after
    those that were given, as Docker has it; one that was given by its name alone is not there.
    """
    given = {entry.partition("=")[0] for entry in spec.env}
    own = spec.entrypoint is not None
    ports = [*image.exposed_ports, *(f"{port.container_port}/{port.protocol}" for port in spec.ports)]
    return {
        "Env": [
            *(entry for entry in spec.env if "=" in entry),
            *(entry for entry in image.env if entry.partition("=")[0] not in given),
        ],
        "Cmd": list(spec.args or (() if own else image.cmd)),
        "Entrypoint": list(image.entrypoint if spec.entrypoint is None else spec.entrypoint),
        "User": spec.user or image.user,
        "WorkingDir": spec.cwd or image.working_dir,
        "ExposedPorts": {port if "/" in port else f"{port}/tcp": {} for port in ports},
        "StopSignal": spec.stop_signal or image.stop_signal,
        "Labels": dict(labels),
        "Healthcheck": _healthcheck(spec.health, image),
    }


def network(subnet: str) -> dict[str, Any]:
    """What all containers have in common: the address of the bridge, which is the subnet's first, and its length."""
    net = ipaddress.IPv4Network(subnet)
    return {"gateway": str(net[1]), "prefix_length": net.prefixlen}


def _healthcheck(spec: HealthSpec | None, image: ImageConfig) -> dict[str, Any] | None:
    """The check as it is made; the test stands in the form that an image has it in."""
    check = health.effective(spec, image)
    if check is None:
        return None
    test = spec.test if spec is not None and spec.test is not None else (image.healthcheck or {}).get("Test")
    return {
        "Test": list(test or ()),
        "Interval": int(check.interval_s * _NANO),
        "Timeout": int(check.timeout_s * _NANO),
        "StartPeriod": int(check.start_period_s * _NANO),
        "Retries": check.retries,
    }
