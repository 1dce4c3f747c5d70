"""Calls that are carried out once, however often a caller that got no answer makes them.

The request is written down before anything is done, and its result before the journal's entry of the operation is
struck out. So one that a daemon's end has interrupted was either finished by recovery, or has not been begun.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from runtime.changes import book as books
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from runtime.changes.book import Book

_DONE: dict[str, Any] = {"done": True}


class Failed(RuntimeFault):
    """What a request came to when it was made the first time."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(str(told["message"]), field=told["field"])
        self.status, self.code = int(told["status"]), str(told["code"])


class Requests:
    """Those of `redeploy`, `quarantine` and `evidence`; a rollout is known by its request itself."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._under_way: dict[str, asyncio.Event] = {}

    async def once(
        self,
        request_id: str | None,
        call: str,
        name: str,
        work: Callable[[Callable[[dict[str, Any]], None]], Awaitable[None]],
    ) -> dict[str, Any]:
        """The result of the work, done now or when the request was made before.

        Args:
            request_id: None: it is done in any case.
            call: What is asked for.
            name: Of the container.
            work: Is given what to tell its result to, before its operation ends; a failure of it is a result.

        Raises:
            Conflict: the id is that of another request.
            RuntimeFault: what the work raised, or had raised.
        """
        if request_id is None:
            found: dict[str, Any] = {}
            await work(found.update)
            return found
        while event := self._under_way.get(request_id):
            await event.wait()
        known = self._book.request(request_id)
        if known is not None:
            books.demand_same(known, call, name)
            return _told(known.result or _DONE)
        self._under_way[request_id] = asyncio.Event()
        try:
            self._book.asked(request_id, call, name)
            try:
                await work(lambda result: self._book.answered(request_id, result))
            except RuntimeFault as err:
                told = {"status": err.status, "code": err.code, "message": err.message, "field": err.field}
                self._book.answered(request_id, {"error": told})
                raise
            except BaseException:
                self._book.unasked(request_id)
                raise
            done = self._book.request(request_id)
            return (done and done.result) or _DONE
        finally:
            self._under_way.pop(request_id).set()

    def recover(self, interrupted: Collection[tuple[str, str]]) -> None:
        """Of a daemon that comes back: what the journal has, as (operation, name), was done; the rest was not begun."""
        for one in self._book.unanswered():
            if (one.call, one.name) in interrupted:
                self._book.answered(one.request_id, _DONE)
            else:
                self._book.unasked(one.request_id)


def _told(result: dict[str, Any]) -> dict[str, Any]:
    if "error" in result:
        raise Failed(result["error"])
    return result
