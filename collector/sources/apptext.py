"""The text that an application exports for Prometheus, read as the word of a stranger.

Source: Prometheus text format 0.0.4; of OpenMetrics 1.0 what an application sends to whom it takes for Prometheus
(counters declared without `_total`, `_created`, exemplars, `# EOF`). One line that is not of either and nothing of the
text is taken, as Prometheus does. Each line is matched once by an expression that cannot go back.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from collector.errors import MalformedError, TooLargeError
from collector.snapshot import FamilyType, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_LINES: Final = 20_000
MAX_LINE_LENGTH: Final = 16_384
MAX_NAME_LENGTH: Final = 200
MAX_VALUE_LENGTH: Final = 1024
MAX_LABELS: Final = 32
MAX_HELP_LENGTH: Final = 500
_SLICE: Final = 256

_SAMPLE: Final = re.compile(
    r"[ \t]*([a-zA-Z_:][a-zA-Z0-9_:]*)(?:[ \t]*\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\}[ \t]*|[ \t]+)"
    r"([^ \t#{}]+)(?:[ \t]+[-+0-9.eE]+)?[ \t]*(?:#.*)?"
)
_LABEL: Final = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(,?)')
_META: Final = re.compile(r"#[ \t]+(HELP|TYPE)[ \t]+([a-zA-Z_:][a-zA-Z0-9_:]*)(?:[ \t]+(.*))?")
_NUMBER: Final = re.compile(
    r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?|[-+]?(?i:inf(?:inity)?)|(?i:nan)"
)
_ESCAPE: Final = re.compile(r"\\(.)")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_ESCAPED: Final = {"n": "\n", "\\": "\\", '"': '"'}
_TYPES: Final[dict[str, FamilyType]] = {
    "counter": "counter",
    "gauge": "gauge",
    "histogram": "histogram",
    "summary": "summary",
}
_SUFFIXES: Final[dict[str, tuple[str, ...]]] = {
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "summary": ("_count", "_sum", "_created"),
    "counter": ("_total", "_created"),
}


class Parsed:
    """One family as it was sent: samples in the order of the text."""

    __slots__ = ("help", "name", "samples", "type")

    def __init__(self, name: str, kind: FamilyType, text: str) -> None:
        self.name = name
        self.type = kind
        self.help = text
        self.samples: list[Sample] = []


class TextParser:
    """Takes a text in slices, so that a long one holds up nobody. `wanted`: beginnings of names; empty: all."""

    def __init__(self, wanted: tuple[str, ...] = ()) -> None:
        self._wanted = wanted
        self._types: dict[str, FamilyType] = {}
        self._helps: dict[str, str] = {}
        self._families: dict[str, Parsed] = {}
        self._of: dict[str, Parsed | None] = {}

    def feed(self, lines: Iterable[str]) -> None:
        """Take some lines.

        Raises:
            MalformedError: one is not of the format.
        """
        for line in lines:
            if not line or line.isspace():
                continue
            if len(line) > MAX_LINE_LENGTH:
                raise MalformedError(f"a line of more than {MAX_LINE_LENGTH} characters")
            if line.lstrip(" \t").startswith("#"):
                self._meta(line)
            else:
                self._sample(line)

    def finish(self) -> list[Parsed]:
        """What there is, in the order of the text."""
        return [family for family in self._families.values() if family.samples]

    def _meta(self, line: str) -> None:
        found = _META.fullmatch(line.strip(" \t"))
        if found is None:
            return  # any other comment
        kind, name, text = found[1], found[2], found[3] or ""
        if len(name) > MAX_NAME_LENGTH:
            raise MalformedError(f"a name of more than {MAX_NAME_LENGTH} characters")
        if kind == "HELP":
            self._helps.setdefault(name, _CONTROL.sub(" ", _unescape(text))[:MAX_HELP_LENGTH])
        elif name not in self._families:  # what has samples has its type
            self._types.setdefault(name, _TYPES.get(text.strip(), "unknown"))

    def _sample(self, line: str) -> None:
        found = _SAMPLE.fullmatch(line)
        if found is None:
            raise MalformedError(f"no sample: {line[:40]!r}")
        name = found[1]
        if self._wanted and not name.startswith(self._wanted):
            return
        if len(name) > MAX_NAME_LENGTH:
            raise MalformedError(f"a name of more than {MAX_NAME_LENGTH} characters")
        if _NUMBER.fullmatch(found[3]) is None or len(found[3]) > 64:
            raise MalformedError(f"no number: {found[3][:24]!r}")
        family = self._family(name)
        if family is not None:
            labels = parse_labels(found[2]) if found[2] else ()
            family.samples.append(Sample(name, labels, float(found[3])))

    def _family(self, sample: str) -> Parsed | None:
        """The family of a sample; None of a time of creation, which is nothing to relay."""
        if sample in self._of:
            return self._of[sample]
        family = None
        if (found := self._declared(sample)) is not None:
            name, kind, declared = found
            family = self._families.get(name)
            if family is None:
                family = self._families[name] = Parsed(name, kind, self._helps.get(declared, ""))
        self._of[sample] = family
        return family

    def _declared(self, sample: str) -> tuple[str, FamilyType, str] | None:
        """Name and type of a sample's family, and the name that it is declared by."""
        if sample in self._types:
            return sample, self._types[sample], sample
        for kind, suffixes in _SUFFIXES.items():
            for suffix in suffixes:
                stem = sample.removesuffix(suffix)
                if stem == sample or self._types.get(stem) != kind:
                    continue
                if suffix == "_created":
                    return None
                # A counter is named with its `_total`, the others as they are declared.
                return sample if kind == "counter" else stem, self._types[stem], stem
        return sample, "unknown", sample


