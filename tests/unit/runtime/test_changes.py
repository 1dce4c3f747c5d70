"""Rollouts and the history of names: the state machine, what is kept and forgotten, what is carried out once."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import evidence
from runtime.changes import book as books
from runtime.changes import signals, switching
from runtime.changes.book import Book
from runtime.changes.hostwait import HostTime
from runtime.changes.knowngood import KnownGood
from runtime.changes.requests import Failed, Requests
from runtime.changes.rollout import ENDS, FOLLOWING, UNCOMMITTED, Compared, Revision, Rollout, Side, State
from runtime.changes.rollouts import cannot_run_twice
from runtime.errors import Conflict, GuestFailed, RuntimeFault
from runtime.life import Change, Check
from runtime.network.ports import PortReservations
from runtime.record import Lifecycle, Limits, Port, Quarantine, Record
from runtime.spec import NAME_LENGTH, Spec
from runtime.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.life import Container, Lives


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "hyper.db")
    yield one
    one.close()


def a_record(name: str = "web", id_: str = "ab", **members: Any) -> Record:
    life = Lifecycle("running", "running", 1.0, started_at=1.0, epoch=1)
    return Record(id_ * 32, name, "nginx", "sha256:0", Limits(1 << 27, 1), life, revision=1, **members)


def a_rollout(id_: str = "r", state: State = "starting", **members: Any) -> Rollout:
    sides = (Side("a", "nginx:1", "sha256:1"), Side("b", "nginx:2", "sha256:2"))
    return Rollout(id_, "web", "default", "update", state, *sides, "why", "user", None, 1.0, **members)


def a_revision(number: int, digest: str = "", *, good: bool = False, outcome: str = "done") -> Revision:
    digest = digest or f"sha256:{number}"
    return Revision(number, 1.0, "id", "nginx", digest, "update", "user", "", good=good, outcome=outcome)


# --- the state machine


def reachable(state: State) -> set[State]:
    found: set[State] = {state}
    while more := {after for one in found for after in FOLLOWING[one]} - found:
        found |= more
    return found


def test_every_state_can_be_reached_and_every_rollout_ends() -> None:
    assert reachable("starting") == set(FOLLOWING)
    assert all(reachable(state) & ENDS for state in FOLLOWING)
    # Once the name is given there is no way to a failure: only a rollback, a rollout of its own, undoes it.
    for state in set(FOLLOWING) - UNCOMMITTED - {"failed", "inconclusive"}:
        assert not reachable(state) & {"failed", "inconclusive", *UNCOMMITTED}


@given(st.lists(st.sampled_from(sorted(FOLLOWING)), max_size=12))
def test_only_what_follows_is_written_down(tried: list[State]) -> None:
    store = Store(":memory:")  # type: ignore[arg-type]  # sqlite takes it
    book = Book(store)
    rollout = a_rollout()
    book.begin(rollout)
    for state in tried:
        if state in FOLLOWING[rollout.state]:
            rollout = book.advance(rollout, state, f"now {state}")
        else:
            with pytest.raises(RuntimeFault):
                book.advance(rollout, state)
        assert book.rollout("r") == rollout
        assert book.open_rollouts() == ([] if rollout.over else [rollout])
    store.close()


def test_a_rollout_comes_back_as_it_was(store: Store) -> None:
    book = Book(store)
    rollout = a_rollout(rollback_on=("exit",), canary_s=3.0)
    book.begin(rollout)
    row = Compared("latency", "1 ms", "9 ms", "silent", "fewer than 5 checks")
    rollout = book.advance(rollout, "observing", "observing", observed_s=1.5, comparison=(row,), evidence=("/e",))
    (found,) = Book(store).rollouts("default", "web")
    assert found == rollout
    told = found.to_dict()
    assert told["comparison"] == (dataclasses.asdict(row),)
    assert told["from"] == {"container_id": "a", "image": "nginx:1", "digest": "sha256:1"}
    assert told["steps"][0]["text"] == "observing"
    newer = found.to_json().replace('"signal":', '"of another version": 1, "signal":')
    assert Rollout.from_json(newer) == found


# --- the history


def test_the_last_revisions_and_the_good_one_are_kept(store: Store) -> None:
    book = Book(store)
    book.note("default", "web", a_revision(1, good=True))
    for number in range(2, 30):
        book.note("default", "web", a_revision(number, "sha256:bad"))
    kept = [one.revision for one in book.history("default", "web")]
    assert kept == [*range(29, 29 - books.KEPT_REVISIONS, -1), 1]
    assert book.last_revision("default", "web") == 29


def test_images_are_pinned_by_names_that_containers_have(store: Store) -> None:
    book = Book(store)
    record = a_record()
    store.insert(Spec(image="nginx"), record)
    book.note("default", "web", a_revision(1))
    book.note("default", "web", a_revision(2, outcome="failed"))
    book.note("default", "gone", a_revision(3))
    assert book.pinned_digests() == {"sha256:1"}
    store.delete(record.id)
    assert book.pinned_digests() == set()
    assert len(book.history("default", "web")) == 2


def test_the_history_goes_with_a_new_name(store: Store) -> None:
    book = Book(store)
    book.note("default", "web", a_revision(1))
    book.note("default", "front", a_revision(7))
    book.rename("default", "web", "front")
    assert [one.revision for one in book.history("default", "front")] == [1]
    assert book.history("default", "web") == []


def test_the_history_of_names_that_are_gone_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "KEPT_ROWS", 20)
    book = Book(store)
    store.insert(Spec(image="nginx"), a_record())
    book.note("default", "web", a_revision(1))
    for number in range(50):
        book.note("default", f"name-{number}", a_revision(1))
    assert len(book.history("default", "web")) == 1
    assert sum(bool(book.history("default", f"name-{number}")) for number in range(50)) <= 20


def test_good_is_what_has_run_well_for_a_while(running: tuple[Container, Lives], tmp_path: Path) -> None:
    container, lives = running
    store = Store(tmp_path / "running.db")
    book = Book(store)
    lives.change(container, revision=1)
    book.created(container.record, "user")
    judge = KnownGood(lives, book, 60.0)
    now = time.time()

    def good() -> bool:
        return book.history("default", "web")[0].good

    judge.look(now + 1000)
    assert not good(), "its check has not succeeded"
    lives.change(container, health="healthy")
    judge.look(now + 1000)
    judge.look(now + 1030)
    lives.change(container, health="unhealthy")
    judge.look(now + 1050)
    lives.change(container, health="healthy")
    judge.look(now + 1061)
    assert not good(), "it was ill in between"
    judge.look(now + 1110)
    lives.change(container, epoch=2)
    judge.look(now + 1122)
    assert not good(), "it was started again in between"
    judge.look(now + 1183)
    assert good()
    store.close()


# --- what is carried out once


async def test_a_request_is_carried_out_once(store: Store) -> None:
    requests, made = Requests(Book(store)), []

    async def work(tell: Callable[[dict[str, Any]], None]) -> None:
        made.append(1)
        await asyncio.sleep(0)
        tell({"number": len(made)})

    several = await asyncio.gather(*(requests.once("one", "evidence", "web", work) for _ in range(5)))
    assert several == [{"number": 1}] * 5
    assert await Requests(Book(store)).once("one", "evidence", "web", work) == {"number": 1}
    assert await requests.once(None, "evidence", "web", work) == {"number": 2}
    with pytest.raises(Conflict):
        await requests.once("one", "quarantine", "web", work)
    with pytest.raises(Conflict):
        await requests.once("one", "evidence", "other", work)


async def test_a_failure_is_a_result(store: Store) -> None:
    requests, made = Requests(Book(store)), []

    async def work(tell: Callable[[dict[str, Any]], None]) -> None:
        del tell
        made.append(1)
        raise GuestFailed("no answer")

    with pytest.raises(GuestFailed):
        await requests.once("one", "redeploy", "web", work)
    with pytest.raises(Failed) as again:
        await requests.once("one", "redeploy", "web", work)
    assert (again.value.code, again.value.status, again.value.message) == ("guest_failed", 502, "no answer")
    assert len(made) == 1


async def test_an_interrupted_request_was_finished_or_not_begun(store: Store) -> None:
    book = Book(store)
    book.asked("begun", "redeploy", "web")
    book.asked("not-begun", "redeploy", "other")
    requests = Requests(book)
    requests.recover({("redeploy", "web"), ("start", "other")})
    made = []

    async def work(tell: Callable[[dict[str, Any]], None]) -> None:
        made.append(1)
        tell({"done": True})

    await requests.once("begun", "redeploy", "web", work)
    assert made == []
    await requests.once("not-begun", "redeploy", "other", work)
    assert made == [1]


# --- names, ports, records


@given(st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z"), st.sampled_from(["new", "old"]))
def test_the_other_name_is_a_name(name: str, kind: str) -> None:
    other = switching.other_name(name, kind, "3f" * 32)
    assert len(other) <= NAME_LENGTH
    assert Spec(image="x", name=other).name == other
    assert other != name


def test_all_changes_or_none(running: tuple[Container, Lives]) -> None:
    container, lives = running
    before = container.record

    def fails() -> None:
        raise RuntimeFault("no")

    with pytest.raises(RuntimeFault):
        lives.change_together(Change(container, {"name": "other"}, Spec(image="x", name="other")), and_also=fails)
    assert container.record is before
    lives.change_together(Change(container, {"name": "other"}, Spec(image="x", name="other")))
    assert container.record.name == container.spec.name == "other"


def test_ports_go_from_one_to_the_other_without_a_gap() -> None:
    ports = PortReservations()
    (port,) = ports.reserve("old", [Port("127.0.0.1", 0, 80)])
    ports.transfer("old", "new")
    ports.release("old")
    with pytest.raises(RuntimeFault):
        ports.reserve("other", [port])
    ports.release("new")
    ports.reserve("other", [port])
    ports.release("other")


def test_a_record_keeps_its_quarantine() -> None:
    record = a_record(quarantine=Quarantine(1.0, "why", "me", (Port("0.0.0.0", 1, 2),)))
    assert Record.from_json(record.to_json()) == record
    assert Record.from_json(dataclasses.replace(record, quarantine=None).to_json()).quarantine is None


@pytest.mark.parametrize(
    ("volumes", "twice"),
    [
        ([], True),
        ([{"source": "data", "target": "/data"}], False),
        ([{"source": "data", "target": "/data", "read_only": True}], True),
        ([{"source": "/srv", "target": "/srv"}], False),
    ],
)
def test_what_writes_to_a_disk_cannot_run_twice(volumes: list[dict[str, Any]], *, twice: bool) -> None:
    assert cannot_run_twice(Spec.model_validate({"image": "x", "volumes": volumes})) != twice


# --- what the guest says


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0200620A:0050 0100620A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0200620A:0050 0100620A:9C41 06 00000000:00000000 00:00000000 00000000     0        0 0
   3: 0100007F:0050 0100007F:9C42 01 00000000:00000000 00:00000000 00000000     0        0 3
   4: 0200620A:0051 0100620A:9C43 01 00000000:00000000 00:00000000 00000000     0        0 4
   5: 0200620A:0050 0100620A:9C44 08 00000000:00000000 00:00000000 00000000     0        0 5
"""


