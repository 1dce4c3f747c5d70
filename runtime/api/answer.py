"""What the answers of calls have in common: they are JSON, whatever stands in a string of them."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from fastapi import Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_ANYTHING = TypeAdapter(Any)


class Answer(JSONResponse):
    """An answer in JSON.

    Half a character (a lone surrogate) becomes `?`. It is refused where it comes in, but an older version may have
    stored one, and a listing must not fail for a string of one of those listed.
    """

    def render(self, content: Any) -> bytes:
        """The body."""
        try:
            return _ANYTHING.dump_json(content)
        except ValueError:  # slower, but it takes what UTF-8 cannot say, and what is nested deeper than pydantic goes
            return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


class Route(APIRoute):
    """A call of the API. What it returns is the answer: FastAPI neither looks it through again nor writes it."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Any]], **more: Any) -> None:
        status = more.get("status_code") or 200

        @functools.wraps(endpoint)
        async def answered(*args: Any, **kwargs: Any) -> Any:
            found = await endpoint(*args, **kwargs)
            return found if found is None or isinstance(found, Response) else Answer(found, status)

        super().__init__(path, answered, **{**more, "response_model": None})
