"""The command line.  Heavy imports wait until a command runs: `--help` answers at once."""

import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Fine-tune a language model for a stated share of full fine-tuning's compute.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str | None, typer.Option(help="smollm2-135m, a folder, or a hub id")]
Task = Annotated[
    str | None,
    typer.Option(help="pydoc, scitldr, dialogsum, piqa, webquestions, your own file, or a hub id"),
]
DataDir = Annotated[Path | None, typer.Option(help="folder with a published data set's files")]
PromptFormat = Annotated[str | None, typer.Option(help="plain, paper or source")]
Method = Annotated[
    str | None,
    typer.Option(help="green, full, full_at_budget, lora, prefix, top2, bitfit, lisa, ..."),
]
Rho = Annotated[float | None, typer.Option(help="share of full fine-tuning's FLOPs to spend")]
Hours = Annotated[float | None, typer.Option(help="a budget in place of rho: hours of training")]
Kwh = Annotated[float | None, typer.Option(help="a budget in place of rho: kilowatt-hours")]
Grams = Annotated[float | None, typer.Option(help="a budget in place of rho: grams of CO2")]
FlopsBudget = Annotated[float | None, typer.Option(help="a budget in place of rho: FLOPs")]
Cost = Annotated[str | None, typer.Option(help="what tensors are weighed by: flops or seconds")]
CarbonSchedule = Annotated[Path | None, typer.Option(help="CSV of times and gCO2/kWh to follow")]
Epochs = Annotated[int | None, typer.Option(help="passes over the training data")]
LearningRate = Annotated[float | None, typer.Option(help="peak learning rate of AdamW")]
BatchSize = Annotated[int | None, typer.Option(help="examples a batch")]
MaxLength = Annotated[int | None, typer.Option(help="tokens of prompt and completion together")]
Seed = Annotated[int | None, typer.Option(help="of shuffling, sampling and dropout")]
OutputDir = Annotated[Path | None, typer.Option(help="the run's folder")]
TrainLimit = Annotated[int | None, typer.Option(help="training examples used")]
TestLimit = Annotated[int | None, typer.Option(help="held-out examples used")]
Selections = Annotated[int | None, typer.Option(help="how often tensors are chosen over the run")]
ProbeBatches = Annotated[int | None, typer.Option(help="batches importance is measured on")]
Generate = Annotated[int | None, typer.Option(help="held-out completions to generate and score")]
DecodingName = Annotated[str | None, typer.Option("--decoding", help="greedy, or paper: 4 beams")]
Accumulate = Annotated[int | None, typer.Option(help="batches an optimizer step")]
Bf16 = Annotated[bool | None, typer.Option(help="compute in bfloat16 where that is safe")]
Checkpointing = Annotated[bool | None, typer.Option(help="recompute activations to save memory")]
Compile = Annotated[bool | None, typer.Option(help="compile the model block by block")]
LoraRank = Annotated[int | None, typer.Option(help="train adapters of this rank, chosen among")]
EvaluateEvery = Annotated[int | None, typer.Option(help="steps between evaluations")]
Patience = Annotated[int | None, typer.Option(help="evaluations without gain that end the run")]
SaveEvery = Annotated[int | None, typer.Option(help="steps between checkpoints")]
Keep = Annotated[int | None, typer.Option(help="checkpoints kept")]
Resume = Annotated[bool | None, typer.Option(help="go on from the last whole checkpoint")]
Watts = Annotated[float | None, typer.Option(help="power that an estimate of energy goes by")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of any other key, as training.lr_scheduler_type=cosine"),
]


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
    console = _console()
    from greentrainer.config import read
    from greentrainer.quickstart import CONFIG
    from greentrainer.quickstart import quickstart as run

    _finish(run(read(None, CONFIG.model_dump() | given), console, _typed()))


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
    calibrate: Annotated[bool, typer.Option(help="time a few steps on this device")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    picture: Annotated[Path | None, typer.Option(help="draw it: a .svg or .html file")] = None,
    set_: Set = None,
) -> None:
    """What each budget buys, from the configuration alone: no weights are read."""
    apart = ("json_", "picture", "calibrate", "set_")
    flags = {k: v for k, v in locals().items() if k not in ("apart", *apart)}
    from greentrainer.config import read, settings

    asked = read(None, flags | settings(set_ or []))
    console = _console()
    from greentrainer.plan import Planner
    from greentrainer.report import plan as drawn

    planner = Planner(asked, padded="task" not in asked.model_fields_set)
    if calibrate:
        planner.calibrate()
    else:
        planner.look_up()
    figures = planner.summary()
    if picture:
        drawn.write(figures, picture)
    if json_:
        import json

        print(json.dumps(figures, indent=2))
        return
    for line in drawn.head(figures):
        console.print(line, markup=False)
    for table in drawn.tables(figures):
        console.print(table.terminal())
    if not figures["clock"]:
        console.print("for seconds, energy and CO2 add --calibrate", markup=False)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="a YAML file; flags override it")] = None,
    model: Model = None,
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    method: Method = None,
    rho: Rho = None,
    hours: Hours = None,
    kwh: Kwh = None,
    co2_grams: Grams = None,
    flops: FlopsBudget = None,
    cost: Cost = None,
    carbon_schedule: CarbonSchedule = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
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
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    save_every: SaveEvery = None,
    keep: Keep = None,
    resume: Resume = None,
    watts: Watts = None,
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option(help="print what would be done, and one example")
    ] = False,
) -> None:
    """Fine-tune a model on a task, and save an ordinary checkpoint with its bill."""
    flags = {k: v for k, v in locals().items() if k not in ("config", "set_", "dry_run")}
    from greentrainer.config import read, settings

    asked = read(config, flags | settings(set_ or []))
    console = _console()
    from greentrainer import runs
    from greentrainer.bill import bill_table

    if dry_run:
        runs.rehearse(asked, console)
        return
    summary = runs.execute(asked, console, _typed())
    console.print(bill_table(summary))
    _finish(summary)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder, or a hub id")],
    task: Task = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
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
    console = _console()
    from greentrainer.config import read, settings

    asked = read(None, flags | settings(set_ or []))
    from greentrainer import evaluation, runs

    result = evaluation.evaluate(runs.prepare(asked, console, training=False), asked)
    for name, value in result.items():
        if isinstance(value, float):
            console.print(f"{name:19} {value:.4f}")


