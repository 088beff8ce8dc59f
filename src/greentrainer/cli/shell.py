"""The application that commands are added to, and how they speak to the terminal."""

import os
import shlex
import sys
from typing import Annotated, Any

import typer

import greentrainer
from greentrainer.records import hush

hush()  # before anything loads them; a process that a command starts reads this too
app = typer.Typer(
    help="Fine-tune a language model for a stated share of full fine-tuning's compute.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"greentrainer {greentrainer.__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print it, and end")
    ] = False,
) -> None:
    """What stands before a command's name; the application's own words are its help."""


def typed() -> str:
    """The command line."""
    return shlex.join(["greentrainer", *sys.argv[1:]])


def asked_for(given: dict[str, Any]) -> dict[str, Any]:
    """Flags as the configuration takes them: one task, or several to be mixed."""
    named = given.pop("task", None)
    if not named:
        return given
    if len(named) == 1:
        return given | {"task": named[0]}
    return given | {"tasks": [{"path": path} for path in named]}


def finish(summary: dict[str, Any]) -> None:
    """End the command; one that was interrupted exits as a shell expects."""
    if summary["bill"]["interrupted"]:
        raise typer.Exit(130)


def quiet_console() -> Any:
    """A console to talk to the user by; transformers keep quiet from now on."""
    from rich.console import Console

    from greentrainer.records import quieten, tell

    quieten()
    console = Console(highlight=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    tell(console)
    return console
