"""`completion`: scripts for bash and zsh, made from the commands and their own parsers, so that they cannot differ.

What stands at a place follows from how the parsers name it: `CONTAINER` asks hyperd for containers, a list of choices
is offered as it stands.
"""

from __future__ import annotations

import argparse
import shlex

from runtime.cli import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.cli.arguments import Parser
    from runtime.client import Client

# Words that a value may be, where the parser itself has no list of them.
WORDS = {
    "--restart": "no on-failure always unless-stopped",
    "--attach": "stdin stdout stderr",
    "--platform": "linux/amd64",
    "--signal": "HUP INT QUIT KILL USR1 USR2 TERM CONT STOP",
    "--stop-signal": "HUP INT QUIT KILL USR1 USR2 TERM CONT STOP",
}
# What kind of name a metavar stands for; the first that fits counts.
KINDS = (
    ("CONTAINER", "containers"), ("IMAGE", "images"), ("REPOSITORY", "images"), ("SNAPSHOT", "snapshots"),
    ("VOLUME", "volumes"), ("SOURCE", "paths"), ("TARGET", "paths"), ("CONTEXT", "files"), ("ARG", "files"),
)  # fmt: skip
FILE_OPTIONS = ("--output", "--input", "--cert-dir")

_BASH = """\
# Completion of hyper for bash: source <(hyper completion bash)
_hyper_names() {{
    local one
    for one in $1; do
        case $one in
            containers)
                hyper "${{host[@]}}" ps -a --format '{{{{.Names}}}}'
                [[ $cur ]] && hyper "${{host[@]}}" ps -aq ;;
            images) hyper "${{host[@]}}" images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' | grep -v '<none>' ;;
            volumes) hyper "${{host[@]}}" volume ls -q ;;
            snapshots) hyper "${{host[@]}}" snapshot ls -q ;;
            paths) hyper "${{host[@]}}" ps -a --format '{{{{.Names}}}}:' ;;
            mounts) hyper "${{host[@]}}" volume ls -q | sed 's/$/:/' ;;
            files | rest | none) ;;
            *) echo "$one" ;;
        esac
    done 2>/dev/null
}}
_hyper_command() {{
    case $1 in
        '') words={commands} ;;
{groups}
{commands_of}
    esac
}}
_hyper_value() {{
    case $1 in
{values_of}
    esac
}}
# What the argument of a number is: hyper_kind NUMBER KIND…
_hyper_kind() {{
    local -i number=$1
    shift
    while ((number > 1 && $# > 1)); do
        shift
        number=$((number - 1))
    done
    kind=${{1-}}
    # The last may come again only where the parser says so.
    if ((number > 1)) && [[ $kind != *+ && $kind != rest ]]; then kind=none; fi
    kind=${{kind%+}}
}}
_hyper() {{
    local line=${{COMP_LINE:-${{COMP_WORDS[*]}}}} i word gap
    local -a given=() host=()
    # bash takes words apart at : and =; what stands together is one word.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        gap=${{line%%"$word"*}}
        line=${{line#*"$word"}}
        if [[ $i -gt 0 && $word && -z $gap ]]; then
            given[${{#given[@]}}-1]+=$word
        else
            given+=("$word")
        fi
    done
    local last=$((${{#given[@]}} - 1))
    local cur=${{given[last]}} command= option= words= kinds= kind= options= values= prefix= count=0 rest=0
    _hyper_command ''
    for ((i = 1; i < last; i++)); do
        word=${{given[i]}}
        if [[ $rest == 0 && $word == -- && $command ]]; then
            rest=1
        elif [[ $rest == 0 && $word == -?* ]]; then
            if [[ -z $command && ( $word == -H || $word == --host ) ]]; then
                ((i++))
                host=(-H "${{given[i]}}")
            elif [[ " $values " == *" $word "* ]]; then
                ((i++))
                if ((i == last)); then option=$word; fi
            fi
        elif [[ $words ]]; then
            command="${{command:+$command }}$word" words= kinds= options= values=
            _hyper_command "$command"
            [[ $words || $options ]] || return 0
        else
            count=$((count + 1))
            _hyper_kind $((count + 1)) $kinds
            [[ $kind == rest ]] && rest=1
        fi
    done
    if [[ -z $option && $rest == 0 && $cur == --*=* ]]; then
        option=${{cur%%=*}}
        prefix=$option=
        cur=${{cur#*=}}
    fi
    kind=
    if [[ $option ]]; then
        words=
        _hyper_value "$command $option"
    elif [[ $rest == 0 && $cur == -* && -z $words ]]; then
        words=$options
    elif [[ $kinds ]]; then
        _hyper_kind $((count + 1)) $kinds
    fi
    kind=${{kind//,/ }}
    [[ $kind ]] && words+=" $(_hyper_names "$kind")"
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    case " $kind " in
        *' files '* | *' rest '* | *' paths '* | *' mounts '*)
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do
                [[ $word ]] && COMPREPLY+=("$word")
            done <<<"$(compgen -f -- "$cur")" ;;
    esac
    case " $kind " in *' paths '* | *' mounts '*) compopt -o nospace 2>/dev/null ;; esac
    # bash keeps what stands before the last : or = itself.
    local known=$prefix$cur break keep=
    for break in : =; do
        [[ $COMP_WORDBREAKS == *$break* && $known == *$break* ]] || continue
        word=${{known%"${{known##*$break}}"}}
        ((${{#word}} > ${{#keep}})) && keep=$word
    done
    COMPREPLY=("${{COMPREPLY[@]/#/$prefix}}")
    COMPREPLY=("${{COMPREPLY[@]#"$keep"}}")
}}
complete -F _hyper hyper
"""