@app.command()
def data(
    task: Annotated[str, typer.Argument(help="a task's name, your own file, or a hub id")],
    model: Model = None,
    data_dir: DataDir = None,
    prompt_format: PromptFormat = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    count: Annotated[int, typer.Option(min=0, help="examples shown")] = 3,
    max_length: MaxLength = None,
    set_: Set = None,
) -> None:
    """Show a task as a model reads it: a few examples with the loss mask, and their lengths."""
    flags = {k: v for k, v in locals().items() if k not in ("split", "count", "set_")}
    from greentrainer.config import read, settings

    asked = read(None, flags | settings(set_ or []))
    console = _console()
    from greentrainer import runs

    runs.preview(asked, split, count, console)


@app.command()
def compare(
    spec: Annotated[Path, typer.Argument(help="a YAML file: name, run, seeds and methods")],
    output_dir: Annotated[Path | None, typer.Option(help="default: runs/NAME")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of a key of all runs")
    ] = None,
    retry: Annotated[bool, typer.Option(help="make failed runs again")] = False,
    keep_models: Annotated[bool, typer.Option(help="save every trained model")] = False,
    jobs: Annotated[int, typer.Option(help="runs made at a time, each slower for it")] = 1,
    draw: Annotated[bool, typer.Option(help="only draw what is recorded")] = False,
    dry_run: Annotated[bool, typer.Option(help="print the rows, and what is recorded")] = False,
) -> None:
    """Run methods side by side on one task; print the table, and draw it as a page."""
    console = _console()
    from greentrainer.bench.spec import read
    from greentrainer.bench.study import Study
    from greentrainer.config import settings

    changes: dict[str, Any] = {"run": settings(set_ or [])}
    asked = read(spec, changes | ({"output_dir": output_dir} if output_dir else {}))
    study = Study(asked, console, retry, keep_models, jobs)
    if dry_run:
        for line in study.plan():
            console.print(line, markup=False)
        return
    results = study.results() if draw else study.execute()
    from greentrainer.report import write

    written = write(results, asked.folder)
    console.print(written.table, soft_wrap=False)
    for line in [*written.unfinished, *written.remarks, *results["verdicts"]]:
        console.print(line, markup=False)
    console.print(f"records in {asked.folder / 'runs'}, page in {written.page}", markup=False)
    if not any("loss" in row for row in results["rows"]):
        raise typer.Exit(1)


