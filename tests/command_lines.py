"""Finds the commands of our tools in shell lines of documents, and lets each tool's own parser judge them (nothing runs)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

TOOLS = ("flashvideo", "ray", "prefect", "python", "make")


def commands_in(line: str) -> list[list[str]]:
    """Commands of our tools in a shell line; what is quoted for `ray exec FILE '...'` or `bash -c '...'` is one of its own."""
    found: list[list[str]] = []
    current: list[str] = []
    for word in [*shlex.split(line.replace(";", " ; "), comments=True), ";"]:
        if word in (";", "&&", "||", "|"):
            starts = [index for index, part in enumerate(current) if Path(part).name in TOOLS]
            if starts:
                found.append([Path(current[starts[0]]).name, *current[starts[0] + 1 :]])
            current = []
            continue
        if " " in word and re.search(r"\b(flashvideo|ray|prefect) ", word):
            found += commands_in(word)
        current.append(word)
    return found


def bash_lines(markdown: str) -> list[str]:
    """Lines of the ```bash blocks, joined where they end in a backslash, without comments alone."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", markdown, re.S)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def check_flashvideo(words: list[str]) -> None:
    """Raises when `flashvideo <words>` is not a command line of orchestration/cli.py."""
    import typer

    from orchestration.cli import app, spread_sources

    _check_click(typer.main.get_command(app), spread_sources(words))


def check_ray(words: list[str]) -> None:
    """Raises when `ray <words>` is not a command line of the installed Ray."""
    from ray.scripts.scripts import cli

    _check_click(cli, words)


def check_prefect(words: list[str]) -> None:
    """Raises when `prefect <words>` is not a command line of the installed Prefect."""
    from prefect.cli._app import _app

    _app.parse_args([word for word in words if word != "--no-prompt"], exit_on_error=False, print_error=False)


def _check_click(command: Any, words: list[str]) -> None:
    """Walks down to the subcommand, then parses its options and arguments without calling it."""
    path = [command.name]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
        path.append(command.name)
    if "--help" in words or "-h" in words:
        return
    assert not (hasattr(command, "commands") and words and not words[0].startswith("-")), f"{path[-1]} has no command {words[0]}"
    command.make_context(" ".join(map(str, path)), list(words))
