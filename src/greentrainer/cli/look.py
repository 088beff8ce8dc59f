"""Commands that look before anything is trained: what budgets buy, data, the machine."""

from pathlib import Path
from typing import Annotated

import typer

from greentrainer.cli.options import (
    BatchSize,
    Bf16,
    ChatTemplate,
    DataDir,
    Epochs,
    MaxLength,
    Model,
    Parallel,
    Processes,
    PromptFormat,
    Rho,
    Set,
    Task,
    TrainLimit,
)
from greentrainer.cli.shell import app, asked_for, quiet_console


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder, config.json, or a hub id")],
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    train_limit: TrainLimit = None,
    bf16: Bf16 = None,
    rho: Rho = None,
    processes: Processes = None,
    parallel: Parallel = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="GB a second that each of several processes sends", min=0.001),
    ] = None,
    probe: Annotated[
        bool, typer.Option(help="measure what a budget could be spent on; reads the weights")
    ] = False,
    calibrate: Annotated[bool, typer.Option(help="time a few steps on this device")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    picture: Annotated[Path | None, typer.Option(help="draw it: a .svg or .html file")] = None,
    set_: Set = None,
) -> None:
    """What each budget buys, from the configuration alone; with --probe, from the task's rows."""
    apart = ("json_", "picture", "calibrate", "set_", "probe", "bandwidth")
    flags = {k: v for k, v in locals().items() if k not in ("apart", *apart)}
    from greentrainer.config import read, settings

    asked = read(None, asked_for(flags) | settings(set_ or []))
    console = quiet_console()
    if probe:
        others = {"calibrate": calibrate, "json": json_, "picture": picture}
        if given := [name for name, value in others.items() if value]:
            raise ValueError(f"give --probe or --{given[0]}, not both: it has its own table")
        from greentrainer.plan import probe as weighed

        console.print(weighed(asked, console).table())
        return
    from greentrainer.plan import Planner
    from greentrainer.report import plan_head, plan_tables, write_plan

    planner = Planner(asked, padded=not {"task", "tasks"} & asked.model_fields_set)
    planner.bandwidth = bandwidth and 1e9 * bandwidth
    if calibrate:
        planner.calibrate()
    else:
        planner.look_up()
    figures = planner.summary()
    if picture:
        write_plan(figures, picture)
    if json_:
        import json

        print(json.dumps(figures, indent=2))
        return
    for line in plan_head(figures):
        console.print(line, markup=False)
    for table in plan_tables(figures):
        console.print(table.terminal())
    if not figures["clock"]:
        console.print("for seconds, energy and CO2 add --calibrate", markup=False)


@app.command()
def data(
    task: Annotated[
        list[str],
        typer.Argument(help="a task's name, your own file, or a hub id; several are mixed"),
    ],
    model: Model = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    chat_template: ChatTemplate = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    count: Annotated[int, typer.Option(min=0, help="examples shown")] = 3,
    max_length: MaxLength = None,
    set_: Set = None,
) -> None:
    """Show a task as a model reads it: a few examples with the loss mask, and their lengths."""
    flags = {k: v for k, v in locals().items() if k not in ("split", "count", "set_")}
    from greentrainer.config import read, settings

    asked = read(None, asked_for(flags) | settings(set_ or []))
    console = quiet_console()
    from greentrainer.run import preview

    preview(asked, split, count, console)


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder, or a hub id")],
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    chat_template: ChatTemplate = None,
    rho: Rho = None,
    epochs: Epochs = None,
    out: Annotated[Path, typer.Option(help="the file that is written")] = Path("run.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="write over the file")] = False,
) -> None:
    """Write a first configuration, commented: length, batch size and precision that fit here."""
    flags = {k: v for k, v in locals().items() if k not in ("out", "overwrite")}
    console = quiet_console()
    from greentrainer.config import read
    from greentrainer.plan import propose

    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: add --overwrite, or give another --out")
    asked = read(None, asked_for(flags))
    written = propose(asked, console).yaml()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(written, encoding="utf-8")
    console.print(f"written to {out}: greentrainer train --config {out}", markup=False)


@app.command()
def doctor(
    output_dir: Annotated[Path, typer.Option(help="where a run would be written")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what this machine offers and what to change; exit code 1 if it cannot train."""
    import json

    from rich.console import Console

    from greentrainer.cli import doctor

    findings = doctor.examine(output_dir)
    if as_json:
        print(json.dumps(doctor.plain(findings), indent=2))
    else:
        Console(highlight=False, soft_wrap=True).print(doctor.report(findings))
    if not doctor.able(findings):
        raise typer.Exit(1)
