"""Every method on every kind of model: what it says it trains is trained, and billed."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import flop_counter
from greentrainer.cost.trace import trace
from greentrainer.engine import AdaptiveBackprop
from greentrainer.methods import METHODS, lora
from tests.conformance.families import batch_for, build


@dataclass(frozen=True)
class Anatomy:
    """Where a family keeps its parts, by the beginnings of its tensors' names.

    stacks: of the lists of blocks, each with its length.  above: between the last block and the
    head.  head: what turns states into words.
    """

    stacks: tuple[tuple[str, int], ...]
    above: str
    head: str
    biases: bool

    @property
    def blocks(self) -> list[str]:
        return [f"{stack}{i}." for stack, count in self.stacks for i in range(count)]


NOTHING = "-"
ANATOMY = {
    "llama": Anatomy((("model.layers.", 3),), "model.norm.", "lm_head.", biases=False),
    "gpt2": Anatomy((("transformer.h.", 3),), "transformer.ln_f.", "transformer.wte.", biases=True),
    "opt": Anatomy(
        (("model.decoder.layers.", 3),),
        "model.decoder.final_layer_norm.",
        "model.decoder.embed_tokens.",
        biases=True,
    ),
    "bloom": Anatomy(
        (("transformer.h.", 3),), "transformer.ln_f.", "transformer.word_embeddings.", biases=True
    ),
    "t5": Anatomy(
        (("encoder.block.", 2), ("decoder.block.", 2)),
        "decoder.final_layer_norm.",
        "shared.",
        biases=False,
    ),
    "bart": Anatomy(
        (("model.encoder.layers.", 2), ("model.decoder.layers.", 2)),
        NOTHING,
        "model.shared.",
        biases=True,
    ),
}
VIRTUAL = 3


def starting(names: set[str], *beginnings: str) -> set[str]:
    return {name for name in names if name.startswith(beginnings)}


def expected(method: str, family: str, model: nn.Module) -> set[str]:
    """The tensors that the method's description names; not for LISA, which draws."""
    body, names = ANATOMY[family], {name for name, _ in model.named_parameters()}
    if method == "top2":
        return starting(names, body.head, body.blocks[-1])
    if method == "top_blocks":
        return starting(names, body.above, *body.blocks[-2:])
    if method == "bitfit":
        wanted = ".bias" if body.biases else "norm.weight"
        return {name for name in names if name.endswith(wanted)}
    if method == "lora":
        return {name for name in names if ".lora_A." in name or ".lora_B." in name}
    if method in ("prefix", "prompt"):
        return {"prompt_encoder.default.embedding.weight"}
    return names


