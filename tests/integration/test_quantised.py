"""Adapters beside a base in few bits: books, choice, and the command line."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import nn

from greentrainer.config import read
from greentrainer.cost import flop_counter, trace
from greentrainer.forward import ForwardOptions
from greentrainer.hf import GreenConfig, GreenTrainer, load
from tests.integration.test_cli import FLAGS, command, data, model  # noqa: F401
from tests.tiny import saved

pytest.importorskip("bitsandbytes")

SETTINGS = {
    "nf4": tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4, scales quantised too": tf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "fp4 in bfloat16": tf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16
    ),
    "int8": tf.BitsAndBytesConfig(load_in_8bit=True),
}


def adapted(folder: Path, settings: Any) -> Any:
    tf.utils.logging.disable_progress_bar()
    if settings == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        settings = tf.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    base: Any = tf.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map={"": "cpu"}
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def rows(count: int = 120, prompt: int = 0, size: int = 16) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    made = []
    for _ in range(count):
        ids = torch.arange(size) % 7 + torch.randint(4, 30, ())
        labels = ids.clone()
        labels[:prompt] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def trainer(folder: Path, network: Any, green: GreenConfig, **more: Any) -> GreenTrainer:
    told = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "report_to": "none",
            "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
            "learning_rate": 1e-3, **more.pop("arguments", {})}  # fmt: skip
    arguments = tf.TrainingArguments(str(folder / "run"), **told)
    return GreenTrainer(model=network, args=arguments, green=green, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("settings", [*SETTINGS, "torchao"])
def test_a_share_of_the_adapters_own_cost_is_spent_and_the_books_are_exact(
    folder: Path, tmp_path: Path, settings: str
) -> None:
    network = adapted(folder, SETTINGS.get(settings, settings))
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    fixed = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    kept = {name: _bytes(p) for name, p in fixed.items()}
    tuned = trainer(tmp_path, network, GreenConfig(rho=0.8, steps="all"), train_dataset=rows())
    with flop_counter() as counter:
        tuned.train()
    told = tuned.ledger.summary()
    assert told["rho_spent"] <= 0.8
    assert told["spent_flops"] == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert told["worst_deviation"] <= 1e-3
    assert tuned.engine.graph.uncounted_ops == ()
    assert tuned.engine.selection is not None
    chosen = {name for entry in tuned.engine.history for name in entry["names"]}
    moved = {n for n, p in network.named_parameters() if n in before and not _same(p, before[n])}
    assert moved
    assert moved <= chosen
    assert {name: _bytes(p) for name, p in fixed.items()} == kept


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.equal(a, b))


def _bytes(tensor: Any) -> bytes:
    if hasattr(tensor, "qdata"):
        tensor = tensor.qdata
    return bytes(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_product_with_a_packed_weight_costs_what_the_product_costs(
    folder: Path, settings: str
) -> None:
    batch = {name: value[None] for name, value in rows(1)[0].items()}
    plain: Any = tf.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    dense = trace(get_peft_model(plain, lora).train(), batch)
    packed = trace(adapted(folder, SETTINGS[settings]).train(), batch)
    assert packed.forward_flops == dense.forward_flops
    assert packed.full_backward_flops == dense.full_backward_flops


def test_training_after_an_evaluation_still_learns(folder: Path, tmp_path: Path) -> None:
    network = adapted(folder, SETTINGS["nf4"])
    tuned = trainer(
        tmp_path, network, GreenConfig(rho=0.9, steps="all"), train_dataset=rows(),
        eval_dataset=rows(8), arguments={"learning_rate": 2e-2},
    )  # fmt: skip
    before = tuned.evaluate()["eval_loss"]
    tuned.train()
    assert tuned.ledger.summary()["worst_deviation"] <= 1e-3
    assert tuned.evaluate()["eval_loss"] < before - 0.1


@pytest.mark.parametrize(
    ("positions", "forward"),
    [
        ("choose", ForwardOptions(labelled_head=True)),
        (0, ForwardOptions()),
        ("all", ForwardOptions(labelled_head=True, keep="memory", examples=40)),
    ],
    ids=["positions chosen", "the completion alone", "kept activations"],
)
def test_what_spares_work_does_so_in_few_bits(
    folder: Path, tmp_path: Path, positions: Any, forward: ForwardOptions
) -> None:
    network = adapted(folder, SETTINGS["nf4"])
    green = GreenConfig(rho=0.8, steps="all", positions=positions, forward=forward)
    tuned = trainer(
        tmp_path, network, green, train_dataset=rows(40, prompt=40, size=64),
        arguments={"num_train_epochs": 4},
    )  # fmt: skip
    with flop_counter() as counter:
        tuned.train()
    told = tuned.ledger.summary()
    assert told["rho_spent"] <= 0.8
    assert told["spent_flops"] == pytest.approx(counter.get_total_flops(), rel=1e-3)


class QuantisedLinear(nn.Module):
    """A layer as people write it themselves: codes, scales, and an adapter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.randn(size, size) / size**0.5
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.down, self.up = nn.Linear(size, 4, bias=False), nn.Linear(4, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: Any = self.codes.to(x.dtype) * self.scale  # type: ignore[operator]
        out: torch.Tensor = nn.functional.linear(x, weight) + self.up(self.down(x))
        return out


def test_a_layer_of_codes_and_scales_is_traced_as_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(QuantisedLinear(16), nn.Tanh(), QuantisedLinear(16))
    batch = torch.randn(8, 16)

    def loss(module: nn.Module, given: Any) -> torch.Tensor:
        out: torch.Tensor = module(given).square().mean()
        return out

    graph = trace(network, batch, loss)
    with flop_counter() as counter:
        loss(network, batch).backward()
    assert graph.forward_flops + graph.full_backward_flops == counter.get_total_flops()


def test_the_command_trains_adapters_beside_four_bits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model: Path, data: Path,  # noqa: F811
) -> None:  # fmt: skip
    run = tmp_path / "run"
    typed = ["train", "--model", model, "--task", data, "--method", "lora", "--rho", 0.8,
             "--load-in-4bit", "--output-dir", run, *FLAGS]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert command(monkeypatch, *typed) == 0
    assert "chooses among the adapters" in capsys.readouterr().out
    summary = json.loads((run / "metrics.json").read_text())
    assert summary["bill"]["rho_spent"] <= 0.8
    assert summary["bill"]["plain_full_flops"] > summary["bill"]["spent_flops"]
    assert summary["after"]["loss"] < summary["before"]["loss"]
    whole, _ = load(str(run / "model"))
    base, _ = load(str(model))
    pairs = list(zip(whole.parameters(), base.parameters(), strict=True))
    assert all(a.dtype == torch.float32 for a, _ in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert read(run / "config.yaml", {}).load_in_4bit
    assert command(monkeypatch, "merge", model, run / "model", tmp_path / "whole") == 0
    merged: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    for a, b in zip(merged.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--load-in-4bit"], "add --lora-rank 8"),
        (["--load-in-4bit", "--method", "full"], "add --lora-rank 8"),
        (["--load-in-8bit", "--method", "top2"], "use method lora"),
        (["--load-in-4bit", "--load-in-8bit", "--method", "lora"], "not both"),
    ],
)
def test_what_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model: Path, data: Path, flags: list[str], told: str,  # noqa: F811
) -> None:  # fmt: skip
    typed = ["train", "--model", model, "--task", data, "--output-dir", tmp_path / "run", *flags]
    assert command(monkeypatch, *typed) == 2
    printed = capsys.readouterr()
    assert told in printed.err + printed.out
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:  # noqa: F811
    from greentrainer.hf import quantised

    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'greentrainer\[quantised\]'"):
        load(str(model), bits=4)
