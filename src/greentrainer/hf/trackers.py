"""Selections as pictures, for the loggers that a Trainer reports to.

    trainer = GreenTrainer(model, TrainingArguments(..., report_to=["tensorboard"]), ...)
    trackers.attach(trainer)

The numbers need none of this: they are `GreenCallback.figures`, which the Trainer's own callbacks
carry.  TensorBoard and Weights & Biases get a picture and a histogram at each selection besides;
neither package is touched where it is not asked for.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from greentrainer.engine import AdaptiveBackprop
from greentrainer.hf.blocks import layout
from greentrainer.hf.callback import GreenCallback
from greentrainer.report import grid

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""What a logger needs, one of them."""
MARK = "#d55e00"
"""Colour of the dot on what is trained."""


def require(report_to: str | Sequence[str] | None) -> None:
    """Raise ValueError, in one line, if a logger's package is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in PACKAGES and not any(find_spec(package) for package in PACKAGES[name]):
            raise ValueError(f"report_to {name} needs a package: pip install {PACKAGES[name][0]}")


class Board(Protocol):
    """Where pictures go."""

    def show(self, picture: np.ndarray, importances: Sequence[float], step: int) -> None:
        """Show a selection (height, width, RGB in bytes) and what it was made by."""


class TensorBoard:
    """The event file that the Trainer's callback writes."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback

    def show(self, picture: np.ndarray, importances: Sequence[float], step: int) -> None:
        """As `Board.show`."""
        writer = self._callback.tb_writer
        writer.add_image("selection", picture, step, dataformats="HWC")
        if importances:
            writer.add_histogram("importance", np.asarray(importances), step)
        writer.flush()


class Wandb:
    """The run that the Trainer's callback opened."""

    def show(self, picture: np.ndarray, importances: Sequence[float], step: int) -> None:
        """As `Board.show`."""
        import wandb

        shown: dict[str, Any] = {"selection": wandb.Image(picture), "train/global_step": step}
        if importances:
            shown["importance"] = wandb.Histogram(importances)
        wandb.log(shown)


class LiveCallback(TrainerCallback):
    """Draws each selection that was asked for; corrections between them are in the numbers."""

    def __init__(self, green: GreenCallback, boards: Sequence[Board]) -> None:
        self._green, self._boards, self._seen = green, boards, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run's earlier selections were drawn before."""
        self._seen = len(self._engine.history)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw what was chosen before this step."""
        new = [event for event in self._engine.history[self._seen :] if event["asked"]]
        self._seen = len(self._engine.history)
        if new and state.is_world_process_zero:
            picture = drawn(self._engine, new[-1])
            for board in self._boards:
                board.show(picture, list(new[-1]["importances"].values()), state.global_step)

    @property
    def _engine(self) -> AdaptiveBackprop:
        assert self._green.engine is not None
        return self._green.engine


def attach(trainer: Any, folder: Path | None = None) -> None:
    """Have a `GreenTrainer` draw selections wherever it reports to; nothing if nowhere.

    folder: where TensorBoard's events go, if `$TENSORBOARD_LOGGING_DIR` does not say.
    """
    boards: list[Board] = []
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or (folder and str(folder))
            boards.append(TensorBoard(callback))
        elif isinstance(callback, WandbCallback):
            boards.append(Wandb())
    if boards:
        trainer.add_callback(LiveCallback(trainer.green_callback, boards))


def drawn(engine: AdaptiveBackprop, event: Mapping[str, Any]) -> np.ndarray:
    """A selection as (height, width, RGB): kinds of tensor down, blocks across.

    Colour is importance (by its root; below 0 as 0), a dot says that the tensor is trained.
    """
    places = layout(engine.model)
    tensors = [places[name] for name in engine.graph.tensors]
    importances, trained = event["importances"], set(event["names"])
    worth = [max(0.0, importances.get(name, 0.0)) ** 0.5 for name in engine.graph.tensors]
    kinds, cells = grid(tensors, worth)
    _, marks = grid(tensors, [float(name in trained) for name in engine.graph.tensors])
    title = f"trained from batch {event['batch']}: {len(trained)} of {len(tensors)} tensors"
    return _raster(kinds, cells, marks, title)


def _raster(
    kinds: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    marks: Sequence[Sequence[float | None]],
    title: str,
) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 0.6 + 0.24 * len(kinds)), layout="constrained")
    ax = figure.subplots()
    values = [[float("nan") if cell is None else cell for cell in row] for row in cells]
    ax.imshow(values, aspect="auto", cmap="cividis")
    dots = [(x, y) for y, row in enumerate(marks) for x, mark in enumerate(row) if mark]
    ax.scatter([x for x, _ in dots], [y for _, y in dots], s=14, color=MARK)
    ax.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="block (input to output)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=7)
    ax.set_title(title, fontsize=9, loc="left")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