def parse_labels(text: str) -> tuple[tuple[str, str], ...]:
    """Labels by name, of what stands between the braces.

    Raises:
        MalformedError: not of the format, a name twice, too many, or one that is Prometheus' own.
    """
    labels: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = _LABEL.match(text, at)
        if found is None or (not found[3] and found.end() != len(text)):
            if text[at:].isspace():
                break
            raise MalformedError(f"no labels: {text[at : at + 40]!r}")
        name, value = found[1], found[2]
        if name in labels or len(labels) == MAX_LABELS or name.startswith("__") or len(name) > MAX_NAME_LENGTH:
            raise MalformedError(f"a label twice, too many, or of a name that may not be: {name[:40]!r}")
        value = _unescape(value) if "\\" in value else value
        labels[name] = _CONTROL.sub("_", value) if not value.isprintable() else value
        if len(value) > MAX_VALUE_LENGTH:
            raise MalformedError(f"a label value of more than {MAX_VALUE_LENGTH} characters")
        at = found.end()
    return tuple(sorted(labels.items()))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[0]), text)


def slices(body: bytes) -> Iterator[list[str]]:
    """The text's lines in slices of which none takes long.

    Raises:
        MalformedError: it is not UTF-8.
        TooLargeError: it has more lines than an honest one.
    """
    try:
        lines = body.decode().split("\n", MAX_LINES)
    except UnicodeDecodeError as err:
        raise MalformedError("not UTF-8") from err
    if len(lines) > MAX_LINES:
        raise TooLargeError(f"more than {MAX_LINES} lines")
    for start in range(0, len(lines), _SLICE):
        yield [line.removesuffix("\r") for line in lines[start : start + _SLICE]]


def parse_text(body: bytes, wanted: tuple[str, ...] = ()) -> list[Parsed]:
    """The whole text at once; `TextParser` takes it in parts.

    Raises:
        SourceError: it is not of the format, or longer than an honest one.
    """
    parser = TextParser(wanted)
    for lines in slices(body):
        parser.feed(lines)
    return parser.finish()


def canonical(bound: str) -> str | None:
    """A bound of a bucket, or a quantile, as OpenMetrics writes it ("1" is "1.0"); None if it is no number."""
    if _NUMBER.fullmatch(bound) is None:
        return None
    value = float(bound)
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    point = text.find(".")
    if value > 0 and point > 6:  # Go takes to exponents earlier than Python does
        return f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.") + f"e+{point - 1:02}"
    return text
