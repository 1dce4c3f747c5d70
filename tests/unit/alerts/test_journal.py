from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from alerts.errors import AuditUnwritable
from alerts.remediation.journal import FILE_NAME, Decision, Journal, Outcome

if TYPE_CHECKING:
    from pathlib import Path

ACT = Decision(
    id="1", time=10.0, verdict="act", reason="container_down", detail="d", action="redeploy",
    alert="HyperContainerDown",
    incident="f/0.000", container_id="c", container="web", tenant="default", epoch=1,
)  # fmt: skip


def reopened(journal: Journal, directory: Path) -> Journal:
    journal.close()
    return Journal(directory)


def test_an_intent_is_unfinished_until_its_outcome_also_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "audit")
    journal.decide(ACT)
    journal = reopened(journal, tmp_path / "audit")
    assert journal.unfinished() == (ACT,)
    assert journal.acted_on(ACT.incident)
    assert journal.acted_at("default/web") == (10.0,)
    assert journal.latest_action_at() == 10.0
    journal.conclude(Outcome("1", 11.0, "done", carried_out=True, detail="", epoch=2))
    assert journal.unfinished() == ()
    journal = reopened(journal, tmp_path / "audit")
    assert journal.unfinished() == ()
    assert journal.acted_on(ACT.incident)
    assert [line["kind"] for line in journal.recent(10)] == ["outcome", "decision"]
    assert [line["kind"] for line in journal.recent(1)] == ["outcome"]
    journal.close()


@pytest.mark.parametrize("carried_out", [True, False])
def test_what_failed_may_be_tried_again_but_counts_against_the_guards(carried_out: bool, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.decide(ACT)
    journal.conclude(Outcome("1", 11.0, "failed", carried_out=carried_out, detail=""))
    assert not journal.acted_on(ACT.incident)
    assert journal.acted_at("default/web") == (10.0,)
    journal.decide(replace(ACT, id="2", verdict="skip", reason="duplicate", action=None))
    assert not journal.acted_on(ACT.incident)
    journal.close()


@pytest.mark.parametrize("torn", [b'{"kind":"decision","id', b"\xff\xfe\x00", b"[" * 5000, b"{}", b"null", b"7"])
def test_a_torn_line_harms_no_other(torn: bytes, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.decide(ACT)
    journal.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(torn)
    journal = Journal(tmp_path)
    assert journal.skipped_lines == 1
    journal.conclude(Outcome("1", 11.0, "done", carried_out=True, detail=""))
    journal = reopened(journal, tmp_path)
    assert journal.unfinished() == ()
    assert journal.skipped_lines == 1
    journal.close()


def test_the_file_is_private_and_rotated_and_what_matters_is_remembered(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    journal = Journal(directory, max_bytes=1000)
    for number in range(40):
        journal.decide(replace(ACT, id=str(number), incident=f"f/{number}", time=float(number)))
    assert journal.acted_at("default/web")[-1] == 39.0
    names = sorted(path.name for path in directory.iterdir())
    assert names == [FILE_NAME, *(f"{FILE_NAME}.{n}" for n in range(1, 5)), "remediation.lock"]
    assert all(path.stat().st_size <= 1000 for path in directory.iterdir())
    assert (directory.stat().st_mode & 0o777, (directory / FILE_NAME).stat().st_mode & 0o777) == (0o700, 0o600)
    journal = reopened(journal, directory)
    assert journal.acted_on("f/39")
    assert journal.acted_at("default/web")[-2:] == (38.0, 39.0)
    for path in directory.glob(f"{FILE_NAME}*"):
        assert all(json.loads(line)["kind"] == "decision" for line in path.read_text().splitlines())
    journal.close()


def test_a_write_that_fails_leaves_no_trace_in_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    whole = os.write

    def half(fd: int, data: bytes) -> int:
        return whole(fd, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(AuditUnwritable, match="bytes were written"):
            journal.decide(ACT)
    assert (journal.unfinished(), journal.acted_at("default/web"), journal.recent(1)) == ((), (), [])
    journal.decide(replace(ACT, id="2"))
    journal = reopened(journal, tmp_path)
    assert [intent.id for intent in journal.unfinished()] == ["2"]
    journal.close()


def test_one_controller_a_directory(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(AuditUnwritable, match="another remediation controller"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditUnwritable, match="audit"):
        Journal(tmp_path / "file/audit")


def test_a_push_that_was_held_back_is_remembered_until_its_turn(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def decide(ident: str, reason: Any, digest: str | None, **more: Any) -> None:
        one = replace(ACT, id=ident, alert="push", incident=f"push/{digest}", reason=reason, to_digest=digest,
                      **{"verdict": "skip", "action": None, **more})  # fmt: skip
        journal.decide(one)

    decide("1", "cooldown", "a")
    decide("2", "budget_spent", "b")
    decide("3", "maintenance", None)
    decide("4", "same_digest", "c")
    decide("5", "same_digest", "a")
    journal = reopened(journal, tmp_path)
    assert [one.id for one in journal.held()] == ["2", "3"], "the newest of the tag, and that of the base"
    decide("6", "image_pushed", "b", verdict="act", action="update")
    decide("7", "pull_failed", None)
    assert journal.held() == ()
    assert (journal.acted_at("default/web"), journal.renewed_at("default/web")) == ((), (10.0,))
    assert (journal.host_acted_at(), journal.host_renewed_at()) == ((), (10.0,))
    assert journal.latest_action_at() == 10.0
    journal.close()


def test_what_waits_gives_way_to_what_is_newer_and_to_the_end_of_its_alert(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def propose(ident: str, action: Any, reason: Any = "image_pushed", incident: str = "f") -> None:
        one = replace(ACT, id=ident, verdict="dry_run", action=action, reason=reason, incident=incident)
        journal.decide(one)

    propose("1", "update")
    propose("2", "rebuild", "vulnerable")
    propose("3", "update")
    propose("4", "rebuild", "base_pushed")
    propose("5", "redeploy", "container_down", "alert")
    propose("6", "rollback", "container_down", "alert")
    propose("7", "redeploy", "container_down", "another")
    journal.decide(replace(ACT, id="8", verdict="skip", action=None, reason="resolved", incident="alert"))
    journal = reopened(journal, tmp_path)
    assert [one.id for one in journal.waiting(11.0)] == ["2", "3", "4", "6", "7"]
    journal.close()


def test_a_rotation_that_had_no_room_for_a_new_file_is_finished_when_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "audit"
    journal = Journal(directory, max_bytes=1000)
    opened, full = os.open, False

    def no_room(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if full and flags & os.O_CREAT:
            raise OSError(28, "No space left on device")
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", no_room)
    kept = []
    for number in range(20):
        full = number < 8
        try:
            journal.decide(replace(ACT, id=str(number), incident=f"f/{number}"))
        except AuditUnwritable:
            continue
        kept.append(str(number))
    assert kept[0] == "0"
    assert set(map(str, range(8, 20))) <= set(kept)
    files = [directory / name for name in (f"{FILE_NAME}.4", *(f"{FILE_NAME}.{n}" for n in (3, 2, 1)), FILE_NAME)]
    lines = [json.loads(line)["id"] for path in files if path.exists() for line in path.read_text().splitlines()]
    assert lines == kept[-len(lines) :], "in order, and no file was put over one that was to be kept"
    monkeypatch.undo()
    journal = reopened(journal, directory)
    assert journal.acted_on("f/19")
    journal.close()
