"""Option values as Docker takes them. A wrong one is an error of one line that names the option and the remedy."""

from __future__ import annotations

import argparse
import functools
import os
import re

from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

SIZE_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
# Patterns are compiled when one is needed: that takes longer than all else that a start does with them.
_SIZE = r"(?ai)(\d{1,18}(?:\.\d{1,18})?)\s*([bkmgt]?)(?:i?b)?"
DURATION_UNITS = {"ms": 0.001, "us": 1e-6, "ns": 1e-9, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|us|ns|s|m|h)"
LONGEST_WAIT_S = 86400.0  # of the API
# As Go's strconv.ParseBool has them.
TRUTHS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_NO_HELP_WIDTH = 80


class _Switched(argparse._StoreConstAction):
    """An option that is on or off, with a value, such as `--rm=true`; None is a wrong one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store it."""
        if self.const is None:
            name, _, value = str(option_string).partition("=")
            raise ClientError(f"{name} {value!r}: write true or false, or nothing")
        super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours: one line, exit code 125. `-h` is help unless a command wants it for itself."""

    def __init__(self, *, prog: str, description: str, short_help: bool = True) -> None:
        # argparse looks each of its words up in a catalogue of translations, which is not there, but takes a search.
        argparse._ = str  # type: ignore[attr-defined]
        # argparse makes a formatter for each argument; one that has to find out a width imports what few calls need.
        formatter: Any = functools.partial(argparse.HelpFormatter, width=_NO_HELP_WIDTH)
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, add_help=False, formatter_class=formatter
        )
        names = ("-h", "--help") if short_help else ("--help",)
        self.add_argument(*names, action="help", help="show this text")

    def format_help(self) -> str:
        """What `--help` prints, as wide as the terminal, with examples."""
        from runtime.cli import examples  # here: few need it

        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.epilog = examples.text(self.prog.split()[-1])
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Remember what was given, for `error`; options may stand between names, as Docker has it."""
        self._given = [str(word) for word in args or ()]
        return super().parse_known_args(self._options_first(self._given), namespace)

    def _options_first(self, words: list[str]) -> list[str]:
        """The words with our options before the names: argparse takes no more names behind an option that follows one.

        What is not ours stays where it is, so that it is told of as before; so do the words of an action or a program.
        """
        if any(one.nargs in (argparse.PARSER, argparse.REMAINDER) for one in self._actions):
            return words
        end = words.index("--") if "--" in words else len(words)
        options: list[str] = []
        names: list[str] = []
        at = 0
        while at < end:
            count = self._option_words(words[at])
            if count == 2 and (at + 1 == end or self._parse_optional(words[at + 1]) is not None):
                return words  # a name must not become the value that is missing
            (options if count else names).extend(words[at : at + max(count, 1)])
            at += max(count, 1)
        return [*options, *names, *words[end:]]

    def _option_words(self, word: str) -> int:
        """How many words an option of ours has, with its value; 0: it is none."""
        known = self._option_string_actions
        name, equals, _ = word.partition("=")
        if name in known:
            return 2 if known[name].nargs is None and not equals else 1
        if word.startswith("--") or not word.startswith("-"):
            return 0
        for at, letter in enumerate(word[1:], 2):
            action = known.get(f"-{letter}")
            if action is None:
                return 0
            if action.nargs is None:
                return 1 if word[at:] else 2
        return int(word != "-")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse has found wrong; of an option that only Docker has, say why it is not here."""
        if message.startswith(("unrecognized", "the following arguments are required")):
            from runtime.cli import refused  # here: few need it

            refused.check(self.prog, self._given, self._option_string_actions)
        if message.startswith("argument ACTION: invalid choice: "):
            from runtime.cli import refused  # here: few need it

            action = next(word for word in self._given if not word.startswith("-"))
            raise refused.command(f"{self.prog.removeprefix('hyper ')} {action}")
        raise ClientError(f"{message[:1].lower()}{message[1:]}; see: {self.prog} --help")

    def add_format(self) -> None:
        """The option that every listing command has."""
        self.add_argument("--format", choices=("table", "json"), default="table", help="json is for machines")

    def add_template(self, default: str = "table", *, short: bool = False) -> None:
        """The option of commands whose output a template may shape; `short`: with `-f`."""
        self.add_argument(
            *(["-f"] if short else []), "--format", type=template, default=default, metavar="FORMAT",
            help="table, json, or a template such as '{{.ID}} {{.Names}}', also with 'table ' before it",
        )  # fmt: skip

    def add_switch(self, *names: str, default: bool = False, text: str) -> None:
        """An option that is on or off, and may be on by itself."""
        self.add_argument(*names, action="store_true", default=default, help=text)

    def _parse_optional(self, arg_string: str) -> Any:
        """Take `--rm=true` and `-i=false` of any option that is on or off, as Docker does.

        Such a word becomes an option itself: which of the words are ours is not known yet, and one that is not must
        neither do anything nor be an error.
        """
        name, equals, value = arg_string.partition("=")
        action = self._option_string_actions.get(name)
        if equals and isinstance(action, argparse._StoreConstAction):
            const = TRUTHS.get(value)
            if const is not None and not action.const:
                const = not const
            given = _Switched(action.option_strings, action.dest, const, action.default)
            self._option_string_actions.setdefault(arg_string, given)
        return super()._parse_optional(arg_string)

    def _get_nargs_pattern(self, action: Any) -> str:
        """Leave a `--` behind a positional to the words of a program, as Docker does: argparse takes it away."""
        with_words = any(one.nargs == argparse.REMAINDER for one in self._actions)
        if with_words and action.nargs is None and not action.option_strings:
            return "(-*A)"
        return super()._get_nargs_pattern(action)

    def _get_values(self, action: Any, arg_strings: list[str]) -> Any:
        """Refuse an empty name, as of a variable that is not set, before anything is asked for or done.

        What may be left out may be empty as well, and the words of a program may be anything.
        """
        if "" in arg_strings and not action.option_strings and action.nargs in (None, "+", "*"):
            raise ClientError(f"an empty {action.metavar or action.dest} was given: name one; see: {self.prog} --help")
        return super()._get_values(action, arg_strings)

    def add_refs(self, what: str = "CONTAINER", *, many: bool = True) -> None:
        """The positional names."""
        if many:
            self.add_argument("refs", metavar=what, nargs="+", help="name, id, or beginning of an id")
        else:
            self.add_argument("ref", metavar=what, help="name, id, or beginning of an id")


def option(name: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A `type` for argparse whose errors name the option; argparse's own would hide the reason."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as err:
            raise ClientError(f"{name} {text!r}: {err}") from err

    return convert


def size(text: str) -> int:
    """Bytes of `512m`, `1.5g`, `1048576`.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise ValueError("write a number of bytes, or one with b, k, m or g behind it, such as 256m")
    return int(float(match[1]) * SIZE_UNITS[match[2].lower()])


