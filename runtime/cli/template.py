"""Templates of `--format`: the part of Go's text/template that is used with `docker`, over JSON values.

Fields, variables, pipes, `if`, `range`, `with`, and the functions that Docker adds or that its users need. Imported
only when a template is given.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from runtime.cli.output import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

MAX_CHARACTERS = 64 << 10
_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?)
    | (?P<field>\$[A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*|(?:\.[A-Za-z0-9_]+)+|\.)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<mark>:=|[|(),])
    )""",
    re.VERBOSE,
)
_VERB = re.compile(r"%([-+ 0#]*[0-9]{0,4}(?:\.[0-9]{1,4})?)(.?)", re.DOTALL)


def titles(fields: Mapping[str, str]) -> dict[str, Any]:
    """The row of headings for a table whose columns a template chooses."""
    return {**fields, "Label": lambda name: name}


def lines(text: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each row by the template, on a line of its own.

    Raises:
        ValueError: the template is wrong; the text says where.
    """
    template = Template(text)
    return [clean_lines(template.render(row)) for row in rows]


def clean_lines(text: str) -> str:
    """Text from elsewhere without what would move a terminal's cursor; tabs and newlines are the template's own."""
    return "\n".join("\t".join(clean(cell) for cell in line.split("\t")) for line in text.split("\n"))


@dataclass
class _Node:
    """Text, an expression, or a block (`if`, `range`, `with`) with what stands inside and after `else`."""

    kind: str
    text: str = ""
    tokens: list[tuple[str, str]] = field(default_factory=list)
    inside: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


class _Strings(dict[str, object]):
    """A map of strings with any names, as labels are: what is not there is no error, and by `index` empty."""


class Template:
    """One template, parsed.

    Raises:
        ValueError: it is wrong; the text says what.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"a template has at most {MAX_CHARACTERS} characters")
        # In a shell's single quotes, as Docker takes them.
        self._nodes = _parse(text.replace("\\t", "\t").replace("\\n", "\n"))

    def render(self, value: object) -> str:
        """The text for one value.

        Raises:
            ValueError: a field that is not there, or a function that cannot take its argument.
        """
        try:
            return "".join(_run(self._nodes, value, {"$": value}))
        except (TypeError, AttributeError, RecursionError, IndexError, OverflowError) as err:
            raise ValueError(f"a function was given what it cannot take: {err}") from err


def _parse(text: str) -> list[_Node]:
    stack: list[tuple[_Node, list[_Node]]] = []
    root: list[_Node] = []
    target = root
    position, trim = 0, False
    for match in _ACTION.finditer(text):
        plain = text[position : match.start()]
        plain = plain.lstrip() if trim else plain
        target.append(_Node("text", plain.rstrip() if match[1] else plain))
        position, trim = match.end(), match[3] is not None
        tokens = _tokens(match[2])
        head = tokens[0][1] if tokens and tokens[0][0] == "word" else ""
        if match[2].strip().startswith("/*"):
            continue
        if head in {"if", "range", "with"}:
            node = _Node(head, tokens=tokens[1:])
            target.append(node)
            stack.append((node, target))
            target = node.inside
        elif head == "else":
            if not stack:
                raise ValueError("{{else}} stands outside of a block")
            target = stack[-1][0].otherwise
            if tokens[1:]:
                nested = _Node(tokens[1][1], tokens=tokens[2:])
                target.append(nested)
                # One {{end}} ends the whole chain.
                stack[-1] = (nested, stack[-1][1])
                target = nested.inside
        elif head == "end":
            if not stack:
                raise ValueError("{{end}} ends nothing")
            target = stack.pop()[1]
        else:
            target.append(_Node("value", tokens=tokens))
    if stack:
        raise ValueError(f"{{{{{stack[-1][0].kind}}}}} has no {{{{end}}}}")
    rest = text[position:]
    if "{{" in rest:
        raise ValueError("{{ is not closed by }}")
    target.append(_Node("text", rest.lstrip() if trim else rest))
    return root


def _tokens(text: str) -> list[tuple[str, str]]:
    if text.strip().startswith("/*"):
        return []
    found, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position:][:40].strip()!r} is not understood")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
    if not found:
        raise ValueError("{{}} is empty")
    return found


def _run(nodes: list[_Node], dot: object, variables: dict[str, object]) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "value":
            name, tokens = _assigned(node.tokens)
            value = _Evaluation(tokens, dot, variables).all()
            if name:
                variables[name[0]] = value
            else:
                yield text_of(value)
        elif node.kind == "range":
            yield from _range(node, dot, variables)
        else:
            value = _Evaluation(node.tokens, dot, variables).all()
            inner = value if node.kind == "with" and value else dot
            yield from _run(node.inside if value else node.otherwise, inner, dict(variables))


def _range(node: _Node, dot: object, variables: dict[str, object]) -> Iterator[str]:
    names, tokens = _assigned(node.tokens)
    value = _Evaluation(tokens, dot, variables).all()
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = sorted(value.items())
    elif value is None or isinstance(value, list | tuple):
        pairs = list(enumerate(value or ()))
    else:
        raise ValueError("range goes through a list or a map only")
    for key, member in pairs:
        own = dict(variables)
        if len(names) == 2:
            own |= {names[0]: key, names[1]: member}
        elif names:
            own[names[0]] = member
        yield from _run(node.inside, member, own)
    if not pairs:
        yield from _run(node.otherwise, dot, dict(variables))


