"""The command line.  Heavy imports wait until a command runs: `--help` answers at once."""

import signal
import sys
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
    str | None, typer.Option(help="pydoc, or a JSONL file with 'prompt' and 'completion'")
]
Method = Annotated[str | None, typer.Option(help="green or full")]
Rho = Annotated[float | None, typer.Option(help="share of full fine-tuning's FLOPs to spend")]
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
    from greentrainer import config
    from greentrainer.quickstart import CONFIG
    from greentrainer.quickstart import quickstart as run

    settings = config.read(None, CONFIG.model_dump() | given)
    _finish(run(settings, console))


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="a YAML file; flags override it")] = None,
    model: Model = None,
    task: Task = None,
    method: Method = None,
    rho: Rho = None,
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
) -> None:
    """Fine-tune a model on a task, and save an ordinary checkpoint with its bill."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    console = _console()
    from greentrainer.config import read

    settings = read(config, flags)
    from greentrainer import runs
    from greentrainer.bill import bill_table

    summary = runs.execute(settings, console)
    console.print(bill_table(summary))
    _finish(summary)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder, or a hub id")],
    task: Task = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    test_limit: TestLimit = None,
    generate: Generate = None,
) -> None:
    """Held-out loss per completion token, and ROUGE of generated completions."""
    flags = dict(locals())
    console = _console()
    from greentrainer.config import read

    settings = read(None, flags)
    from greentrainer import runs

    result = runs.evaluate(runs.prepare(settings, console, training=False), settings)
    for name, value in result.items():
        if isinstance(value, float):
            console.print(f"{name:8} {value:.4f}")


def main() -> None:
    """Run a command; what a user can mend is one line on standard error, exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(standalone_mode=False)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            _refuse(getattr(error, "format_message", error.__str__)())
        raise


def _refuse(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _finish(summary: dict[str, Any]) -> None:
    if summary["bill"]["interrupted"]:
        raise typer.Exit(130)


def _console() -> Any:
    from rich.console import Console
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Console(highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
