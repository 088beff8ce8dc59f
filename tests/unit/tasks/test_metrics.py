"""Held-out loss, choices and whole evaluations, each against a plain computation of the same."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.tasks import Encoded, Example, evaluating, metrics
from greentrainer.tasks.encode import IGNORED, batches, collate, encode_all, encode_prompt
from greentrainer.tasks.metrics import (
    Decoding,
    Normalisation,
    choice_accuracy,
    evaluate_answers,
    generate,
    grounded,
    loss_per_token,
    rouge,
    token_f1,
)
from tests.conformance.families import build
from tests.decided import DECODERS, EXAMPLES, TWO_SIDED, VIRTUAL, decided, wrapped
from tests.tiny import EOS, PAD, characters, refusal

TOKENIZER = characters()


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


@pytest.mark.parametrize("adapter", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["llama", "opt", "t5"])
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_loss_under_virtual_tokens_is_the_models_own(family: str, adapter: str) -> None:
    model = wrapped(family, adapter)
    [batch] = batched(encoded_for(model), len(EXAMPLES))
    with torch.no_grad():
        own, logits = model(**batch).loss.item(), model(**batch).logits
    more = VIRTUAL if adapter == "prompt" and family != "t5" else 0
    assert logits.shape[1] == batch["labels"].shape[1] + more
    assert loss_per_token(model, [batch]) == pytest.approx(own, rel=1e-6)


CHOSEN = [
    replace(example, completion=choices[i % len(choices)], choices=choices)
    for i, (example, choices) in enumerate(
        [
            (EXAMPLES[0], ("yes", "no")),
            (EXAMPLES[1], ("1", "2", "3")),
            (EXAMPLES[2], ("a very long answer indeed", "b")),
            (EXAMPLES[3], ("true", "false", "perhaps", "who knows")),
            (EXAMPLES[4], ("no", "yes, it does")),
            (EXAMPLES[2], ("red", "green", "blue")),
        ]
    )
]


def choice_scores(model: Any, example: Example, normalisation: str) -> list[float]:
    """Sum or mean of log p of each choice's tokens, one after the other and unpadded."""
    found = []
    for choice in example.choices:
        one = encode_all([replace(example, completion=choice)], TOKENIZER, 48, two_sided(model))
        count = sum(label != IGNORED for label in one[0].labels)
        found.append(-one_by_one(model, one) * (count if normalisation == "sum" else 1))
    return found


def two_sided(model: Any) -> bool:
    return bool(model.config.is_encoder_decoder)


@pytest.mark.parametrize("normalisation", ["sum", "mean"])
@pytest.mark.parametrize("family", ["llama", "opt", "t5", "bart"])
def test_accuracy_is_the_share_whose_choice_is_likeliest(
    family: str, normalisation: Normalisation
) -> None:
    model = decided(family)
    with torch.no_grad():
        scores = [choice_scores(model, example, normalisation) for example in CHOSEN]
    picked = [e.choices[s.index(max(s))] for e, s in zip(CHOSEN, scores, strict=True)]
    hits = sum(choice == e.completion for choice, e in zip(picked, CHOSEN, strict=True))
    right = [replace(e, completion=choice) for e, choice in zip(CHOSEN, picked, strict=True)]
    for size in (1, 3, 64):
        options = (48, size, normalisation)
        assert choice_accuracy(model, TOKENIZER, CHOSEN, *options) == 100 * hits / len(CHOSEN)
        assert choice_accuracy(model, TOKENIZER, right, *options) == 100


def test_the_mean_does_not_favour_the_short() -> None:
    """With every token equally likely the sum takes the shortest, the mean the first of equals."""
    model = decided("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    examples = [Example("why", "long answer", choices=("long answer", "no", "on"))]
    assert choice_accuracy(model, TOKENIZER, examples, 48, normalisation="mean") == 100
    assert choice_accuracy(model, TOKENIZER, examples, 48) == 0
    for first, second in (("no", "on"), ("on", "no")):
        tied = [Example("why", first, choices=(first, second))]
        assert choice_accuracy(model, TOKENIZER, tied, 48) == 100


def test_examples_without_choices_are_refused() -> None:
    for examples in ([], EXAMPLES, [*CHOSEN, EXAMPLES[0]]):
        with refusal("needs examples, and choices"):
            choice_accuracy(build("llama"), TOKENIZER, examples, 48)


def test_a_model_that_was_asked_about_choices_is_left_as_it_was() -> None:
    model = half_frozen("opt")
    before = flags(model)
    choice_accuracy(model, TOKENIZER, CHOSEN, 48)
    assert flags(model) == before


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_evaluation_is_the_scores_of_what_is_written(family: str) -> None:
    model = decided(family)
    room = 0 if two_sided(model) else 12  # a quarter of the window
    prompts = [encode_prompt(e, TOKENIZER, 48, two_sided(model), room) for e in CHOSEN[:3]]
    texts = generate(model, TOKENIZER, prompts, Decoding(16))
    lines = [text.split("\n")[0].strip() for text in texts]
    asked = [replace(e, references=(line, "x")) for e, line in zip(CHOSEN, lines, strict=False)]
    asked[1] = replace(asked[1], references=("x y",))
    asked += CHOSEN[3:]
    options: dict[str, Any] = {"max_length": 48, "generated": 3}
    scores = ("rouge", "exact", "choice")
    found = evaluate_answers(model, TOKENIZER, asked, scores, Decoding(16), **options)
    likelihood = choice_accuracy(model, TOKENIZER, CHOSEN, 48)
    assert found.pop("predictions") == lines
    assert found.pop("accuracy_likelihood") == likelihood
    assert found.pop("exact_match") == pytest.approx(200 / 3)
    assert found.pop("accuracy_generation") == pytest.approx(200 / 3)
    assert found.pop("f1") == token_f1(lines, [e.answers for e in asked[:3]])
    assert found.pop("grounded") == grounded(lines, [e.prompt for e in asked[:3]])
    assert found == rouge(lines, [e.answers for e in asked[:3]])


def test_an_evaluation_without_texts() -> None:
    model = decided("llama")
    options: dict[str, Any] = {"max_length": 48, "generated": 0}
    assert evaluate_answers(model, TOKENIZER, EXAMPLES, ("rouge", "exact"), **options) == {}
    found = evaluate_answers(model, TOKENIZER, CHOSEN, ("choice",), **options)
    assert list(found) == ["accuracy_likelihood"]


def test_an_answer_is_its_first_line_unless_a_right_one_has_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "generate", lambda *_: ["one \ntwo", "one\ntwo", "one\ntwo"])
    examples = [
        Example("a", "one\n"),
        Example("a", "one\ntwo"),
        Example("a", "one", references=("one", "one\ntwo")),
    ]
    found = evaluate_answers(
        decided("llama"), TOKENIZER, examples, ("exact",), max_length=48, batch_size=8
    )
    assert found["predictions"] == ["one", "one\ntwo", "one\ntwo"]
    assert found["exact_match"] == 100
