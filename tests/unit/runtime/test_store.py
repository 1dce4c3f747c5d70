"""Containers, journal and audit in SQLite; the state machine; the record."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import record as records
from runtime.errors import Conflict, NameInUse, NotFound
from runtime.events import Events
from runtime.life import FOLLOWING, Container, Lives
from runtime.record import Lifecycle, Limits, Network, Port, Record, RecordError
from runtime.spec import Spec, TmpfsSpec
from runtime.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def a_record(name: str, number: int = 0) -> Record:
    return Record(
        id=f"{number:064x}",
        name=name,
        image="busybox",
        image_digest="sha256:00",
        limits=Limits(1 << 27, 1),
        lifecycle=Lifecycle("created", "stopped", 1.0),
        network=Network("t", "b", "10.97.0.2", "m", (Port("0.0.0.0", 1, 2),)),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "hyper.db")
    yield one
    one.close()


def test_what_was_kept_is_found_again(tmp_path: Path, store: Store) -> None:
    slot, operation = store.insert(Spec(image="busybox", env=("A=b",)), a_record("one"))
    assert (slot, operation.kind) == (0, "create")
    store.close()
    again = Store(tmp_path / "hyper.db")
    (row,) = again.rows()
    assert row.record == a_record("one")
    assert row.spec.env == ("A=b",)
    assert again.interrupted() == [operation]
    again.end(operation)
    assert again.interrupted() == []
    again.close()


def test_a_tmpfs_option_that_was_taken_once_is_found_again(store: Store) -> None:
    store.insert(Spec(image="busybox", tmpfs=(TmpfsSpec(path="/a", options="exec"),)), a_record("one"))
    store.execute("UPDATE containers SET spec = replace(spec, '\"exec\"', '\"dev\"')")
    (row,) = store.rows()
    assert row.spec.tmpfs[0].options == "dev"


def test_a_name_is_used_once_and_a_refused_container_leaves_nothing(store: Store) -> None:
    store.insert(Spec(image="i"), a_record("one"))
    with pytest.raises(NameInUse, match="one"):
        store.insert(Spec(image="i"), a_record("one", 1))
    assert len(store.rows()) == 1
    assert len(store.interrupted()) == 1


def test_slots_are_the_lowest_free(store: Store) -> None:
    for number in range(3):
        assert store.insert(Spec(image="i"), a_record(str(number), number))[0] == number
    store.delete(f"{1:064x}")
    assert store.insert(Spec(image="i"), a_record("new", 9))[0] == 1
    assert store.insert(Spec(image="i"), a_record("newer", 10))[0] == 3


def test_audit_is_newest_first(store: Store) -> None:
    for reason in ("first", "second"):
        store.audit("me", "redeploy", a_record("one"), reason, "done", {"n": 1})
    assert [entry["reason"] for entry in store.audit_log(10)] == ["second", "first"]
    assert store.audit_log(1)[0]["detail"] == {"n": 1}


def a_container(tmp_path: Path, store: Store, name: str, number: int = 0) -> Container:
    record = a_record(name, number)
    slot, _ = store.insert(Spec(image="i"), record)
    return Container(record.id, slot, Spec(image="i"), record, tmp_path / record.id, tmp_path / "data" / record.id)


def test_a_change_is_in_the_store_and_in_the_state_directory(tmp_path: Path, store: Store) -> None:
    lives = Lives(store, Events(store))
    one = a_container(tmp_path, store, "one")
    lives.add(one)
    changed = one.changed
    lives.change(one, "starting", desired="running", epoch=1, start_phases={"vm": 0.1})
    assert changed.is_set()
    assert records.read(one.directory) == one.record == store.rows()[0].record
    assert one.record.lifecycle.state == "starting"
    assert one.record.start_phases == {"vm": 0.1}


def test_states_that_do_not_follow_are_refused(tmp_path: Path, store: Store) -> None:
    lives = Lives(store, Events(store))
    one = a_container(tmp_path, store, "one")
    lives.add(one)
    for state in set(records.STATES) - FOLLOWING["created"] - {"created"}:
        with pytest.raises(Conflict):
            lives.change(one, state)
    assert one.record.lifecycle.state == "created"
    assert set(FOLLOWING) == set(records.STATES)


def test_finding(tmp_path: Path, store: Store) -> None:
    lives = Lives(store, Events(store))
    for number, name in enumerate(("one", "two")):
        lives.add(a_container(tmp_path, store, name, number))
    assert lives.find("two").record.name == "two"
    assert lives.find(f"{1:064x}").record.name == "two"
    with pytest.raises(Conflict, match="2 ids"):
        lives.find("000")
    for reference in ("three", ""):
        with pytest.raises(NotFound):
            lives.find(reference)


def test_record_round_trip_and_unknown_members(tmp_path: Path) -> None:
    record = dataclasses.replace(a_record("one"), labels={"a": "b"})
    records.write(tmp_path, record)
    text = (tmp_path / records.FILE_NAME).read_text()
    assert Record.from_json(text.replace('"schema":1', '"schema":1,"new":2')) == records.read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [records.FILE_NAME]


@given(st.one_of(st.text(), st.binary(), st.just('{"schema":2}'), st.just('{"schema":1,"limits":[],"lifecycle":{}}')))
def test_what_is_no_record_is_refused(text: str | bytes) -> None:
    with pytest.raises(RecordError):
        Record.from_json(text)


def test_the_end_of_an_operation_strikes_out_none_of_another_container(tmp_path: Path) -> None:
    one = Store(tmp_path / "hyper.db")
    removal = one.begin("a" * 64, "remove")
    one.delete("a" * 64)  # which takes its journal along
    other = one.begin("b" * 64, "start")
    assert other.seq == removal.seq, "numbers are given again"
    one.end(removal)
    assert one.is_under_way("b" * 64)
    one.close()