@app.command()
def doctor(
    output_dir: Annotated[Path, typer.Option(help="where a run would be written")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what this machine offers and what to change; exit code 1 if it cannot train."""
    import json

    from rich.console import Console

    from greentrainer import doctor

    findings = doctor.examine(output_dir)
    if as_json:
        print(json.dumps(doctor.plain(findings), indent=2))
    else:
        Console(highlight=False, soft_wrap=True).print(doctor.report(findings))
    if not doctor.able(findings):
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="of a run or of a comparison")],
) -> None:
    """Draw report.html anew from what a folder holds, also while the run goes on."""
    from greentrainer.report import draw

    print(draw(folder))


Folder = Annotated[Path, typer.Argument(help="a folder")]
BaseModel = Annotated[str, typer.Argument(help="the model that training began with")]


@app.command()
def delta(
    base: BaseModel,
    model: Annotated[str, typer.Argument(help="the trained model's folder")],
    folder: Folder,
) -> None:
    """Save what training changed: base and delta give the model back bit for bit."""
    console = _console()
    from greentrainer.delta import save_delta
    from greentrainer.hf import load

    trained, _ = load(model)
    written = save_delta(trained, load(base)[0], folder)
    console.print(
        f"{len(written.tensors)} tensors changed: {written.bytes / 1e6:.1f} MB in {written.path}, "
        f"{written.share:.1%} of a full checkpoint"
    )


@app.command()
def merge(
    base: BaseModel,
    folder: Annotated[Path, typer.Argument(help="the delta's folder")],
    output: Annotated[Path, typer.Argument(help="where the whole model is written")],
) -> None:
    """Rebuild a whole model from its base and a delta; refuses another base."""
    console = _console()
    from greentrainer.delta import base_dtype, load_delta
    from greentrainer.hf import load

    model, tokenizer = load(base, dtype=base_dtype(folder))
    changed = load_delta(model, folder)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    console.print(f"{len(changed)} tensors of {base} replaced; the model is in {output}")


def main() -> None:
    """Run a command; what a user can mend is one line on standard error, exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.formatwarning = _warned
    try:
        sys.exit(app(standalone_mode=False) or 0)  # what a typer.Exit holds is returned
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer", "wandb.errors")):
            _refuse(getattr(error, "format_message", error.__str__)())
        raise


def _typed() -> str:
    """The command line."""
    return shlex.join(["greentrainer", *sys.argv[1:]])


def _warned(message: Any, *_: Any, **__: Any) -> str:
    """A warning as one line."""
    return f"warning: {' '.join(str(message).split())}\n"


def _refuse(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _finish(summary: dict[str, Any]) -> None:
    if summary["bill"]["interrupted"]:
        raise typer.Exit(130)


def _console() -> Any:
    import logging as standard

    from rich.console import Console
    from transformers.utils import logging

    standard.getLogger("huggingface_hub").setLevel(standard.ERROR)  # silent while it tries again
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Console(highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
