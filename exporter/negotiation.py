"""Which format and encoding a client gets (RFC 9110, sections 12.5.1 and 12.5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporter.exposition import Format

_MAX_HEADER: Final = 4096


def choose_format(accept: str) -> Format:
    """OpenMetrics if the client wants it at least as much as text; whoever asks for neither gets text."""
    openmetrics = text = 0.0
    for media, parameters, quality in _ranges(accept):
        if media == "application/openmetrics-text" and parameters.get("version", "1.0.0") == "1.0.0":
            openmetrics = max(openmetrics, quality)
        elif media in {"text/plain", "text/*"} and parameters.get("version", "0.0.4") == "0.0.4":
            text = max(text, quality)
    return "openmetrics" if openmetrics and openmetrics >= text else "text"


def accepts_gzip(accept_encoding: str) -> bool:
    """The client takes gzip."""
    return any(coding in {"gzip", "*"} and quality > 0 for coding, _, quality in _ranges(accept_encoding))


def _ranges(header: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for part in header[:_MAX_HEADER].lower().split(","):
        media, *words = (word.strip() for word in part.split(";"))
        parameters = {}
        for word in words:
            key, _, value = word.partition("=")
            parameters[key.strip()] = value.strip().strip('"')
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        yield media, parameters, quality if 0 <= quality <= 1 else 0.0
