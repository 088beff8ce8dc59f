"""A model in several places is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from accelerate import dispatch_model
from torch import nn
from torch.nn.parallel import DataParallel

from greentrainer import AdaptiveBackprop, trace
from greentrainer.hf import GreenConfig, GreenTrainer
from tests.conformance.families import batch_for, build


def dispatched(folder: Path, blocks: str) -> Any:
    """A model as `device_map` lays it out."""
    model: Any = build("llama")
    rest = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    places: dict[str, Any] = {"model.layers": blocks, **dict.fromkeys(rest, "cpu")}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def engine(model: nn.Module) -> AdaptiveBackprop:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return AdaptiveBackprop(model, optimizer, batch_for("llama"), rho=0.7)


def test_weights_offloaded_by_a_device_map(tmp_path: Path) -> None:
    """Told by the map; before the Trainer, or tracing, falls over what is not there."""
    model = dispatched(tmp_path / "offloaded", "disk")
    said = r"the model lies in several places \(cpu, disk\): load it on one device"
    with pytest.raises(ValueError, match=said):
        engine(model)
    with pytest.raises(ValueError, match=said):
        trace(model, batch_for("llama"))
    rows = [{name: value[0] for name, value in batch_for("llama").items()}] * 8
    args = tf.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, max_steps=2)
    trainer = GreenTrainer(
        model=model, args=args, train_dataset=rows, green=GreenConfig(rho=0.7)
    )  # fmt: skip
    with pytest.raises(ValueError, match=said):
        trainer.train()


def test_a_device_map_of_one_device_is_no_matter(tmp_path: Path) -> None:
    """Loaded with `device_map`, all on one."""
    assert engine(dispatched(tmp_path, "cpu")).graphs


def test_weights_laid_out_by_hand() -> None:
    """Told by the parameters."""
    model: Any = build("llama")
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match=r"\(cpu, meta\)"):
        engine(model)


def test_data_parallel() -> None:
    """With what to give in its place."""
    with pytest.raises(ValueError, match=r"DataParallel copies .*model\.module"):
        engine(DataParallel(build("llama")))
