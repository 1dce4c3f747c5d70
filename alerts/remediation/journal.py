"""The audit: an append-only file of JSON lines, which is also what the controller remembers across a crash.

Three kinds of line. A `decision` is on the disk (fsync) before anything is done; for a verdict `act` it is the intent,
with the container's epoch at that moment. An `outcome` follows it by `id`. An intent without an outcome is unfinished
business: the controller died in between. A `cause` is an alert about the host or the collector that began or ended. A
line cut by a crash or a full disk stays, and is skipped when read.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from alerts.errors import AuditUnwritable
from alerts.remediation import causes
from alerts.remediation.policy import HELD_BACK, RENEWING
from alerts.remediation.signals import PUSH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alerts.remediation.policy import Action, Reason, Verdict

FILE_NAME = "remediation.jsonl"
MAX_BYTES = 16 << 20
KEPT_FILES = 4
RECENT = 1000
MAX_INCIDENTS = 20_000
MAX_CONTAINERS = 10_000
MAX_TIMES = 64
MAX_WAITING = 1000
APPROVAL_S = 24 * 3600.0
"""How long a decision waits for a person's approval."""

OutcomeKind = Literal[
    "done",
    "failed",
    "rolled_back",
    "inconclusive",
    "no_known_good",
    "gone",
    "not_needed",
    "still_vulnerable",
    "stop_switch",
    "expired",
    "unknown",
]
OUTCOMES: tuple[OutcomeKind, ...] = get_args(OutcomeKind)


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. `time` is seconds since 1970; `epoch` and `digest` are the container's when it was taken.

    Attributes:
        signals: What led to it, a line each.
        policy: What allowed or forbade it.
        image: The reference that an update is to, with `to_digest`.
        approves: The decision that a person approved by this one, who is `actor`.
        beside: It is a proposal beside another decision on the same signal.
        unobserved: The change is to be made without a comparison: one was made, and told nothing.
    """

    id: str
    time: float
    verdict: Verdict
    reason: Reason
    detail: str
    action: Action | None
    alert: str
    incident: str
    container_id: str | None = None
    container: str | None = None
    tenant: str | None = None
    epoch: int | None = None
    signals: tuple[str, ...] = ()
    policy: str = ""
    digest: str | None = None
    image: str | None = None
    to_digest: str | None = None
    approves: str | None = None
    actor: str | None = None
    beside: bool = False
    unobserved: bool = False

    @property
    def key(self) -> str:
        """Tenant and name, which stay when an image is changed."""
        return f"{self.tenant}/{self.container}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the action of the decision with the same `id` ended; `carried_out` is whether the container was acted on.

    `evidence` is the directory that it was saved to before, or why it was not saved.
    """

    id: str
    time: float
    outcome: OutcomeKind
    carried_out: bool
    detail: str
    epoch: int | None = None
    evidence: str | None = None


_K = TypeVar("_K")
_V = TypeVar("_V")


