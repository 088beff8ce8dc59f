"""Batches whose rows hold several examples: the gradients, tails and costs of unpacked ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from greentrainer.forward import SplitForward, mixing, tokens_of, unpacked
from greentrainer.forward.check import compare
from greentrainer.tasks import Encoded
from greentrainer.tasks.encode import Collator
from tests.conformance.families import VOCABULARY, build
from tests.conformance.foretold import require_foretold

LOSSLESS = ["llama", "qwen3", "mistral", "gemma3", "gpt-neox"]
OTHERS = ["opt", "opt-post-norm", "bloom"]
LENGTHS = ((18, 11), (5, 2), (9, 6), (6, 1), (8, 5), (11, 9))
"""Of examples, and of their prompts; longer ones than the windows of mistral and gemma3."""
PAD = 0
COLLATE = Collator(PAD, 1, packs=True)


def examples() -> list[Encoded]:
    """Tokens at random, completions labelled."""
    torch.manual_seed(3)
    rows = [(torch.randint(3, VOCABULARY, (n,)).tolist(), prompt) for n, prompt in LENGTHS]
    return [Encoded(tuple(ids), (*[-100] * prompt, *ids[prompt:])) for ids, prompt in rows]


def both() -> tuple[dict[str, Any], dict[str, Any]]:
    """The batch of the examples, packed and not."""
    return COLLATE(examples()), Collator(PAD, 1)(examples())


def model_of(family: str, attention: str) -> Any:
    """In float64; in float32 where the softmax is, whose masks of float64 are none."""
    return build(family, attention).eval().to(torch.float64 if attention == "sdpa" else None)


def gradients(model: nn.Module, batch: Any, tail: int | None) -> dict[str, torch.Tensor]:
    """Of the loss, by name, with that among them."""
    split = SplitForward(model)

    def near(small: Any, on: Any) -> Any:
        """Losses, norms and rotations are in float32 whatever the model is in."""
        return replace(compare(model, small, None, on), tolerance=1e-5)

    assert split.settle(batch, near) is None
    model.zero_grad()
    try:
        with split.at(tail), split.on():
            loss = model(**batch).loss
        loss.backward()
    finally:
        split.close()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tail", [None, 0, 4])
@pytest.mark.parametrize("family", LOSSLESS)
def test_the_gradient_is_that_of_the_unpacked_batch(
    family: str, tail: int | None, attention: str
) -> None:
    packed, plain = both()
    assert len(packed["labels"]) < len(plain["labels"])
    model = model_of(family, attention)
    found, wanted = gradients(model, packed, tail), gradients(model, plain, tail)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_packed_batch_unpacked_holds_the_examples() -> None:
    packed, plain = both()
    found = unpacked(packed)
    assert unpacked(plain) is plain
    order = [i for row in COLLATE.layout([n for n, _ in LENGTHS]).rows for i in row]
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(found[name], plain[name][order])
    assert tokens_of(packed) == (sum(n for n, _ in LENGTHS), packed["labels"].numel())


def test_a_label_at_the_beginning_of_an_example_leaves_the_batch_whole() -> None:
    """The last position of the example before would predict it: no unpacked row does."""
    packed, _ = both()
    begins = (packed["position_ids"] == 0)[:, 1:].nonzero()[0]
    packed["labels"][begins[0], begins[1] + 1] = 5
    split = SplitForward(build("llama").eval())
    with split.at(0):
        assert split.cut(packed) is None
    assert unpacked(packed) is packed
    reason = split.settle(packed, lambda *_: pytest.fail("nothing to try"))
    assert reason == "the first position of a packed example has a label"


@pytest.mark.parametrize("family", [*LOSSLESS, "gpt2", "falcon", "mixtral"])
def test_examples_are_what_they_are_alone(family: str) -> None:
    assert mixing(build(family), both()[0]) is None


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_that_mixes_examples_is_found_out(family: str) -> None:
    reason = mixing(build(family), both()[0])
    assert reason
    assert "are not what they are alone" in reason


def test_what_a_convolution_hands_on_is_found_out_untrained() -> None:
    torch.manual_seed(0)
    config = tf.Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    assert mixing(tf.AutoModelForCausalLM.from_config(config), both()[0])


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", LOSSLESS)
def test_executed_flops_are_those_foretold(family: str, head: bool) -> None:
    batches = [both()[0], COLLATE(examples()[1:]), COLLATE(examples()[2:])]
    require_foretold(build(family).eval(), batches, (None, 0, 3), head)
