"""One container's application, as far as labels ask for it: its own metrics are relayed, and it is probed.

Both are fetches inside the guest, over the agent's statistics port. They go on beside the rounds: a round begins what
is due and shows what has come, and waits for an application only for a moment, and only if that answered the last time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from collector import asked, relay
from collector.definitions import container
from collector.errors import ApplicationError, MalformedError, SourceError, TooLargeError
from collector.snapshot import Point
from collector.sources import apptext, httpanswer
from collector.sources.fetch import fetch
from runtime.labels import PROBE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from collector.snapshot import Family
    from collector.sources.fetch import Ask, Fetched

T = TypeVar("T")

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 0.1
"""A round waits so long for applications that answered the last time: their values are then of this round."""
PROBE_BYTES: Final = 65_536
"""Of an answer to a probe the first line is looked at; but few servers are to see their page cut off."""
_TURN: Final = 256
"""Series that are looked at in one go."""
_ERRORS: Final = {"ECONNREFUSED": "refused", "ETIMEDOUT": "timeout", "ECONNRESET": "closed", "EPIPE": "closed"}
_BUCKET: Final = container.PROBE_DURATION_SECONDS.part("bucket", "le")
_COUNT: Final = container.PROBE_DURATION_SECONDS.part("count")
_SUM: Final = container.PROBE_DURATION_SECONDS.part("sum")


class _Job:
    """Something that is fetched again and again: one at a time, and failures counted by reason."""

    def __init__(self, container_id: str, what: str) -> None:
        self.failures: Counter[str] = Counter()
        self.good: bool | None = None
        self.task: asyncio.Task[None] | None = None
        self._container_id = container_id
        self._what = what
        self._due_at = float("-inf")
        self._prompt = True

    @property
    def prompt(self) -> bool:
        """The last one came to its end within a round's patience."""
        return self._prompt

    def is_due(self, now_s: float, interval_s: float) -> bool:
        """Whether to begin now; then it is taken to have begun."""
        if (self.task is not None and not self.task.done()) or now_s < self._due_at:
            return False
        self._due_at = now_s + interval_s
        return True

    async def attempt(self, work: Callable[[Ask], Awaitable[None]], ask: Ask, failed: Callable[[], None]) -> None:
        """Do it once; whatever goes wrong is a count."""
        began = time.monotonic()
        try:
            await work(ask)
            self.tell(None)
        except ApplicationError as err:
            failed()
            self.failures[err.reason] += 1
            self.tell(f"{err.reason}: {err}")
        except Exception:
            failed()
            self.failures["defect"] += 1
            logger.exception("container %.12s: defect in the %s", self._container_id, self._what)
        self._prompt = time.monotonic() - began < PATIENCE_S

    def fail(self, reason: str, detail: str) -> None:
        """It could not even begin."""
        self.failures[reason] += 1
        self.tell(f"{reason}: {detail}")

    def tell(self, fault: str | None) -> None:
        """Keep whether it went well, and log when that changes."""
        good = fault is None
        if good != self.good:
            if fault is not None:
                logger.warning("container %.12s: %s: %s", self._container_id, self._what, fault)
            elif self.good is not None:
                logger.info("container %.12s: the %s is well again", self._container_id, self._what)
        self.good = good


