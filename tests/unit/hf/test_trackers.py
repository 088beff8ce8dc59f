"""What loggers are shown of a run: pictures at selections, and nothing where nobody asked."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers as tf

from greentrainer.energy import Estimate
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.hf import trackers as trackers
from tests.conformance.families import build
from tests.tiny import refusal

ROWS = [{"input_ids": [i % 7 + 4] * 8, "labels": [i % 7 + 4] * 8} for i in range(16)]


class Writer:
    """Stands in for TensorBoard's writer."""

    def __init__(self) -> None:
        self.images: list[tuple[str, np.ndarray, int]] = []
        self.histograms: list[tuple[str, np.ndarray, int]] = []

    def add_image(self, name: str, picture: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.append((name, picture, step))

    def add_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self.histograms.append((name, values, step))

    def flush(self) -> None:
        pass


def trainer(folder: Path, **more: Any) -> GreenTrainer:
    arguments = tf.TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    green = GreenConfig(rho=0.6, every_steps=3, probe_batches=1, **more)
    made = GreenTrainer(build("llama"), arguments, train_dataset=ROWS, green=green)
    made.remove_callback(tf.PrinterCallback)
    return made


def test_each_selection_is_drawn_with_its_importances(tmp_path: Path) -> None:
    writer, green = Writer(), trainer(tmp_path)
    boards = [trackers.TensorBoard(SimpleNamespace(tb_writer=writer))]
    green.add_callback(trackers.LiveCallback(green.green_callback, boards))
    green.train()
    assert [(name, step) for name, _, step in writer.images] == [("selection", 1), ("selection", 4)]
    height, width, colours = writer.images[0][1].shape
    assert (width, colours) == (800, 3)
    assert height > 100
    asked = [event for event in green.engine.history if event["asked"]]
    for (name, values, _), event in zip(writer.histograms, asked, strict=True):
        assert name == "importance"
        assert list(values) == list(event["importances"].values())


def test_numbers_are_logged_and_an_estimate_is_called_one(tmp_path: Path) -> None:
    green = trainer(tmp_path)
    green.green_callback.meter = Estimate(watts=3600.0)
    green.train()
    steps = [entry for entry in green.state.log_history if "loss" in entry]
    names = {"rho_spent", "spent_teraflops", "tensors_trained", "energy_wh_estimate", "loss"}
    assert all(names <= set(entry) for entry in steps)
    spent = [entry["energy_wh_estimate"] for entry in steps]
    assert 0 < spent[0] < spent[-1]
    assert steps[-1]["spent_teraflops"] == green.ledger.spent_flops / 1e12


def test_nothing_is_added_where_nobody_asked(tmp_path: Path) -> None:
    green = trainer(tmp_path)
    before = list(green.callback_handler.callbacks)
    trackers.attach(green)
    assert green.callback_handler.callbacks == before


def test_a_run_is_told_of_each_selection_by_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("wandb")
    logged: list[dict[str, Any]] = []
    fake.Image, fake.Histogram, fake.log = np.shape, list, logged.append
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trackers.Wandb().show(np.zeros((2, 3, 3)), [0.5, 1.0], 7)
    trackers.Wandb().show(np.zeros((2, 3, 3)), [], 9)  # a rule that measures nothing
    assert logged == [
        {"selection": (2, 3, 3), "train/global_step": 7, "importance": [0.5, 1.0]},
        {"selection": (2, 3, 3), "train/global_step": 9},
    ]


@pytest.mark.parametrize("asked", ["tensorboard", ["wandb"], "none", [], None])
def test_a_logger_that_is_not_installed_is_refused(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    if asked in ("tensorboard", ["wandb"]):
        with refusal("pip install"):
            trackers.require(asked)
    else:
        trackers.require(asked)


def test_the_event_file_holds_scalars_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    green = trainer(tmp_path)
    green.add_callback(tf.integrations.TensorBoardCallback())
    trackers.attach(green, tmp_path / "events")
    green.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert "selection" in events.Tags()["images"]
    assert "importance" in events.Tags()["histograms"]
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "train/rho_spent"} <= scalars