def test_open_connections_are_counted_at_published_ports_from_outside() -> None:
    assert signals.count_connections(TCP, [80]) == 2
    assert signals.count_connections(TCP, [80, 81]) == 3
    assert signals.count_connections(TCP, [443]) == 0


@given(st.text())
def test_whatever_a_guest_says_is_counted(text: str) -> None:
    assert signals.count_connections(f"heading\n{text}", [80]) >= 0
    group = "/sys/fs/cgroup/container"
    names = ("memory.current", "memory.events", "cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure")
    sample = signals.parse({f"{group}/{name}": text for name in names}, group, 1.0)
    told = (sample.memory_bytes, sample.oom_kills, sample.cpu_us, *sample.stalled_us.values())
    assert all(value is None or 0 <= value < 10**19 for value in told)


@given(st.text(), st.text())
def test_whatever_is_in_a_pressure_file_is_counted(before: str, after: str) -> None:
    found = signals.parse_pressure(f"some {before} total={after}\nfull avg10=0.00 total=7")
    assert all(0 <= us < 10**19 for us in found.values())


def test_counters_of_a_cgroup() -> None:
    texts = {"g/memory.current": "4096\n", "g/memory.events": "low 0\noom_kill 2\n", "g/cpu.stat": "usage_usec 7\n"}
    assert signals.parse(texts, "g", 1.0) == signals.Sample(1.0, 4096, 2, 7)
    waits = "some avg10=1.53 avg60=0.87 avg300=0.20 total=4212\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=17\n"
    texts["g/io.pressure"] = waits
    assert signals.parse(texts, "g", 1.0).stalled_us == {("io", "some"): 4212, ("io", "full"): 17}


