"""A change of a container's image while it goes on, and what its name has stood for: plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["update", "rollback"]
RevisionKind = Literal["create", "update", "rollback", "redeploy"]
State = Literal[
    "starting", "observing", "switching", "draining", "watching", "done", "rolled_back", "failed", "inconclusive"
]
Trigger = Literal["unhealthy", "exit", "worse"]
TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)

# From `draining` on the new container has the name: there is no way back but a rollback, which is a rollout of its own.
FOLLOWING: Mapping[State, frozenset[State]] = {
    "starting": frozenset({"observing", "switching", "failed", "inconclusive"}),
    "observing": frozenset({"switching", "failed", "inconclusive"}),
    "switching": frozenset({"draining", "failed"}),
    "draining": frozenset({"watching", "done"}),
    "watching": frozenset({"done", "rolled_back"}),
    "done": frozenset(),
    "rolled_back": frozenset(),
    "failed": frozenset(),
    "inconclusive": frozenset(),
}
ENDS: frozenset[State] = frozenset(state for state, after in FOLLOWING.items() if not after)
UNCOMMITTED: frozenset[State] = frozenset({"starting", "observing", "switching"})
MAX_STEPS = 200
_MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two containers; `container_id` is empty while it has not been made."""

    container_id: str
    image: str
    digest: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One signal of both containers in words, and what follows.

    Attributes:
        verdict: `silent`: it says nothing, and stands in nobody's way; `unknown`: it should, and is not to be had.
        why: of a signal that is silent or unknown.
    """

    signal: str
    old: str
    new: str
    verdict: Literal["same", "better", "worse", "unknown", "silent"]
    why: str = ""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """Read one, also of another version."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in raw.items() if name in known})


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a rollout did, and when (seconds since 1970)."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One change of image. Times are seconds since 1970.

    `old` is called `from` and `new` is called `to` outside. `in_place`: the two cannot run side by side, so the old one
    ends before the new one starts. `attempts` counts how often a rollback was begun. `trigger` is why a rollback was
    made, if nobody asked for it. `evidence` has the directories in which what was thrown away was saved before.
    """

    id: str
    name: str
    tenant: str
    kind: Kind
    state: State
    old: Side
    new: Side
    reason: str
    actor: str
    request_id: str | None
    started_at: float
    canary_s: float = 0.0
    timeout_s: float = 120.0
    watch_s: float = 0.0
    drain_s: float = 10.0
    rollback_on: tuple[Trigger, ...] = TRIGGERS
    in_place: bool = False
    finished_at: float | None = None
    detail: str = ""
    observed_s: float = 0.0
    watch_until: float | None = None
    health_before: str = ""
    health_after: str = ""
    attempts: int = 1
    rolled_back_by: str | None = None
    evidence: tuple[str, ...] = ()
    comparison: tuple[Compared, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDS

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, also by another version: members that are not known are left out."""
        raw = json.loads(text)
        known = {one.name for one in fields(cls)}
        return cls(
            **{
                **{name: value for name, value in raw.items() if name in known},
                "old": Side(**raw["old"]),
                "new": Side(**raw["new"]),
                "rollback_on": tuple(raw.get("rollback_on", TRIGGERS)),
                "evidence": tuple(raw.get("evidence", ())),
                "comparison": tuple(Compared.of(one) for one in raw.get("comparison", ())),
                "steps": tuple(Step(**one) for one in raw.get("steps", ())),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """As `docs/reference/api.md` has it."""
        shown = asdict(self)
        shown["from"], shown["to"] = shown.pop("old"), shown.pop("new")
        del shown["attempts"]
        shown["detail"] = self.detail[:_MAX_TEXT]
        return shown


@dataclass(frozen=True, slots=True)
class Revision:
    """What a name stands for, or was to stand for, from one moment on.

    `outcome`: `done`, or how the change ended. `comparison` is that of the change, as long as its rollout is kept.
    """

    revision: int
    time: float
    container_id: str
    image: str
    digest: str
    kind: RevisionKind
    actor: str
    reason: str
    request_id: str | None = None
    good: bool = False
    good_at: float | None = None
    health_before: str = ""
    health_after: str = ""
    outcome: str = "done"
    comparison: tuple[Compared, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `docs/reference/api.md` has it."""
        return asdict(self)
