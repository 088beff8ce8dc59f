"""How long a Trainer's run is, how often tensors are chosen in it, and its learning rates."""

from typing import Any

from transformers import TrainerState, TrainingArguments

from greentrainer.engine import AdaptiveBackprop
from greentrainer.hf.config import GreenConfig


def schedule(
    green: GreenConfig, args: TrainingArguments, state: TrainerState, epoch_batches: int | None
) -> tuple[int, int]:
    """Batches of the whole run, and batches between selections.

    epoch_batches: None for a stream, of which nobody knows the end: it is read once.
    """
    joined = args.gradient_accumulation_steps
    if epoch_batches is None:
        total = state.max_steps * joined
        return total, total if green.every_steps is None else green.every_steps * joined
    steps = -(-epoch_batches // joined)
    epochs, rest = divmod(state.max_steps, steps)
    total = epochs * epoch_batches + rest * joined
    if green.every_steps is not None:
        return total, green.every_steps * joined
    return total, max(joined, round(green.every_epochs * epoch_batches))


def follow(scheduler: Any, steps: int, engine: AdaptiveBackprop) -> None:
    """Let a schedule of learning rates come to its end when the run does.

    It was made for so many steps; fewer may be made, and how many may change.  So it is asked not
    for the rate after a number of steps but for that after the same share of all of them: warm-up
    and decay keep their parts of the run.  Raises ValueError for a schedule that is no function of
    the step.
    """
    while not hasattr(scheduler, "lr_lambdas"):
        scheduler = getattr(scheduler, "scheduler", None)
        if scheduler is None:
            raise ValueError(
                "the number of steps is chosen, and this schedule of learning rates cannot follow: "
                "use one of transformers' such as linear or cosine, or steps='all'"
            )

    def following(rate: Any) -> Any:
        def at(step: int) -> float:
            return float(rate(round(engine.progress * steps) if step else 0))

        return at

    scheduler.lr_lambdas = [following(rate) for rate in scheduler.lr_lambdas]
