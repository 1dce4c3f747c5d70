"""A person's word for what was only proposed."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from alerts.errors import AuditUnwritable, HyperdAway, HyperdRefused, NotApproved

if TYPE_CHECKING:
    import asyncio

    from alerts.remediation import policy
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Decision
    from alerts.remediation.work import Work

log = logging.getLogger("hyper.remediation")


async def approve(work: Work, hyperd: Hyperd, decision_id: str, actor: str, answer: asyncio.Future[Decision]) -> None:
    """Do what a decision proposed.

    `answer` is given the intent once that is written down, or `NotApproved` or `AuditUnwritable`.
    """
    try:
        proposal = _proposal(work, decision_id)
        async with work.lock(proposal.key):
            proposal = _proposal(work, decision_id)
            container = await hyperd.container(proposal.container or "")
            _still_fits(proposal, container)
            intent = replace(
                proposal, id=uuid.uuid4().hex, time=work.clock(), verdict="act", epoch=container.epoch,
                incident=f"approval/{proposal.id}", approves=proposal.id, actor=actor, beside=False,
            )  # fmt: skip
            await work.write(intent)
            answer.set_result(intent)
            await work.act(intent)
    except (NotApproved, AuditUnwritable) as err:
        answer.set_exception(err) if not answer.done() else log.error("%s", err)  # noqa: TRY400 -- told above
    except (HyperdRefused, HyperdAway) as err:
        failure = NotApproved(str(err), status=503 if isinstance(err, HyperdAway) else 409)
        failure.__cause__ = err
        if not answer.done():
            answer.set_exception(failure)
    finally:
        if not answer.done():
            answer.cancel()


def _proposal(work: Work, decision_id: str) -> Decision:
    waiting = work.journal.waiting(work.clock())
    found = [one for one in waiting if decision_id and one.id.startswith(decision_id)]
    if len(found) != 1:
        text = "several decisions that wait begin so: write more of it" if found else "no such decision waits"
        raise NotApproved(f"{decision_id[:64]}: {text}", status=409 if found else 404)
    if work.stopped:
        raise NotApproved(f"the stop switch is on: {work.stop_file} exists", status=409)
    return found[0]


def _still_fits(proposal: Decision, container: policy.Container) -> None:
    """Check that a container is still what a proposal was made for.

    Raises:
        NotApproved: it is not.
    """
    if (container.id, container.image_digest) != (proposal.container_id, proposal.digest):
        raise NotApproved(f"{container.name} is another container, or of another image, now", status=409)
    if container.quarantine is not None:
        raise NotApproved(f"{container.name} is in quarantine; a person lifts it first", status=409)