def cpus(text: str) -> float:
    """A number of CPUs.

    Raises:
        ValueError: it is none, or not above zero.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError("write a number of CPUs above 0, such as 1.5")
    return value


def seconds(text: str) -> float:
    """A time to wait; -1 is Docker's word for no end, and here the longest that hyperd waits.

    Raises:
        ValueError: it is none, or negative.
    """
    if text == "-1":
        return LONGEST_WAIT_S
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError("write a number of seconds, such as 10")
    return value


def template(text: str) -> str:
    """A form of output; `runtime.cli.template` reads templates.

    Raises:
        ClientError: it is none.
    """
    if text not in {"table", "json"} and "{{" not in text:
        raise ClientError(
            f"--format: invalid choice: {text!r} (write table, json, or a template such as '{{{{.Names}}}}')"
        )
    return text


def duration(text: str) -> float:
    """Seconds of `30s`, `1m30s`, `500ms`; a number alone is refused, as Docker would take it for nanoseconds.

    Raises:
        ValueError: it is none.
    """
    if not text or not re.fullmatch(f"(?:{_DURATION_PART})+", text):
        raise ValueError("write a number with its unit, such as 30s, 1m30s or 500ms")
    return sum(float(number) * DURATION_UNITS[unit] for number, unit in re.findall(_DURATION_PART, text))


def restart(text: str) -> dict[str, Any]:
    """A restart policy: `no`, `on-failure[:N]`, `always`, `unless-stopped`.

    Raises:
        ValueError: it is none.
    """
    policy, colon, number = text.partition(":")
    if policy not in {"no", "on-failure", "always", "unless-stopped"}:
        raise ValueError("write no, on-failure, on-failure:5, always or unless-stopped")
    if colon and policy != "on-failure":
        raise ValueError(f"a number of retries goes with on-failure alone; write {policy}")
    if colon and not re.fullmatch(r"[0-9]{1,6}", number):
        raise ValueError("the number of retries is not a whole number; write on-failure:5")
    return {"policy": policy, "max_retries": int(number or 0)}


def platform(text: str) -> str:
    """The one platform there is.

    Raises:
        ValueError: it is another.
    """
    if text not in ("linux/amd64", "linux/x86_64", "linux/amd64/v1"):
        raise ValueError("the micro-VMs here are linux/amd64; write that, or leave it out")
    return text


def whole(text: str) -> int:
    """A whole number above 0.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise ValueError("write a whole number above 0, such as 3")
    return int(text)


def count(text: str) -> int | None:
    """A number of lines; None for `all` or -1.

    Raises:
        ValueError: it is neither.
    """
    if text in ("all", "-1"):
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ValueError("write a number of lines, or all")
    return int(text)


