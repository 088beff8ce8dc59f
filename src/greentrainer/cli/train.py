"""Commands that train a model, or judge one."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from greentrainer.cli.options import (
    Accumulate,
    BatchSize,
    BatchSizeOrAuto,
    Bf16,
    CarbonSchedule,
    ChatTemplate,
    Checkpointing,
    Compile,
    Cost,
    DataDir,
    DecodingName,
    Epochs,
    EvaluateEvery,
    FlopsBudget,
    Generate,
    Grams,
    Hours,
    Keep,
    Kwh,
    LearningRate,
    LoadIn4Bit,
    LoadIn8Bit,
    LoraRank,
    MaxLength,
    Memory,
    Method,
    Model,
    OutputDir,
    Overwrite,
    Parallel,
    Passes,
    Patience,
    ProbeBatches,
    Processes,
    PromptFormat,
    Prompts,
    Published,
    Resume,
    Revision,
    Rho,
    SaveEvery,
    Seed,
    Selections,
    Set,
    StepsAsked,
    Task,
    TestLimit,
    TrainLimit,
    Watts,
)
from greentrainer.cli.shell import app, asked_for, finish, quiet_console, typed


@app.command()
def quickstart(
    rho: Rho = None,
    train_limit: TrainLimit = None,
    test_limit: TestLimit = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
) -> None:
    """Fine-tune SmolLM2-135M on docstrings for half of full fine-tuning's FLOPs; print the bill."""
    given = {name: value for name, value in locals().items() if value is not None}
    console = quiet_console()
    from greentrainer.config import read
    from greentrainer.run import CONFIG
    from greentrainer.run import quickstart as run

    finish(run(read(None, CONFIG.model_dump() | given), console, typed()))


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="a YAML file; flags override it")] = None,
    model: Model = None,
    revision: Revision = None,
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    chat_template: ChatTemplate = None,
    method: Method = None,
    rho: Rho = None,
    hours: Hours = None,
    memory: Memory = None,
    kwh: Kwh = None,
    co2_grams: Grams = None,
    flops: FlopsBudget = None,
    cost: Cost = None,
    carbon_schedule: CarbonSchedule = None,
    epochs: Epochs = None,
    steps: StepsAsked = None,
    passes: Passes = None,
    prompts: Prompts = None,
    published: Published = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSizeOrAuto = None,
    processes: Processes = None,
    parallel: Parallel = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    train_limit: TrainLimit = None,
    test_limit: TestLimit = None,
    selections: Selections = None,
    probe_batches: ProbeBatches = None,
    generate: Generate = None,
    decoding: DecodingName = None,
    accumulate: Accumulate = None,
    bf16: Bf16 = None,
    activation_checkpointing: Checkpointing = None,
    compile: Compile = None,
    lora_rank: LoraRank = None,
    load_in_4bit: LoadIn4Bit = None,
    load_in_8bit: LoadIn8Bit = None,
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    save_every: SaveEvery = None,
    keep: Keep = None,
    resume: Resume = None,
    overwrite: Overwrite = None,
    watts: Watts = None,
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option(help="print what would be done, and one example")
    ] = False,
) -> None:
    """Fine-tune a model on a task, and save an ordinary checkpoint with its bill."""
    flags = {k: v for k, v in locals().items() if k not in ("config", "set_", "dry_run")}
    from greentrainer.config import RunConfig, merged, settings, validated

    console = quiet_console()
    fitted = flags["batch_size"] == "auto" and flags.pop("batch_size")
    told = merged(config, asked_for(flags) | settings(set_ or []))
    asked = validated(RunConfig, _within_budget(told, console))
    if fitted:
        from greentrainer.plan import fitting

        asked = fitting(asked, console)
    from greentrainer.report import bill_table
    from greentrainer.run import execute, launch, rehearse, wanted

    count = wanted(asked)
    if dry_run:
        rehearse(asked.model_copy(update={"processes": count}), console)
        return
    if count > 1:
        raise typer.Exit(launch(asked, count, sys.argv[1:]))
    summary = execute(asked, console, typed())
    console.print(bill_table(summary))
    finish(summary)


def _within_budget(told: dict[str, Any], console: Any) -> dict[str, Any]:
    """Method lora with a budget: adapters, and green to choose among them."""
    from greentrainer.config import BUDGETS

    asked = any(told.get(unit) is not None for unit in BUDGETS) and told.get("rho") != 1
    if told.get("method") != "lora" or not asked or told.get("stop_early"):
        return told
    console.print("lora within a budget: method green chooses among the adapters (lora_rank)")
    return told | {"method": "green", "lora_rank": told.get("lora_rank") or 8}


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder, or a hub id")],
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    chat_template: ChatTemplate = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    test_limit: TestLimit = None,
    generate: Generate = None,
    decoding: DecodingName = None,
    set_: Set = None,
) -> None:
    """Held-out loss per completion token, and the task's scores of generated completions."""
    flags = {k: v for k, v in locals().items() if k != "set_"}
    console = quiet_console()
    from greentrainer.config import read, settings

    asked = read(None, asked_for(flags) | settings(set_ or []))
    from greentrainer.run import evaluation, prepare

    result = evaluation.evaluate(prepare(asked, console, training=False), asked)
    for name, value in result.items():
        if isinstance(value, float):
            console.print(f"{name:19} {value:.4f}")