def _assigned(tokens: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    if ("mark", ":=") not in tokens:
        return [], tokens
    at = tokens.index(("mark", ":="))
    return [text for kind, text in tokens[:at] if kind == "field"], tokens[at + 1 :]


class _Evaluation:
    """One pipeline."""

    def __init__(self, tokens: list[tuple[str, str]], dot: object, variables: Mapping[str, object]) -> None:
        self._tokens = tokens
        self._at = 0
        self._dot = dot
        self._variables = variables

    def all(self) -> object:
        value = self._pipeline()
        if self._at < len(self._tokens):
            raise ValueError(f"{self._tokens[self._at][1]!r} is not expected")
        return value

    def _pipeline(self) -> object:
        value = self._command([])
        while self._peek() == ("mark", "|"):
            self._at += 1
            value = self._command([value])
        return value

    def _command(self, piped: list[object]) -> object:
        kind, text = self._peek()
        if kind == "word" and text not in {"true", "false", "nil"}:
            self._at += 1
            if text not in FUNCTIONS:
                raise ValueError(f"there is no function {text!r}; there are: {', '.join(sorted(FUNCTIONS))}")
            return FUNCTIONS[text](*self._operands(), *piped)
        first = self._operand()
        rest = self._operands()
        if callable(first):
            return first(*rest, *piped)
        if rest or piped:
            raise ValueError(f"{text!r} is no function and takes nothing")
        return first

    def _operands(self) -> list[object]:
        found = []
        while self._at < len(self._tokens) and self._peek() not in {("mark", "|"), ("mark", ")")}:
            found.append(self._operand())
        return found

    def _operand(self) -> object:
        kind, text = self._peek()
        self._at += 1
        if kind == "string":
            return text[1:-1] if text[0] == "`" else json.loads(text, strict=False)
        if kind == "number":
            return float(text) if "." in text else int(text)
        if kind == "field":
            return self._field(text)
        if (kind, text) == ("mark", "("):
            value = self._pipeline()
            if self._peek() != ("mark", ")"):
                raise ValueError("'(' is not closed")
            self._at += 1
            after, path = self._peek()
            if after == "field" and path.startswith(".") and path != ".":
                self._at += 1
                return self._below(value, path)
            return value
        if kind == "word" and text in {"true", "false", "nil"}:
            return {"true": True, "false": False, "nil": None}[text]
        raise ValueError(f"{text or 'the end'!r} is not expected")

    def _field(self, text: str) -> object:
        root, _, path = text.partition(".")
        if root and root not in self._variables:
            raise ValueError(f"there is no variable {root}")
        return self._below(self._variables[root] if root else self._dot, f".{path}")

    def _below(self, value: object, path: str) -> object:
        for name in path.split(".")[1:] if path != "." else ():
            if not isinstance(value, dict):
                if value is None:
                    return None
                raise ValueError(f"{path}: there is nothing below what stands before .{name}")
            if name not in value:
                if isinstance(value, _Strings):
                    return None
                known = ", ".join(f".{one}" for one in list(value)[:40])
                raise ValueError(f"there is no field .{name}; there are: {known or 'none'}")
            value = value[name]
            if name in ("Labels", "labels") and isinstance(value, dict):
                value = _Strings(value)
        return value

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "")


def text_of(value: object) -> str:
    """A value as Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{text_of(value[key])}' for key in sorted(value))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(text_of(one) for one in value)}]"
    return str(value)


def _index(value: Any, *keys: Any) -> object:
    for key in keys:
        missing = "" if isinstance(value, _Strings) else None
        value = value.get(key, missing) if isinstance(value, dict) else value[key]
    return value


def _printf(form: str, *values: object) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        how, verb = match.groups()
        if verb == "%":
            return "%"
        if verb not in ("s", "v", "d", "q", "f", "x"):
            raise ValueError(f"printf: {match[0]!r} is not understood; there are: %s %v %q %d %x %f %%, with a width")
        if not left:
            raise ValueError(f"printf: there is no value for {match[0]!r}")
        value = left.pop(0)
        if verb in ("d", "f", "x"):
            return f"%{how}{verb}" % value
        text = text_of(value)
        return f"%{how}s" % (json.dumps(text, ensure_ascii=False) if verb == "q" else text)

    return _VERB.sub(one, form)


def _plain(row: object) -> object:
    """A row without the members that are functions."""
    return {key: value for key, value in row.items() if not callable(value)} if isinstance(row, dict) else row


def _and(*values: object) -> object:
    return next((value for value in values if not value), values[-1])


def _or(*values: object) -> object:
    return next((value for value in values if value), values[-1])


FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "json": lambda value: json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")),
    "join": lambda values, gap: gap.join(text_of(one) for one in values or ()),
    "split": lambda text, gap: text.split(gap),
    "lower": lambda text: text_of(text).lower(),
    "upper": lambda text: text_of(text).upper(),
    "title": lambda text: text_of(text).title(),
    "truncate": lambda text, count: text_of(text)[:count],
    "len": lambda value: len(value or ()),
    "index": _index,
    "print": lambda *values: " ".join(text_of(one) for one in values),
    "println": lambda *values: " ".join(text_of(one) for one in values) + "\n",
    "printf": _printf,
    "eq": lambda first, *rest: first in rest,
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "gt": lambda first, second: first > second,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
}
