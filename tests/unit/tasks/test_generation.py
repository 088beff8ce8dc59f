"""Generation against plain loops: greedy and with beams, padded, and under PEFT's adapters."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from greentrainer.tasks.encode import encode_prompt
from greentrainer.tasks.generation import PAPER, Decoding, generate
from tests.conformance.families import VOCABULARY
from tests.decided import DECODERS, EXAMPLES, TWO_SIDED, decided, wrapped
from tests.tiny import EOS, characters, refusal

pytestmark = pytest.mark.filterwarnings(
    "ignore:.past_key_values. is deprecated:FutureWarning"  # PEFT's forward pass
)

TOKENIZER = characters()
STEPS = 12


def written(model: Any, tokenizer: Any, prompt: Sequence[int], penalty: float = 1.0) -> str:
    """Greedy decoding by a plain loop: the whole sequence anew for each token, no padding."""
    two_sided = model.config.is_encoder_decoder
    tokens = [model.config.decoder_start_token_id] if two_sided else list(prompt)
    new: list[int] = []
    while len(new) < STEPS and tokenizer.eos_token_id not in new:
        inputs = {"input_ids": torch.tensor([list(prompt) if two_sided else tokens])}
        if two_sided:
            inputs["decoder_input_ids"] = torch.tensor([tokens])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        for token in set(tokens) if penalty != 1 else ():
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        new.append(int(logits.argmax()))
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
    wishes |= {"length_penalty": 5.0, "early_stopping": True}
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
    with refusal("a prompt has no token"):
        generate(model, TOKENIZER, ["why", ""])


def prompts_for(model: Any, tokenizer: Any = TOKENIZER) -> list[tuple[int, ...]]:
    return [encode_prompt(e, tokenizer, 48, model.config.is_encoder_decoder) for e in EXAMPLES]


@pytest.mark.parametrize("adapter", ["lora", "prompt", "prefix"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mistral", "t5"])
def test_an_adapter_writes_what_its_forward_pass_says(family: str, adapter: str) -> None:
    model = wrapped(family, adapter)
    prompts = prompts_for(model)
    expected = [written(model, TOKENIZER, prompt) for prompt in prompts]
    assert len(set(expected)) > 2
    with model.disable_adapter():
        assert expected != [written(model, TOKENIZER, prompt) for prompt in prompts]
    for size in (1, 16):
        assert generate(model, TOKENIZER, prompts, Decoding(STEPS), size) == expected


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_without_a_padding_token_the_end_of_sequence_pads(family: str) -> None:
    """Also where a repetition penalty counts the tokens of the prompt, padding not among them."""
    model, tokenizer = decided(family), characters(pad_token=None)
    expected = [written(model, tokenizer, prompt, 2.5) for prompt in prompts_for(model)]
    assert expected != [written(model, tokenizer, prompt) for prompt in prompts_for(model)]
    decoding = Decoding(STEPS, repetition_penalty=2.5)
    assert generate(model, tokenizer, prompts_for(model), decoding) == expected


@pytest.mark.parametrize("adapter", [None, "prompt", "prefix"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_beams_of_a_batch_are_those_of_its_prompts_one_by_one(
    family: str, adapter: str | None
) -> None:
    model = wrapped(family, adapter) if adapter else decided(family)
    decoding = replace(PAPER, max_new_tokens=STEPS)
    alone = generate(model, TOKENIZER, prompts_for(model), decoding, 1)
    assert generate(model, TOKENIZER, prompts_for(model), decoding, 16) == alone
    assert len(set(alone)) > 2


def test_beams_and_penalty_each_change_what_is_written() -> None:
    model = decided("llama")
    decoding = replace(PAPER, max_new_tokens=STEPS)
    alone = generate(model, TOKENIZER, prompts_for(model), decoding)
    greedy = generate(model, TOKENIZER, prompts_for(model), replace(decoding, num_beams=1))
    free = generate(model, TOKENIZER, prompts_for(model), replace(decoding, repetition_penalty=1))
    assert greedy != alone != free


def soft(family: str) -> Any:
    """Less sure of itself, so that what is best first is not best in the end."""
    model = decided(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)
    return model


def likeliest_pair(model: Any, prompt: Sequence[int]) -> tuple[int, ...]:
    """Of all texts of two tokens, or of the end of sequence alone."""
    rows = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
    with torch.no_grad():
        log_p = model(input_ids=rows).logits.double().log_softmax(-1)
    first, second = log_p[0, -2], log_p[:, -1]
    totals = first[:, None] + second
    totals[EOS] = -math.inf
    best = divmod(int(totals.argmax()), VOCABULARY)
    return (EOS,) if first[EOS] > totals.max() else best


def test_as_many_beams_as_tokens_find_the_likeliest_text() -> None:
    model, prompts = soft("llama"), prompts_for(decided("llama"))
    best = [
        TOKENIZER.decode(likeliest_pair(model, prompt), skip_special_tokens=True).strip()
        for prompt in prompts
    ]
    decoding = Decoding(2, num_beams=VOCABULARY, length_penalty=0.0)
    assert generate(model, TOKENIZER, prompts, decoding) == best
    assert generate(model, TOKENIZER, prompts, Decoding(2)) != best


def test_the_papers_settings() -> None:
    assert Decoding(64, 4, 2.5, length_penalty=1.0) == PAPER


def test_a_models_own_wishes_do_not_move_its_beams() -> None:
    model, tokenizer = soft("llama"), characters(eos_token="*")  # which some beams write
    prompts, decoding = prompts_for(model, tokenizer), replace(PAPER, max_new_tokens=STEPS)
    expected = generate(model, tokenizer, prompts, decoding)
    assert generate(model, tokenizer, prompts, replace(decoding, length_penalty=-5)) != expected
    for wish in ({"early_stopping": True}, {"length_penalty": -5.0}, {"num_beams": 2}):
        model.generation_config.update(**wish)
        assert generate(model, tokenizer, prompts, decoding) == expected
