"""`completion`: scripts for bash and zsh, made from the commands and their own parsers, so that they cannot differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.cli import main

if TYPE_CHECKING:
    import argparse

    from runtime.cli.arguments import Parser
    from runtime.client import Client

CONTAINER_COMMANDS = (
    "start", "logs", "exec", "stop", "kill", "restart", "redeploy", "rm", "wait", "inspect", "stats",
    "pause", "unpause", "rename", "update", "port", "top", "rollback", "quarantine",
)  # fmt: skip
IMAGE_COMMANDS = ("run", "create", "rmi", "pull", "push", "tag", "history", "save")

_BASH = """\
# Completion of hyper for bash: source <(hyper completion bash)
_hyper() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            -H | --host) ((i++)) ;;
            -*) ;;
            *) command=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    local words=
    case $command in
        '') words="{commands} -H --host -h --help -v --version" ;;
{cases}
    esac
    if [[ $command && $word != -* ]]; then
        case $command in
            {containers}) words=$(hyper ps -aq 2>/dev/null; hyper ps -a 2>/dev/null | awk 'NR > 1 {{print $NF}}') ;;
            {images}) words=$(hyper images 2>/dev/null | awk 'NR > 1 && $2 != "<none>" {{print $1 ":" $2}}') ;;
            completion) words="bash zsh" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$word"; fi
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
    words = {name: options(name) for name in main.COMMANDS}
    cases = "\n".join(f'        {name}) words="{" ".join(found)}" ;;' for name, found in words.items())
    return _BASH.format(
        commands=" ".join(main.COMMANDS),
        cases=cases,
        containers=" | ".join(CONTAINER_COMMANDS),
        images=" | ".join(IMAGE_COMMANDS),
    )


def options(name: str) -> list[str]:
    """All options of a command, as its parser has them; of a group its commands."""
    if name in main.GROUPS:
        return list(main.GROUPS[name])
    _, parser = main.command(name)
    return list(parser._option_string_actions)  # argparse has no public way