def ports(text: str) -> list[dict[str, Any]]:
    """Published ports: `80`, `8080:80`, `127.0.0.1:8080:80`, `127.0.0.1::80`, each with `/tcp` or `/udp`.

    Ranges go by pairs (`8000-8005:80-85`), or leave the choice among host ports to the daemon (`8000-8005:80`, with
    `host_port_last`). Host port 0 lets the daemon choose any.

    Raises:
        ValueError: what part is wrong.
    """
    numbers, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in ("tcp", "udp"):
        raise ValueError(f"the protocol {protocol!r} is neither tcp nor udp; write 8080:80/udp")
    parts = numbers.split(":")
    if "[" in numbers or len(parts) > 3:
        raise ValueError("write [IPV4-ADDRESS:][HOST-PORT:]CONTAINER-PORT[/tcp|/udp], such as 8080:80")
    address = parts[0] if len(parts) == 3 else ""
    if address and not _is_ipv4(address):
        raise ValueError(f"{address!r} is not an IPv4 address; write 127.0.0.1:8080:80")
    inside = _port_range(parts[-1], "container")
    outside = _port_range(parts[-2], "host") if len(parts) > 1 and parts[-2] not in ("", "0") else None
    if outside is not None and len(inside) != len(outside) and len(inside) > 1:
        raise ValueError(
            f"{len(outside)} host ports and {len(inside)} container ports do not fit; write 8000-8005:80-85"
        )
    found = []
    for index, number in enumerate(inside):
        one = {
            "host_ip": address or "0.0.0.0",  # noqa: S104 -- Docker's habit, and the API's default
            "host_port": 0 if outside is None else outside[index],
            "container_port": number,
            "protocol": protocol.lower() or "tcp",
        }
        if outside is not None and len(outside) > len(inside):
            one["host_port_last"] = outside[-1]
        found.append(one)
    return found


def _port_range(text: str, whose: str) -> range:
    first, dash, last = text.partition("-")
    begin = _port_number(first, whose)
    end = _port_number(last, whose) if dash else begin
    if end < begin:
        raise ValueError(f"the range of {whose} ports {text!r} goes backwards; write {end}-{begin}")
    return range(begin, end + 1)


def _port_number(text: str, whose: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError(f"the {whose} port {text!r} is not a number from 1 to 65535; write 8080:80")
    return int(text)


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(re.fullmatch(r"0|[1-9][0-9]{0,2}", part) and int(part) < 256 for part in parts)


def variable(text: str) -> str | None:
    """An environment variable: `K=V`, or `K` for our own value of it (None if we have none).

    Raises:
        ValueError: it has no name.
    """
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError("it has no name; write NAME=VALUE")
    if equals:
        return text
    return f"{name}={os.environ[name]}" if name in os.environ else None


def variable_or_name(text: str) -> str:
    """As `variable`; a name that we have no value of stays a name, which takes the variable away.

    Raises:
        ValueError: it has no name.
    """
    return variable(text) or text


def variables(path: str) -> list[str]:
    """The variables in a file: one a line; empty lines and those beginning with `#` are skipped.

    Raises:
        ValueError: the file cannot be read, or a line is wrong.
    """
    found = []
    for number, text in lines(path):
        name = text.partition("=")[0]
        if not name or re.search(r"\s", name):
            raise ValueError(f"line {number}: {name!r} is not a name; write NAME=VALUE")
        value = variable(text)
        found += [value] if value is not None else []
    return found


def labels(path: str) -> list[tuple[str, str]]:
    """The labels in a file: one a line; empty lines and those beginning with `#` are skipped.

    Raises:
        ValueError: the file cannot be read, or a line is wrong.
    """
    found = []
    for number, line in lines(path):
        try:
            found.append(label(line))
        except ValueError as err:
            raise ValueError(f"line {number}: {err}") from err
    return found


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines of a file with their numbers, without those that are empty or begin with `#`.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123 -- pathlib would slow every start
            for number, line in enumerate(file, 1):
                text = line.rstrip("\r\n").lstrip()
                if text and not text.startswith("#"):
                    yield number, text
    except OSError as err:
        raise ValueError(f"it cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ValueError("it is not text in UTF-8") from err


def label(text: str) -> tuple[str, str]:
    """A label: `K=V`, or `K` for an empty one.

    Raises:
        ValueError: it has no name.
    """
    name, _, value = text.partition("=")
    if not name:
        raise ValueError("it has no name; write NAME=VALUE")
    return name, value


def signal_name(text: str) -> str:
    """A signal: `TERM`, `SIGTERM`, `15`.

    Raises:
        ValueError: it is none.
    """
    name = text.upper().removeprefix("SIG")
    if name not in _SIGNALS.split() and not re.fullmatch(r"RTM(IN\+|AX-)[0-9]{1,2}|[1-9]|[1-5][0-9]|6[0-4]", name):
        raise ValueError("it is no signal; write a name or a number, such as TERM or 15")
    return name


# Those of Linux on x86-64 (signal(7)).
_SIGNALS = (
    "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT RTMAX RTMIN SEGV STKFLT STOP SYS"
    " TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ"
)


def directory(text: str) -> str:
    """A directory of the container to start in.

    Raises:
        ValueError: it does not begin at the root.
    """
    if not text.startswith("/"):
        raise ValueError("write a path from the root, such as /srv")
    return text


def user(text: str) -> str | None:
    """Whoever runs a program: `NAME`, `UID`, and `:GROUP` or `:GID`; None for an empty word, as if none was given.

    Raises:
        ValueError: it has another form.
    """
    if text.count(":") > 1 or re.search(r"\s", text):
        raise ValueError("write NAME or UID, and :GROUP or :GID, such as 1000:1000")
    return text or None
