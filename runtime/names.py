"""Names for containers that were given none."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_QUALITIES = [
    "amber",
    "brisk",
    "calm",
    "clear",
    "crisp",
    "deft",
    "eager",
    "early",
    "fair",
    "fleet",
    "fond",
    "frank",
    "fresh",
    "gentle",
    "glad",
    "grand",
    "green",
    "hardy",
    "honest",
    "jolly",
    "keen",
    "kind",
    "lively",
    "loyal",
    "lucid",
    "mellow",
    "merry",
    "mild",
    "neat",
    "noble",
    "patient",
    "plain",
    "proud",
    "quick",
    "quiet",
    "ready",
    "sharp",
    "silver",
    "sober",
    "steady",
    "sunny",
    "swift",
    "tidy",
    "trim",
    "vivid",
    "warm",
    "wise",
]
_THINGS = [
    "alder",
    "anchor",
    "aspen",
    "badger",
    "beacon",
    "birch",
    "bridge",
    "brook",
    "cedar",
    "comet",
    "cove",
    "crane",
    "creek",
    "delta",
    "dune",
    "ember",
    "falcon",
    "fern",
    "finch",
    "fjord",
    "flint",
    "glade",
    "gorge",
    "grove",
    "harbor",
    "hazel",
    "heron",
    "inlet",
    "lark",
    "ledge",
    "linden",
    "maple",
    "marsh",
    "meadow",
    "otter",
    "pebble",
    "pine",
    "plover",
    "quartz",
    "raven",
    "reef",
    "ridge",
    "river",
    "rowan",
    "sable",
    "spruce",
    "summit",
    "tern",
    "thicket",
    "willow",
    "wren",
]


def choose(taken: Collection[str]) -> str:
    """A name like `calm_heron` that nobody has."""
    while True:
        name = f"{secrets.choice(_QUALITIES)}_{secrets.choice(_THINGS)}"
        if name in taken:
            name += f"_{secrets.token_hex(2)}"
        if name not in taken:
            return name