def prepared(method: str, family: str) -> tuple[Any, AdaptiveBackprop]:
    torch.manual_seed(0)
    config = RunConfig(method=method, virtual_tokens=VIRTUAL)  # type: ignore[arg-type]
    model = METHODS[method].adapt(build(family), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    selector = METHODS[method].selector(model, config)
    return model, AdaptiveBackprop(model, optimizer, batch_for(""), rho=1.0, selector=selector)


def step(model: Any, engine: AdaptiveBackprop) -> tuple[set[str], set[str], int]:
    """One training step: which tensors got a gradient, which moved, and the FLOPs executed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with flop_counter() as counter:
        model(**batch_for("")).loss.backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    engine.optimizer.step()
    engine.optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return graded, moved, counter.get_total_flops()


@pytest.mark.parametrize("family", ANATOMY)
@pytest.mark.parametrize(
    "method", ["top2", "top_blocks", "bitfit", "lora", "prefix", "prompt", "full"]
)
def test_a_method_trains_what_it_says_and_is_billed_what_it_executes(
    method: str, family: str
) -> None:
    model, engine = prepared(method, family)
    engine.reselect([batch_for("")])
    wanted = expected(method, family, model)
    assert wanted
    executed = 0
    for _ in range(2):
        graded, moved, flops = step(model, engine)
        executed += flops
        assert graded == wanted
        assert moved
        assert moved <= wanted
    assert engine.ledger.spent_flops == executed
    assert engine.ledger.probe_flops == 0


@pytest.mark.parametrize("family", ANATOMY)
def test_lisa_trains_what_is_outside_the_blocks_and_two_of_them(family: str) -> None:
    model, engine = prepared("lisa", family)
    names, blocks = {name for name, _ in model.named_parameters()}, ANATOMY[family].blocks
    always = names - starting(names, *blocks)
    executed, draws = 0, []
    for _ in range(6):
        engine.reselect([batch_for("")])
        graded, moved, flops = step(model, engine)
        executed += flops
        drawn = [block for block in blocks if starting(graded, block)]
        assert len(drawn) == 2
        assert graded == always | starting(names, *drawn)
        assert moved <= graded
        draws.append(tuple(drawn))
    assert len(set(draws)) > 1
    assert engine.ledger.spent_flops == executed


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_model_inside_an_adapter_is_not_touched(family: str, method: str) -> None:
    """Only what is trained has a gradient, wherever PEFT holds a module twice."""
    untouched = dict(build(family).named_parameters())
    model, engine = prepared(method, family)
    engine.reselect([batch_for("")])
    for _ in range(2):
        step(model, engine)
    own = {
        name.removeprefix("base_model.model." if method == "lora" else "base_model."): p
        for name, p in model.named_parameters()
    }
    inside = {name.replace(".base_layer.", "."): p for name, p in own.items()}
    assert untouched.keys() <= inside.keys()
    assert all(torch.equal(p, inside[name]) for name, p in untouched.items())


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_tracing_leaves_every_module_its_own_tensors(family: str, method: str) -> None:
    config = RunConfig(method=method, virtual_tokens=VIRTUAL)  # type: ignore[arg-type]
    model = METHODS[method].adapt(build(family), config).train()

    def held() -> dict[tuple[str, str], int]:
        return {
            (path, key): id(tensor)
            for path, module in model.named_modules(remove_duplicate=False)
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]
        }

    before = held()
    trace(model, batch_for(""))
    assert held() == before


def test_a_prefix_starts_as_what_the_model_makes_of_words() -> None:
    """Its keys and values are those that some words of the vocabulary would have had."""
    torch.manual_seed(0)
    model: Any = build("llama")
    config = RunConfig(method="prefix", virtual_tokens=VIRTUAL)
    torch.manual_seed(3)
    words = torch.randint(model.config.vocab_size, (1, VIRTUAL))
    ids = batch_for("")["input_ids"]
    told = torch.cat([words.expand(len(ids), -1), ids], dim=1)
    wanted = model.eval()(told).logits[:, VIRTUAL:]
    torch.manual_seed(3)
    wrapped = METHODS["prefix"].adapt(model, config).eval()
    torch.testing.assert_close(wrapped(ids).logits, wanted, rtol=1e-4, atol=1e-5)  # sums reordered


def test_a_prompt_starts_as_embeddings_of_words() -> None:
    model = METHODS["prompt"].adapt(build("llama"), RunConfig(method="prompt"))
    start = model.prompt_encoder.default.embedding.weight
    words = model.get_input_embeddings().weight
    assert len(start) == RunConfig().virtual_tokens
    assert all((words == row).all(dim=1).any() for row in start)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_merged_adapters_say_what_they_said_beside_the_weights(family: str) -> None:
    model, engine = prepared("lora", family)
    engine.reselect([batch_for("")])
    for _ in range(2):
        step(model, engine)
    engine.close()
    model.eval()
    wanted = model(**batch_for("")).logits
    whole = lora.merged(model)
    assert not [name for name, _ in whole.named_parameters() if "lora_" in name]
    torch.testing.assert_close(whole(**batch_for("")).logits, wanted, rtol=1e-4, atol=1e-5)


def test_without_peft_an_adapter_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for method in ("lora", "prefix", "prompt"):
        with pytest.raises(ValueError, match=r"^adapters need peft: pip install .*\[lora\]'$"):
            METHODS[method].adapt(build("llama"), RunConfig(method=method))


def test_blocks_are_needed_where_blocks_are_trained() -> None:
    with pytest.raises(ValueError, match="Linear has no repeated blocks"):
        METHODS["top_blocks"].selector(nn.Linear(2, 2), RunConfig(method="top_blocks"))