class Journal:
    """The audit file, open for this process alone. Methods block on the disk and may be called from any thread."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Open and replay the audit in `directory`, which is made if need be.

        Raises:
            AuditUnwritable: no permission, no space, or another controller has it open.
        """
        self._path = directory / FILE_NAME
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._incidents: OrderedDict[str, str] = OrderedDict()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._rollbacks: OrderedDict[str, float] = OrderedDict()
        self._host_times: deque[float] = deque(maxlen=MAX_TIMES)
        self._renewals: OrderedDict[str, deque[float]] = OrderedDict()
        self._host_renewals: deque[float] = deque(maxlen=MAX_TIMES)
        self._held: OrderedDict[tuple[str, bool], Decision] = OrderedDict()
        self._waiting: OrderedDict[str, Decision] = OrderedDict()
        self._causes: OrderedDict[tuple[str, str, str], causes.Cause] = OrderedDict()
        self._unfinished: dict[str, Decision] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.skipped_lines = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "remediation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                os.close(self._lock)
                raise AuditUnwritable(f"another remediation controller uses {directory}; stop it first") from err
            for line in self._stored_lines():
                self._replay(line)
            self._fd, self._size, self._torn = self._open()
        except OSError as err:
            raise AuditUnwritable(f"audit {self._path}: {err.strerror}") from err

    def close(self) -> None:
        """Close the file and give up the lock."""
        os.close(self._fd)
        os.close(self._lock)

    def decide(self, decision: Decision) -> None:
        """Write a decision; once this returns it survives a crash.

        Raises:
            AuditUnwritable: it does not stand in the file; nothing may be done on it.
        """
        self._append({"kind": "decision", **asdict(decision)})

    def conclude(self, outcome: Outcome) -> None:
        """Write the outcome of an earlier decision.

        Raises:
            AuditUnwritable: it does not stand in the file; the decision stays unfinished.
        """
        self._append({"kind": "outcome", **asdict(outcome)})

    def note(self, cause: causes.Cause) -> None:
        """Write that an alert about the host or the collector began, goes on or ended.

        Raises:
            AuditUnwritable: it does not stand in the file.
        """
        self._append({"kind": "cause", **asdict(cause)})

    def acted_on(self, incident: str) -> bool:
        """Whether something was done, or would have been in a dry run, about this very firing of this alert."""
        with self._mutex:
            return incident in self._incidents

    def acted_at(self, key: str) -> tuple[float, ...]:
        """Times of the latest actions on the container of a tenant and name (`tenant/name`), oldest first."""
        with self._mutex:
            return tuple(self._times.get(key, ()))

    def rolled_back_at(self, key: str) -> tuple[float, ...]:
        """Time of the latest rollback of the container of a tenant and name, if there was one."""
        with self._mutex:
            return (self._rollbacks[key],) if key in self._rollbacks else ()

    def host_acted_at(self) -> tuple[float, ...]:
        """Times of the latest actions on any container, oldest first."""
        with self._mutex:
            return tuple(self._host_times)

    def renewed_at(self, key: str) -> tuple[float, ...]:
        """As `acted_at`, of updates and rebuilds: they heal nothing, and so take nothing from what does."""
        with self._mutex:
            return tuple(self._renewals.get(key, ()))

    def host_renewed_at(self) -> tuple[float, ...]:
        """As `host_acted_at`, of updates and rebuilds."""
        with self._mutex:
            return tuple(self._host_renewals)

    def held(self) -> tuple[Decision, ...]:
        """The newest push to each container that was held back, and has not come to its turn; the oldest first.

        A registry tells a push once. Of a container's tag and of its base there is one each.
        """
        with self._mutex:
            return tuple(self._held.values())

    def waiting(self, now: float) -> tuple[Decision, ...]:
        """Decisions that wait for a person's approval, oldest first."""
        with self._mutex:
            return tuple(one for one in self._waiting.values() if now - one.time <= APPROVAL_S)

    def noted(self) -> tuple[causes.Cause, ...]:
        """Alerts about host and collector as they were told last."""
        with self._mutex:
            return tuple(self._causes.values())

    def latest_action_at(self) -> float | None:
        """Time of the latest action on any container, or None if there was none."""
        with self._mutex:
            return max((times[-1] for kept in (self._times, self._renewals) for times in kept.values()), default=None)

    def unfinished(self) -> tuple[Decision, ...]:
        """Intents that have no outcome."""
        with self._mutex:
            return tuple(self._unfinished.values())

    def recent(self, limit: int, container: str | None = None) -> list[dict[str, Any]]:
        """The latest lines, newest first, at most `RECENT`; of one container's name if it is given."""
        with self._mutex:
            lines = list(reversed(self._recent))
        if container is not None:
            ids = {line.get("id") for line in lines if line.get("container") == container}
            lines = [line for line in lines if line["kind"] != "cause" and line["id"] in ids]
        return list(islice(lines, limit))

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with self._mutex:
            try:
                if self._size + len(data) > self._max_bytes:
                    self._rotate()
                if self._torn:
                    data = b"\n" + data
                # Until the disk has it all the line counts as torn: the next one then starts afresh.
                self._torn = True
                written = os.write(self._fd, data)
                self._size += written
                if written != len(data):
                    raise AuditUnwritable(f"audit {self._path}: only {written} of {len(data)} bytes were written")
                os.fsync(self._fd)
                self._torn = False
            except OSError as err:
                raise AuditUnwritable(f"audit {self._path}: {err.strerror}") from err
            self._apply(line)

    def _open(self) -> tuple[int, int, bool]:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        self._sync_directory()
        return fd, size, torn

    def _rotate(self) -> None:
        if self._path.exists():  # else an earlier try got so far, and had no room for a new file
            for number in range(KEPT_FILES - 1, 0, -1):
                older = self._path.with_name(f"{FILE_NAME}.{number}")
                if older.exists():
                    older.replace(self._path.with_name(f"{FILE_NAME}.{number + 1}"))
            self._path.replace(self._path.with_name(f"{FILE_NAME}.1"))
        old = self._fd
        self._fd, self._size, self._torn = self._open()
        os.close(old)

    def _sync_directory(self) -> None:
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _stored_lines(self) -> Iterator[bytes]:
        """Lines of the last two files, oldest first: what lies further back no longer holds anything back."""
        for path in (self._path.with_name(f"{FILE_NAME}.1"), self._path):
            if path.exists():
                with path.open("rb") as file:
                    yield from file

    def _replay(self, raw: bytes) -> None:
        if not raw.strip():
            return
        try:
            line = json.loads(raw)
            self._apply(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.skipped_lines += 1

    def _apply(self, line: dict[str, Any]) -> None:
        if line["kind"] == "decision":
            self._apply_decision(_build(Decision, line))
        elif line["kind"] == "cause":
            self._apply_cause(causes.from_line(line))
        else:
            self._apply_outcome(_build(Outcome, line))
        self._recent.append(line)

    def _apply_decision(self, decision: Decision) -> None:
        if decision.alert == PUSH and decision.container_id is not None:
            self._hold(decision)
        if decision.reason == "resolved":
            # What starts again a container that is well again is not called for.
            for one in [one for one in self._waiting.values() if one.incident == decision.incident]:
                if one.action in ("restart", "redeploy"):
                    del self._waiting[one.id]
        if decision.verdict == "skip":
            return
        if decision.verdict == "dry_run":
            if decision.action in RENEWING:  # what is newer takes the place of what was there to be had before
                for one in [one for one in self._waiting.values() if _is_replaced(one, decision)]:
                    del self._waiting[one.id]
            _remember(self._waiting, decision.id, decision, MAX_WAITING)
        if decision.approves is not None:
            self._waiting.pop(decision.approves, None)
        if not decision.beside:
            _remember(self._incidents, decision.incident, decision.id, MAX_INCIDENTS)
        if decision.verdict == "act" and decision.container_id is not None:
            self._unfinished[decision.id] = decision
            renews = decision.action in RENEWING
            kept, of_host = (self._renewals, self._host_renewals) if renews else (self._times, self._host_times)
            times = kept.get(decision.key) or deque(maxlen=MAX_TIMES)
            times.append(decision.time)
            _remember(kept, decision.key, times, MAX_CONTAINERS)
            of_host.append(decision.time)
            if decision.action == "rollback":
                _remember(self._rollbacks, decision.key, decision.time, MAX_CONTAINERS)

    def _hold(self, decision: Decision) -> None:
        """Remember a push that was held back, or that one is no longer."""
        slot = (decision.key, decision.to_digest is None)
        if decision.verdict == "skip" and decision.reason in HELD_BACK:
            _remember(self._held, slot, decision, MAX_CONTAINERS)
        elif slot in self._held and self._held[slot].incident == decision.incident:
            del self._held[slot]

    def _apply_cause(self, cause: causes.Cause) -> None:
        _remember(self._causes, (cause.name, cause.instance, cause.id), cause, causes.MAX_CAUSES)

    def _apply_outcome(self, outcome: Outcome) -> None:
        decision = self._unfinished.pop(outcome.id, None)
        if decision is None or self._incidents.get(decision.incident) != outcome.id:
            return
        # What did not succeed may be tried again when it is told again, within the guards; a build that mended nothing
        # would come to the same.
        if outcome.outcome == "still_vulnerable":
            return
        if outcome.outcome == "failed" or not outcome.carried_out:
            del self._incidents[decision.incident]


def _remember(kept: OrderedDict[_K, _V], key: _K, value: _V, limit: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > limit:
        kept.popitem(last=False)


def _is_replaced(waiting: Decision, by: Decision) -> bool:
    return (waiting.key, waiting.action, waiting.reason) == (by.key, by.action, by.reason)


def _build(kind: type[Any], line: dict[str, Any]) -> Any:
    names = {f.name for f in fields(kind)}
    # JSON has no tuples.
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in line.items() if k in names})
