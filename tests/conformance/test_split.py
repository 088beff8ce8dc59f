"""Batches cut in two: the same loss, and the gradient that leaves out the prefix."""

from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.forward import Alike, SplitForward
from greentrainer.forward.check import compare
from greentrainer.forward.cut import cut
from greentrainer.forward.lower_right import attend, seen
from greentrainer.forward.room import RoomyLayer
from greentrainer.forward.split import _hard
from tests.conformance.families import FAMILIES, batch_for, build
from tests.conformance.foretold import require_foretold

DECODERS = [n for n in FAMILIES if "t5" not in n and "bart" not in n and "checkpointed" not in n]
ENCODERS = [n for n in FAMILIES if ("t5" in n or "bart" in n) and "checkpointed" not in n]
PLAIN = [
    "opt", "opt-post-norm", "gpt2", "gpt-neox", "llama", "qwen3", "phi", "mixtral", "moe-routed",
    "llama-lora",
]  # fmt: skip
"""Whose positions see all before them, in attention that transformers knows by a name."""
WINDOWED = ["mistral", "gemma3"]
ROWS, LENGTH = 3, 18
PROMPTS = (11, 4, 13)
KEYS_AND_VALUES = ("k_proj", "v_proj", "k_norm", "c_attn", "query_key_value")
"""Ends of the names of modules that make them, in all families; some make queries too."""


def still(family: str) -> Any:
    """The family's model in evaluation mode, so that no dropout is in the way."""
    return build(family).eval()


def ragged(left: bool = False) -> dict[str, Any]:
    """Rows of different lengths, prompts and completions."""
    batch: dict[str, Any] = batch_for("", ROWS, LENGTH)
    for row, (size, prompt) in enumerate(zip((18, 14, 16), PROMPTS, strict=True)):
        blank = slice(0, LENGTH - size) if left else slice(size, LENGTH)
        batch["attention_mask"][row, blank] = 0
        first = LENGTH - size if left else 0
        batch["labels"][row, : first + prompt] = -100
    batch["labels"][batch["attention_mask"] == 0] = -100
    batch["input_ids"][batch["attention_mask"] == 0] = 0
    return batch


def split_loss(model: Any, batch: Any, tail: int) -> Any:
    """The loss with so many positions of the prompt in the tail."""
    split = SplitForward(model)
    assert split.settle(ragged(), lambda small, on: compare(model, small, None, on)) is None
    try:
        with split.at(tail), split.on():
            return model(**batch).loss
    finally:
        split.close()


