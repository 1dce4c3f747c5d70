"""What the bodies of requests have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A body in JSON; a member that it does not have is refused by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
