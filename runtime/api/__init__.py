"""The REST API of hyperd (`docs/reference/api.md`): one module a kind of thing, all over one engine."""

from runtime.api.app import build

__all__ = ["build"]