async def test_what_a_watch_gathers(running: tuple[Container, Lives], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters grow from the first look of one VM on; of the checks those that were begun since, and succeeded."""
    container, _ = running
    now = time.time()

    def a_look(at: float, cpu_us: int, stalled_us: int, pid: int, waited_ns: int) -> signals.Sample:
        host = HostTime(pid, {1: waited_ns}, 0)
        return signals.Sample(at, 4096, 0, cpu_us, {("cpu", "some"): stalled_us}, host)

    looks = iter([
        a_look(0.0, 10**9, 0, 7, 0),
        a_look(1.0, 0, 10**6, 8, 0),  # another VM
        a_look(5.0, 2 * 10**6, 2 * 10**6, 8, 10**9),
    ])  # fmt: skip

    async def look(one: Container) -> signals.Sample:
        assert one is container
        return next(looks)

    monkeypatch.setattr(signals, "look", look)
    container.checks.append(Check(now - 60, now - 50, 0, "made before"))
    watch = signals.Watch(container, ("true",))
    await watch.look()
    container.checks.extend([Check(now + 1, now + 1.25, 0, ""), Check(now + 2, now + 5, 1, "refused")])
    await watch.look()
    container.checks.append(Check(now + 6, now + 6.5, 0, ""))
    await watch.look()
    seen = watch.seen()
    assert seen.check_times_s == pytest.approx((0.25, 0.5), abs=1e-5)
    assert (seen.check, seen.looks, seen.answers) == (("true",), 3, 3)
    assert (seen.pressure_s, seen.cpu_cores, seen.host_wait_s) == (4.0, 0.5, 1.0)
    assert seen.stalled == {("cpu", "some"): 0.25}


# --- evidence


def test_evidence_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MAX_DIRECTORIES", 3)
    monkeypatch.setattr(evidence, "MAX_BYTES", 2500)
    for number in range(5):
        directory = tmp_path / "evidence" / f"web-{number}"
        evidence._write(directory, {"a.json": "x" * (1000 if number == 4 else 10)}, {})
        evidence._forget_oldest(directory.parent, directory)
    left = {path.name for path in (tmp_path / "evidence").iterdir()}
    assert left == {"web-2", "web-3", "web-4"}
    large = tmp_path / "evidence" / "web-5"
    evidence._write(large, {"a.json": "x" * 2000}, {})
    evidence._forget_oldest(large.parent, large)
    assert {path.name for path in (tmp_path / "evidence").iterdir()} == {"web-5"}
    assert large.stat().st_mode & 0o777 == 0o700
    assert (large / "a.json").stat().st_mode & 0o777 == 0o600
