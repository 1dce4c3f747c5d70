"""A file that people write in TOML, held against its model."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from alerts.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path

_T = TypeVar("_T", bound=BaseModel)


def parse(path: Path, content: bytes, model: type[_T]) -> _T:
    """What the file at `path` says.

    Raises:
        BadSetting: it is no TOML, or has a member that cannot be; the message names it.
    """
    try:
        return model.model_validate(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise BadSetting(f"{path}: not TOML: {err}") from err
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadSetting(f"{path}: {where}: {first['msg']}") from err