def gradients(model: nn.Module, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("tail", [0, 3, 100])
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_the_loss_is_that_of_the_whole_batch(family: str, tail: int, left: bool) -> None:
    model, batch = still(family), ragged(left)
    whole, parted = model(**batch).loss, split_loss(model, batch, tail)
    torch.testing.assert_close(parted, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", DECODERS)
def test_rows_that_fill_both_parts_need_no_mask(family: str) -> None:
    """Prefixes of 8 and tails of 16 are what they are padded to."""
    model, seen = still(family), []
    batch = batch_for("", ROWS, 24)
    batch["labels"][:, :12] = -100
    split = SplitForward(model)
    assert split.settle(ragged(), lambda small, on: compare(model, small, None, on)) is None
    split.coarse = False
    model.register_forward_pre_hook(
        lambda _model, _args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    whole = model(**batch).loss
    with split.at(3), split.on():
        parted = model(**batch).loss
    torch.testing.assert_close(parted, whole, rtol=1e-5, atol=1e-6)
    assert [mask is None for mask in seen] == [False, True]


@pytest.mark.parametrize("family", DECODERS)
def test_a_tail_of_everything_has_the_whole_gradient(family: str) -> None:
    model, batch = still(family), ragged()
    whole = gradients(model, model(**batch).loss)
    parted = gradients(model, split_loss(model, batch, LENGTH))
    assert whole.keys() == parted.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parted[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", DECODERS)
def test_the_gradient_is_that_with_keys_and_values_of_the_prefix_detached(family: str) -> None:
    model, batch = still(family), ragged()
    starts = torch.tensor(PROMPTS)[:, None] - 1  # of the first position that predicts a label
    prefix = torch.arange(LENGTH) < starts

    def detach(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        at = prefix.view([size if size in (ROWS, LENGTH) else 1 for size in out.shape])
        return out.detach().where(at, out)

    modules = [m for n, m in model.named_modules() if n.endswith(KEYS_AND_VALUES)]
    assert len(modules) in (3, 6, 9)
    handles = [module.register_forward_hook(detach) for module in modules]
    wanted = gradients(model, model(**batch).loss)
    for handle in handles:
        handle.remove()
    found = gradients(model, split_loss(model, batch, 0))
    whole = gradients(model, model(**batch).loss)
    assert found.keys() == wanted.keys() == whole.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(found[n], whole[n], rtol=1e-2, atol=1e-5) for n in whole)


@pytest.mark.parametrize("family", ENCODERS)
def test_of_an_encoder_decoder_the_encoder_gets_no_gradient(family: str) -> None:
    model, batch = still(family), ragged()
    whole = gradients(model, model(**batch).loss)
    found = gradients(model, split_loss(model, batch, 0))
    encoder = {f"{n}" for n in whole if "encoder." in n and "decoder" not in n}
    assert encoder.isdisjoint(found)
    shared = {n for n in whole if "shared" in n or "embed" in n}
    for name in found.keys() - shared:
        torch.testing.assert_close(found[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_executed_flops_are_those_foretold(family: str, head: bool) -> None:
    require_foretold(still(family), [ragged()], (0, 3), head)


def test_a_tail_is_what_has_labels_and_what_was_asked_of_the_prompt() -> None:
    labels = torch.tensor([[-100] * 4 + [5, 6, -100, -100], [-100] * 6 + [7, 8], [-100] * 8])
    mask = torch.tensor([[1] * 6 + [0, 0], [0, 0] + [1] * 6, [1] * 8])
    where = cut(labels, mask, 0)
    assert where.begin.tolist() == [0, 2, 0]
    assert where.start.tolist() == [3, 5, 7]
    assert where.end.tolist() == [6, 8, 8]
    assert where.tail_tokens == 3 + 3 + 1
    assert cut(labels, mask, 2).start.tolist() == [1, 3, 5]
    assert cut(labels, mask, 90).start.tolist() == [0, 2, 0]
    assert cut(labels, mask, 90).prefix == 0


def test_a_cut_is_told_once_and_anew_for_another_tail_or_other_labels() -> None:
    split, batch = SplitForward(build("llama")), ragged()
    with split.at(2):
        first = split.cut(batch)
        assert split.cut({**batch}) is first
        batch["labels"][0, PROMPTS[0]] = -100  # its completion begins one later
        second = split.cut(batch)
    assert first
    assert second
    assert second.start[0] == first.start[0] + 1
    with split.at(1):
        third = split.cut(batch)
    assert third
    assert third.start[0] == second.start[0] + 1
    with torch.inference_mode():
        loaded = {name: tensor.clone() for name, tensor in batch.items()}
    with split.at(1):
        assert torch.equal(split.cut(loaded).start, third.start)  # type: ignore[union-attr]


def test_several_turns_lie_in_the_tail_from_the_first_label_on() -> None:
    model, batch = still("llama"), ragged()
    batch["labels"][0, 6:8] = batch["input_ids"][0, 6:8]
    whole, parted = model(**batch).loss, split_loss(model, batch, 0)
    torch.testing.assert_close(parted, whole, rtol=1e-5, atol=1e-6)


def test_no_position_that_predicts_a_label_is_hidden_where_a_split_is_tried() -> None:
    """Rows of few positions, half of which is padding."""
    batch = ragged()
    batch["labels"][:, 3:7], batch["labels"][:, 7:] = batch["input_ids"][:, 3:7], -100
    tried = _hard(batch)
    assert not bool(tried["attention_mask"][:, 0].all())
    assert bool(tried["attention_mask"][:, 2:7].all())


def test_a_mask_with_a_gap_is_refused() -> None:
    batch = ragged()
    batch["attention_mask"][0, 3] = 0
    with pytest.raises(ValueError, match="has a gap"):
        cut(batch["labels"], batch["attention_mask"], 0)


def test_activations_that_are_recomputed_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="drops the cache"):
        SplitForward(build("llama-checkpointed"))


def test_a_batch_with_labels_everywhere_is_left_whole() -> None:
    model = still("llama")
    batch = batch_for("", ROWS, LENGTH)
    split = SplitForward(model)
    with split.at(0):
        assert split.cut(batch) is None
        assert split.parts(batch) is batch


@pytest.mark.parametrize("family", DECODERS)
def test_keys_and_values_are_written_where_they_are_to_stay(family: str) -> None:
    """Growing layers get room; the model's own cache gives the same loss and gradient."""
    model, batch = still(family), ragged()
    split = SplitForward(model)
    assert split.settle(batch, lambda small, on: compare(model, small, None, on)) is None
    assert split.keeping == "roomy"
    found = {}
    for keeping in ("roomy", "grown"):
        split.keeping = keeping
        with split.at(2), split.on():
            loss = model(**batch).loss
        found[keeping] = {"loss": loss.detach(), **gradients(model, loss)}
    for name, value in found["roomy"].items():
        torch.testing.assert_close(value, found["grown"][name], rtol=1e-5, atol=1e-7)


def test_more_than_one_tail_grows_the_cache() -> None:
    layer = RoomyLayer(2)
    parts = [torch.randn(1, 2, n, 4, requires_grad=n < 3) for n in (3, 2, 1)]
    for part in parts:
        keys, values = layer.update(part.detach() if part is parts[0] else part, 2 * part.detach())
    assert layer.get_seq_length() == 6
    assert torch.equal(keys, torch.cat(parts, 2))
    assert torch.equal(values, 2 * torch.cat(parts, 2).detach())
    keys.sum().backward()
    for part in parts[1:]:
        assert part.grad is not None
        assert torch.equal(part.grad, torch.ones_like(part))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_mask_that_hides_labelled_positions_is_kept(family: str) -> None:
    """As where the padding token ends completions too: labels lie where the mask is 0."""
    model, batch = still(family), batch_for("", ROWS, 24)
    batch["labels"][:, :12] = -100
    batch["attention_mask"][:, -4:] = 0
    split = SplitForward(model)
    assert split.settle(ragged(), lambda small, on: compare(model, small, None, on)) is None
    split.coarse = False
    whole = model(**batch).loss
    with split.at(3), split.on():
        torch.testing.assert_close(model(**batch).loss, whole, rtol=1e-5, atol=1e-6)


def test_a_mask_between_positions_cannot_be_split() -> None:
    model, batch = still("llama"), batch_for("", ROWS, 24)
    batch["labels"][:, :12] = -100
    batch["attention_mask"] = torch.ones(ROWS, 1, 24, 24, dtype=torch.bool).tril()
    split = SplitForward(model)
    reason = split.settle(batch, lambda small, on: compare(model, small, None, on))
    assert reason == "a mask of its own between positions"
    with split.at(3):
        assert split.cut(batch) is None


@pytest.fixture
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tails without masks on any device, where only GPUs have them."""
    monkeypatch.setattr(seen, "anywhere", True)


def rectangular() -> dict[str, torch.Tensor]:
    """Rows of one length with prompts of one length."""
    batch = batch_for("", ROWS, 27)
    batch["labels"][:, :15] = -100
    return batch


@pytest.mark.usefixtures("_anywhere")
@pytest.mark.parametrize("family", [*PLAIN, *WINDOWED])
def test_a_tail_without_a_mask_gives_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients; and it is used where attention is plain, nowhere else."""
    used = []
    real = attend
    monkeypatch.setattr("greentrainer.forward.handed.attend", lambda *a: used.append(1) or real(*a))  # type: ignore[func-returns-value]
    model, batch = build(family, "sdpa").eval(), rectangular()
    split = SplitForward(model)
    assert split.settle(ragged(), lambda small, on: compare(model, small, None, on)) is None
    gradients = []
    for maskless in (False, split.maskless):
        split.maskless = maskless
        used.clear()
        model.zero_grad()
        with split.at(3), split.on():
            model(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert bool(used) == maskless
        assert not seen.whole
    assert split.maskless == (family in PLAIN)
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_anywhere")
def test_a_tail_with_padding_before_it_keeps_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr("greentrainer.forward.handed.attend", lambda *a: used.append(1))
    model: Any = build("llama", "sdpa").eval()
    split = SplitForward(model)
    split.maskless = True
    with split.at(3), split.on():
        model(**ragged())
    assert not used


def test_rows_of_one_length_are_not_padded() -> None:
    split = SplitForward(still("llama"))
    with split.at(3):
        where = split.cut(rectangular())
    assert where is not None
    assert (where.prefix, where.tail, where.padded) == (11, 16, False)


def test_a_cut_made_of_sizes_lies_on_the_host() -> None:
    """Pinning takes no tensor of a device, and the trace was then given up without a word."""
    split = SplitForward(still("llama"))
    with split.at(3):
        alike = Alike(rectangular(), split)
    alike.batch = {name: value.to("meta") for name, value in alike.batch.items()}
    _, where = alike.made((2, 5, 7))
    assert where is not None
    assert {t.device.type for t in (where.begin, where.start, where.end)} == {"cpu"}
