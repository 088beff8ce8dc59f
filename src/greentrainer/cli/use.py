"""Commands that use what was trained: talk to it, let it answer a file, list the runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from greentrainer.cli.options import (
    BatchSize,
    ChatTemplate,
    DataDir,
    DecodingName,
    MaxLength,
    PromptFormat,
    Set,
    Task,
    TestLimit,
)
from greentrainer.cli.shell import app, asked_for, quiet_console

Used = Annotated[str, typer.Argument(help="a run's folder, a model's, smollm2-135m, or a hub id")]


@app.command()
def chat(
    model: Used,
    prompt: Annotated[str | None, typer.Option(help="say this, and leave after the answer")] = None,
    system: Annotated[str | None, typer.Option(help="what the model is told first")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="tokens an answer may have")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest")] = 0.0,
    chat_template: ChatTemplate = None,
) -> None:
    """Talk to a model in the terminal; an empty line, Ctrl-C or Ctrl-D leaves."""
    console = quiet_console()
    from greentrainer.config import RunConfig
    from greentrainer.run import answer, ready

    network, tokenizer = ready(RunConfig(model=model, chat_template=chat_template), console)
    turns = [{"role": "system", "content": system}] if system else []
    while True:
        said = prompt if prompt is not None else _asked(console)
        if not said:
            return
        turns.append({"role": "user", "content": said})
        told = answer(network, tokenizer, turns, new_tokens, temperature)
        turns.append({"role": "assistant", "content": told})
        if prompt is not None:
            return


def _asked(console: Any) -> str:
    try:
        return str(console.input("> ")).strip()
    except EOFError:
        return ""


@app.command()
def generate(
    model: Used,
    out: Annotated[Path, typer.Option(help="the file of answers (JSON lines)")],
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    chat_template: ChatTemplate = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    test_limit: TestLimit = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    decoding: DecodingName = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens of an answer at most; as decoding says if not")
    ] = None,
    set_: Set = None,
) -> None:
    """Write what a model answers to a task's examples into a file."""
    flags = {k: v for k, v in locals().items() if k not in ("set_", "out", "split", "new_tokens")}
    console = quiet_console()
    from greentrainer.config import over, read, settings
    from greentrainer.run import of_run, write_answers

    given = {name: value for name, value in asked_for(flags).items() if value is not None}
    asked = read(None, over(of_run(model), given | settings(set_ or [])))
    count = write_answers(asked, split, out, console, new_tokens)
    console.print(f"{count} answers in {out}", markup=False)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="that holds runs")] = Path("runs"),
) -> None:
    """List runs: method, budget, task, loss, what was spent; the last first."""
    from rich.console import Console

    from greentrainer.report import runs_in, shelf

    found = runs_in(folder)
    wide = None if sys.stdout.isatty() else 200  # nothing is folded that is read by a program
    Console(width=wide).print(shelf(found, folder))
