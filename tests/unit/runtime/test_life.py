"""The state machine of a container's life, walked at random: what follows, what the journal has first, what is told."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import runtime
from runtime import record as records
from runtime.errors import Conflict, RuntimeFault
from runtime.events import Events
from runtime.life import FOLLOWING, Container, Lives
from runtime.record import STATES, Lifecycle, Limits, Record, State
from runtime.spec import Spec
from runtime.store import Operation, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

OBSERVED = {"exited", "dead"}
TOLD = {
    ("starting", "running"): "start", ("running", "paused"): "pause", ("paused", "running"): "unpause",
    ("starting", "exited"): "die", ("running", "exited"): "die", ("paused", "exited"): "die",
    ("stopping", "exited"): "die",
}  # fmt: skip


class Life(RuleBasedStateMachine):
    """Asks for any state at any time, with and without an operation in the journal; reopens the store now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.store = Store(self.path / "hyper.db")
        record = Record("ab" * 32, "web", "nginx", "sha256:0", Limits(1, 1), Lifecycle("created", "stopped", 1.0))
        _, operation = self.store.insert(Spec(image="nginx"), record)
        self.operation: Operation | None = operation
        self.told: list[str] = []
        self.take(record)
        self.lives.add(self.one)

    def take(self, record: Record) -> None:
        self.lives = Lives(self.store, Events(self.store))
        self.one = Container(record.id, 0, Spec(image="nginx"), record, self.path / "state", self.path / "data")

    @rule(state=st.sampled_from(STATES))
    def change(self, state: State) -> None:
        before = self.one.state
        follows = state in FOLLOWING[before]
        journaled = state in OBSERVED or self.operation is not None
        if state == before:
            self.lives.change(self.one, state)
        elif follows and journaled:
            changed = self.one.changed
            self.lives.change(self.one, state)
            assert changed.is_set()
            if (before, state) in TOLD:
                self.told.append(TOLD[before, state])
        else:
            with pytest.raises(RuntimeFault if follows else Conflict):
                self.lives.change(self.one, state)
            assert self.one.state == before

    @rule()
    @precondition(lambda self: self.operation is None)
    def begin(self) -> None:
        self.operation = self.store.begin(self.one.id, "something")

    @rule()
    @precondition(lambda self: self.operation is not None)
    def end(self) -> None:
        assert self.operation is not None
        self.store.end(self.operation)
        self.operation = None

    @rule()
    def come_back(self) -> None:
        """The daemon dies and comes back: the store has everything."""
        self.store.close()
        self.store = Store(self.path / "hyper.db")
        (row,) = self.store.rows()
        self.take(row.record)

    @invariant()
    def store_and_state_directory_agree(self) -> None:
        (row,) = self.store.rows()
        assert row.record == self.one.record == records.read(self.one.directory)
        assert self.store.interrupted() == ([self.operation] if self.operation else [])

    @invariant()
    def every_event_is_there_once(self) -> None:
        assert [event.action for event in self.store.events(0, 0, 10_000)] == self.told

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=30)


def reachable(start: State) -> set[State]:
    found: set[State] = {start}
    while more := {after for one in found for after in FOLLOWING[one]} - found:
        found |= more
    return found


def test_every_state_can_be_reached_and_left() -> None:
    assert reachable("created") == set(STATES)
    for state in STATES:
        assert "removing" in reachable(state), f"a container that is {state} can be removed"


def assignments() -> Iterator[tuple[str, str]]:
    """Every place of the runtime that sets a member called `record` or `spec` of something else than itself."""
    for path in Path(runtime.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in {"record", "spec"}:
                    yield path.name, ast.unparse(target)


def test_one_place_changes_a_container() -> None:
    assert sorted(set(assignments())) == [("life.py", "container.record"), ("life.py", "container.spec")]
