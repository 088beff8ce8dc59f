"""Held-out loss, ROUGE and generation, each against a plain computation of the same thing."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.tasks import Example
from greentrainer.tasks.encode import IGNORED, Encoded, batches, collate, encode_all, encode_prompt
from greentrainer.tasks.metrics import Decoding, evaluating, generate, loss_per_token, rouge
from tests.conformance.families import build
from tests.tiny import EOS, PAD, characters, refusal

TOKENIZER = characters()
EXAMPLES = [
    Example("how are you today?", "fine, thanks.", " ->"),
    Example("no", "why not?"),
    Example("one two three four five", "six."),
    Example("a", "b", "c"),
    Example("the rain in spain", "falls mainly on the plain.", ":"),
]
DECODERS = ["llama", "gpt2", "opt", "bloom", "gemma3", "mistral"]
TWO_SIDED = ["t5", "flan-t5", "bart"]
STEPS = 12


def decided(family: str) -> Any:
    """A model sure of what it writes: reordering a float32 sum changes no token."""
    model: Any = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.generation_config.forced_eos_token_id = None  # bart's, an id of its own vocabulary
    return model.eval()


def encoded_for(model: Any) -> list[Encoded]:
    return encode_all(EXAMPLES, TOKENIZER, 48, model.config.is_encoder_decoder)


def batched(encoded: list[Encoded], size: int, pad_id: int = PAD) -> list[dict[str, torch.Tensor]]:
    groups = batches(encoded, size)
    return [collate([encoded[i] for i in group], pad_id, multiple=8) for group in groups]


def one_by_one(model: Any, encoded: list[Encoded]) -> float:
    """Mean of -log p of each labelled token, each example by itself and unpadded."""
    losses: list[float] = []
    for one in encoded:
        inputs = {"input_ids": torch.tensor([one.input_ids])}
        targets = one.labels
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.tensor([(start, *targets[:-1])])
        else:
            targets = (*targets[1:], IGNORED)  # nothing follows the last token
        log_p = model(**inputs).logits[0].double().log_softmax(-1)
        losses += [-log_p[i, t].item() for i, t in enumerate(targets) if t != IGNORED]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", DECODERS + TWO_SIDED)
def test_loss_is_the_mean_over_tokens_however_batched(family: str) -> None:
    model = decided(family)
    encoded = encoded_for(model)
    with torch.no_grad():
        expected = one_by_one(model, encoded)
    for size in (1, 2, 5):
        loss = loss_per_token(model, batched(encoded, size))
        assert loss == pytest.approx(expected, rel=1e-5)  # float32 logits


def test_loss_does_not_depend_on_the_padding_token() -> None:
    model = decided("llama")
    losses = [loss_per_token(model, batched(encoded_for(model), 5, pad)) for pad in (PAD, EOS, 9)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("family", ["opt", "bart"])
def test_loss_is_measured_without_dropout(family: str) -> None:
    model: Any = build(family)
    data = batched(encoded_for(model), 2)
    losses = {loss_per_token(mode, data) for mode in (model.eval(), model.train(), model.train())}
    assert len(losses) == 1


def test_loss_of_no_labels_is_refused() -> None:
    batch = collate([Encoded((5, 6), (IGNORED, IGNORED))], PAD)
    with refusal("no token has a label"):
        loss_per_token(build("llama"), [batch])
    with refusal("no token has a label"):
        loss_per_token(build("llama"), [])


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def half_frozen(family: str) -> Any:
    """In training mode but for its first layer; a gradient is waiting."""
    model: Any = build(family).train()
    next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0].eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    return model


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_a_measured_model_is_left_as_it_was(family: str) -> None:
    model = half_frozen(family)
    before, weights = flags(model), copy.deepcopy(model.state_dict())
    assert len(set(before)) == 2
    loss_per_token(model, batched(encoded_for(model), 2))
    generate(model, TOKENIZER, ["why", "how so"], Decoding(2))
    assert flags(model) == before
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    first, *others = [parameter.grad for parameter in model.parameters()]
    assert torch.equal(first, torch.ones_like(first))
    assert others == [None] * len(others)


def interrupted(model: nn.Module) -> None:
    with evaluating(model):
        assert not any(flags(model))
        assert not torch.is_grad_enabled()
        raise KeyboardInterrupt


def test_flags_come_back_after_an_error() -> None:
    model = half_frozen("opt")
    before = flags(model)
    with pytest.raises(KeyboardInterrupt):
        interrupted(model)
    assert flags(model) == before
    assert torch.is_grad_enabled()


F1 = {
    # 3 of 3 and of 6 words, 2 of 2 and of 5 pairs, 3 in order
    ("the cat sat", "the cat sat on the mat"): (200 / 3, 400 / 7, 200 / 3),
    # same words, no pair, one in order
    ("b a", "a b"): (100.0, 0.0, 50.0),
    # stems: run, quick dog; case and punctuation do not count
    ("Running dogs!", "run dog"): (100.0, 100.0, 100.0),
    # repeated words count as often as both have them: 1 of 3 and of 2
    ("the the the", "the cat"): (40.0, 0.0, 40.0),
    ("", "anything at all"): (0.0, 0.0, 0.0),
    ("no match here", "something else"): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("pair", F1)
def test_rouge_of_one_pair_is_as_by_hand(pair: tuple[str, str]) -> None:
    assert list(rouge([pair[0]], [pair[1]]).values()) == pytest.approx(F1[pair])


def test_rouge_is_the_mean_over_pairs() -> None:
    means = [sum(column) / len(F1) for column in zip(*F1.values(), strict=True)]
    scores = rouge([p for p, _ in F1], [r for _, r in F1])
    assert list(scores) == ["rouge1", "rouge2", "rougeL"]
    assert list(scores.values()) == pytest.approx(means)


def test_of_several_references_the_best_counts_for_each_score() -> None:
    """One reference has the words, the other has fewer of them but a pair."""
    scores = rouge(["a b c d"], [["d c b a", "a b x y"]])
    assert list(scores.values()) == pytest.approx([100.0, 100 / 3, 50.0])


@pytest.mark.parametrize(("predictions", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_rouge_of_unlike_numbers_is_refused(predictions: list[str], references: list[str]) -> None:
    with refusal(f"{len(predictions)} predictions for {len(references)} references"):
        rouge(predictions, references)


def written(model: Any, tokenizer: Any, prompt: Sequence[int]) -> str:
    """Greedy decoding by a plain loop: the whole sequence anew for each token, no padding."""
    two_sided = model.config.is_encoder_decoder
    tokens = [model.config.decoder_start_token_id] if two_sided else list(prompt)
    new: list[int] = []
    while len(new) < STEPS and tokenizer.eos_token_id not in new:
        inputs = {"input_ids": torch.tensor([list(prompt) if two_sided else tokens])}
        if two_sided:
            inputs["decoder_input_ids"] = torch.tensor([tokens])
        with torch.no_grad():
            new.append(int(model(**inputs).logits[0, -1].argmax()))
        tokens.append(new[-1])
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("family", DECODERS + TWO_SIDED)
def test_a_batch_writes_what_its_prompts_do_one_by_one(family: str) -> None:
    model = decided(family)
    two_sided = model.config.is_encoder_decoder
    free = [written(model, TOKENIZER, encode_prompt(e, TOKENIZER, 48, two_sided)) for e in EXAMPLES]
    end = free[0][len(free[0]) // 2 : len(free[0]) // 2 + 1] or "</s>"
    tokenizer = characters(eos_token=end)  # so that texts end at different times
    prompts = [encode_prompt(e, tokenizer, 48, two_sided) for e in EXAMPLES]
    expected = [written(model, tokenizer, prompt) for prompt in prompts]
    assert len(set(expected)) > 2
    for size in (1, 2, 16):
        assert generate(model, tokenizer, prompts, Decoding(STEPS), size) == expected


def test_a_models_own_wishes_do_not_make_it_less_greedy() -> None:
    model = decided("llama")
    prompts = [encode_prompt(e, TOKENIZER, 48) for e in EXAMPLES]
    expected = generate(model, TOKENIZER, prompts, Decoding(STEPS))
    wishes = {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.5, "num_beams": 3}
    limits = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_length": 40}
    model.generation_config.update(**wishes, **limits)
    assert generate(model, TOKENIZER, prompts, Decoding(STEPS)) == expected


def test_a_text_is_tokenised_as_it_is() -> None:
    model = decided("gpt2")
    texts = ["how are you?", "why"]
    assert generate(model, TOKENIZER, texts, Decoding(STEPS)) == [
        written(model, TOKENIZER, TOKENIZER(text).input_ids) for text in texts
    ]
    assert generate(model, TOKENIZER, []) == []