class Application:
    """What labels ask for of one container, over one epoch. `names` are those of all containers of the host."""

    def __init__(self, container_id: str, labels: Mapping[str, str], names: relay.Names) -> None:
        self._id = container_id
        self._names = names
        self._relay_job, self._probe_job = _Job(container_id, "relay"), _Job(container_id, "probe")
        self._relay = self._probe = None
        try:
            self._relay = asked.parse_relay(labels)
        except asked.LabelError as err:
            self._relay_job.fail("label", str(err))
        try:
            self._probe = asked.parse_probe(labels)
        except asked.LabelError as err:
            self._probe_job.fail("label", str(err))
        self.relayed: tuple[Family, ...] = ()
        self._dropped: Counter[str] = Counter()
        self._duration_s: float | None = None
        self._bins = [0] * (len(container.DURATION_BOUNDS) + 1)
        self._sum_s = 0.0
        self._awaited: list[asyncio.Task[None]] = []

    @staticmethod
    def of(container_id: str, labels: Mapping[str, str], names: relay.Names) -> Application | None:
        """None if no label asks for anything, as of most containers."""
        if asked.METRICS in labels or PROBE in labels:
            return Application(container_id, labels, names)
        return None

    def begin(self, ask: Ask | None) -> None:
        """Begin what is due; `ask` is None while the guest's agent does not answer."""
        now_s = time.monotonic()
        if self._relay is not None and self._relay_job.is_due(now_s, self._relay.interval_s):
            self._go(self._relay_job, self._fetch_metrics, self._forget, ask)
        if self._probe is not None and self._probe_job.is_due(now_s, self._probe.interval_s):
            self._go(self._probe_job, self._make_probe, lambda: None, ask)

    def rest(self) -> None:
        """The container is starting, or paused: there is nothing to ask, and nothing to blame."""
        self._forget()
        self._relay_job.good = self._probe_job.good = None

    def _go(
        self,
        job: _Job,
        work: Callable[[Ask], Awaitable[None]],
        failed: Callable[[], None],
        ask: Ask | None,
    ) -> None:
        if ask is None:
            failed()
            job.fail("agent", "the guest does not answer")
        else:
            job.task = asyncio.create_task(job.attempt(work, ask, failed))
            if job.prompt:
                self._awaited.append(job.task)

    async def settle(self) -> None:
        """Wait a moment for what usually comes at once."""
        tasks, self._awaited = self._awaited, []
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE_S)

    def points(self) -> Iterator[Point]:
        """How relay and probe go."""
        if self._relay is not None or self._relay_job.failures:
            yield from self._relay_points()
        if self._probe is not None or self._probe_job.failures:
            yield from self._probe_points()

    def _relay_points(self) -> Iterator[Point]:
        job = self._relay_job
        if job.good is not None:
            yield Point(container.RELAY_UP, (), float(job.good))
            yield Point(container.RELAY_SERIES, (), relay.series(self.relayed))
        if self._duration_s is not None:
            yield Point(container.RELAY_DURATION_SECONDS, (), self._duration_s)
        for reason, count in self._dropped.items():
            yield Point(container.RELAY_DROPPED_TOTAL, (reason,), count)
        for reason, count in job.failures.items():
            yield Point(container.RELAY_FAILURES_TOTAL, (reason,), count)

    def _probe_points(self) -> Iterator[Point]:
        job = self._probe_job
        if job.good is not None:
            yield Point(container.PROBE_SUCCESS, (), float(job.good))
        for reason, count in job.failures.items():
            yield Point(container.PROBE_FAILURES_TOTAL, (reason,), count)
        if self._probe is None:
            return
        total = 0
        for bound, count in zip((*container.DURATION_BOUNDS, "+Inf"), self._bins, strict=True):
            total += count
            yield Point(_BUCKET, (str(bound),), total)
        yield Point(_COUNT, (), total)
        yield Point(_SUM, (), self._sum_s)

    async def _fetch_metrics(self, ask: Ask) -> None:
        wanted = self._relay
        assert wanted is not None  # noqa: S101 -- it is what this was begun for
        send = httpanswer.request(wanted.port, wanted.path)
        most_bytes = httpanswer.MAX_BODY_BYTES + httpanswer.MAX_HEAD_BYTES
        fetched = await _fetched(ask, port=wanted.port, send=send, deadline_s=wanted.timeout_s, max_bytes=most_bytes)
        self._duration_s = fetched.total_s
        answer = _answer(fetched)
        if answer.status != 200:
            raise ApplicationError("status", f"HTTP status {answer.status}")
        if fetched.truncated or len(answer.body) > httpanswer.MAX_BODY_BYTES:
            raise ApplicationError("too_large", f"more than {httpanswer.MAX_BODY_BYTES} bytes")
        if not answer.whole:
            raise ApplicationError(_ERRORS.get(fetched.error or "", "closed"), "the answer is cut off")
        parser = apptext.TextParser(wanted.allow)
        try:
            for lines in apptext.slices(answer.body):
                parser.feed(lines)
                await asyncio.sleep(0)  # a long text is read between other work
        except TooLargeError as err:
            raise ApplicationError("too_large", err.reason) from err
        except MalformedError as err:
            raise ApplicationError("malformed", err.reason) from err
        steps = relay.select(parser.finish(), self._names, self._id, wanted.budget, wanted.labels)
        self.relayed, dropped = await _in_turns(steps)
        self._dropped.update(dropped)

    def _forget(self) -> None:
        """Values of an application that does not tell them any more are not shown, as Prometheus' would not be."""
        self.relayed = ()
        self._names.release(self._id)

    async def _make_probe(self, ask: Ask) -> None:
        wanted = self._probe
        assert wanted is not None  # noqa: S101 -- it is what this was begun for
        send = httpanswer.request(wanted.port, wanted.path) if wanted.kind == "http" else ""
        fetched = await _fetched(ask, port=wanted.port, send=send, deadline_s=wanted.timeout_s, max_bytes=PROBE_BYTES)
        took_s = fetched.connect_s
        if wanted.kind == "http":
            status = _answer(fetched).status
            took_s = fetched.first_byte_s
            if not 200 <= status < 400:
                self._observe(took_s)
                raise ApplicationError("status", f"HTTP status {status}")
        elif took_s is None:
            raise ApplicationError(_ERRORS.get(fetched.error or "", "closed"), fetched.error or "not connected")
        self._observe(took_s)

    def _observe(self, seconds: float | None) -> None:
        if seconds is not None:
            self._bins[bisect_left(container.DURATION_BOUNDS, seconds)] += 1
            self._sum_s += seconds

    def close(self) -> None:
        """End what goes on, and give up what is relayed."""
        for job in (self._relay_job, self._probe_job):
            if job.task is not None:
                job.task.cancel()
        self._forget()


async def _in_turns(steps: relay.Steps[T]) -> T:
    """What comes out; after some hundred series others have a turn."""
    done = 0
    while True:
        try:
            done += next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if done >= _TURN:
            done = 0
            await asyncio.sleep(0)


async def _fetched(ask: Ask, **what: Any) -> Fetched:
    try:
        return await fetch(ask, **what)
    except (SourceError, TimeoutError) as err:
        raise ApplicationError("agent", str(err) or "no answer") from err


def _answer(fetched: Fetched) -> httpanswer.Answer:
    """The HTTP answer.

    Raises:
        ApplicationError: there is none.
    """
    if not fetched.data:
        raise ApplicationError(_ERRORS.get(fetched.error or "", "closed"), fetched.error or "closed without an answer")
    try:
        return httpanswer.parse_answer(fetched.data, ended=fetched.error is None and not fetched.truncated)
    except SourceError as err:
        if fetched.error == "ETIMEDOUT":
            raise ApplicationError("timeout", "the deadline came before an answer") from err
        raise ApplicationError("malformed", err.reason) from err
