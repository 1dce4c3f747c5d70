"""What runtime and collector read alike of a container's labels: times, and a probe that is a command."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBE: Final = "hyper.probe"
_OURS: Final = "hyper."
_OF_IMAGES: Final = ("hyper.metrics", PROBE)
_MAX_IMAGE_BYTES: Final = 65536
_TIME: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def of_container(image: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The labels of a container: those of its image, and before them those that its user gave.

    What may be done to a container is not for its image to say: of the names that mean something here it has those
    about being looked at. Of very many labels the rest is left out, as the record has to stay readable.
    """
    found: dict[str, str] = {}
    room = _MAX_IMAGE_BYTES
    for name, value in image.items():
        try:
            room -= len(f"{name}{value}".encode())
        except UnicodeEncodeError:  # half a character, which JSON can say
            continue
        if room >= 0 and (not name.startswith(_OURS) or name.startswith(_OF_IMAGES)):
            found[name] = value
    return {**found, **given}


def seconds(text: str) -> float | None:
    """A time such as `500ms`, `15s` or `2m`, or a number of seconds; None: it is no time."""
    found = _TIME.fullmatch(text)
    return float(found[1]) * _SECONDS[found[2]] if found else None


def command(labels: Mapping[str, str]) -> str | None:
    """The command of `hyper.probe=exec:COMMAND`."""
    kind, _, text = labels.get(PROBE, "").partition(":")
    return text if kind == "exec" and text.strip() and "\0" not in text else None


def check(labels: Mapping[str, str]) -> dict[str, Any]:
    """The members of a health check that such a label asks for; a time that is none is as if it was not there."""
    text = command(labels)
    if text is None:
        return {}
    times = {"interval_s": f"{PROBE}.interval", "timeout_s": f"{PROBE}.timeout"}
    given = {member: seconds(labels.get(label, "")) for member, label in times.items()}
    return {"test": ("CMD-SHELL", text), **{member: time_s for member, time_s in given.items() if time_s}}