_ZSH = """\
#compdef hyper
# Completion of hyper for zsh: source <(hyper completion zsh)
autoload -U +X bashcompinit && bashcompinit
"""


def completion_arguments(parser: Parser) -> None:
    """`hyper completion`."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def completion(args: argparse.Namespace, client: Client) -> int:
    """Print the script."""
    del client
    print((_ZSH if args.shell == "zsh" else "") + script(), end="")
    return 0


def script() -> str:
    """The bash script; zsh takes the same through `bashcompinit`."""
    found = dict(parsers())
    groups: dict[str, list[str]] = {}
    for name in found:
        group, _, action = name.partition(" ")
        if action:
            groups.setdefault(group, []).append(action)
    commands, values = [], []
    for name, parser in found.items():
        members = {"options": _options(parser), "values": _valued(parser), "kinds": _positionals(parser)}
        commands.append(_case(name, **{key: words for key, words in members.items() if words}))
        values += [_case(f"{name} {option}", kind=[kind]) for option, kind in _values(parser)]
    return _BASH.format(
        commands=shlex.quote(" ".join([*main.COMMANDS, "-H", "--host", "-h", "--help", "-v", "--version"])),
        groups="\n".join(_case(group, words=[*actions, "-h", "--help"]) for group, actions in groups.items()),
        commands_of="\n".join(commands),
        values_of="\n".join(values),
    )


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser of every command, those of groups by both words."""
    for name in main.COMMANDS:
        if name in main.GROUPS:
            for action in main.GROUPS[name]:
                yield f"{name} {action}", main.command(f"{name} {action}")[1]
            continue
        parser = main.command(name)[1]
        actions = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        for group in actions:
            yield from ((f"{name} {action}", one) for action, one in group.choices.items())
        if not actions:
            yield name, parser


def _case(pattern: str, **variables: list[str]) -> str:
    given = " ".join(f"{name}={shlex.quote(' '.join(words))}" for name, words in variables.items())
    return f"        {shlex.quote(pattern)}) {given} ;;"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """All ways to write an option, but for values that are a part of a name."""
    return [name for name in parser._option_string_actions if "=" not in name]  # argparse has no public way


def _valued(parser: argparse.ArgumentParser) -> list[str]:
    """The options whose value is the next word."""
    return [name for name, action in parser._option_string_actions.items() if action.nargs is None]


def _values(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Of each option that takes a value, what that can be, as far as it is known."""
    for name, action in parser._option_string_actions.items():
        if action.nargs == 0 or "=" in name:
            continue
        long = action.option_strings[-1]
        kind = WORDS.get(long, "").replace(" ", ",") or _kind(action)
        if kind == "none" and ("file" in long or long in FILE_OPTIONS):
            kind = "files"
        if kind != "none":
            yield name, kind


def _positionals(parser: argparse.ArgumentParser) -> list[str]:
    """What stands at each place; `+` behind the last if it may come again."""
    found = []
    for action in parser._actions:
        if action.option_strings:
            continue
        again = "+" if action.nargs in ("+", "*") else ""
        found.append("rest" if action.nargs == argparse.REMAINDER else f"{_kind(action)}{again}")
    return found


def _kind(action: argparse.Action) -> str:
    """What the values of an argument are: a list of words, or a kind of names; `none` if anything."""
    if action.choices:
        return ",".join(map(str, action.choices))
    metavar = str(action.metavar or "")
    if metavar == "NAME" and action.dest == "refs":  # inspect, which looks for all of them
        return "containers,images,volumes"
    if metavar == "[NAME:]PATH[:ro]":
        return "mounts"
    kinds = [kind for text, kind in KINDS if text in metavar.split("|") or metavar.startswith(f"{text}[")]
    return ",".join(kinds) or "none"
