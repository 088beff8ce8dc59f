"""Chats as tokens: labels on what the assistant says, and nothing else, under several templates."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrainer.tasks import Encoded, Example, Message
from greentrainer.tasks.conversation import chat
from greentrainer.tasks.encode import IGNORED, encode, encode_all, encode_prompt, pad_id
from greentrainer.tasks.segments import Segment, fitted
from tests.tiny import BOS, EOS, PAD, characters, refusal

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nyou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<sys>>\n' + messages[0].content + '\n<</sys>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}"
    "{% if m.role == 'user' %}<s>[inst] {{ (system if loop.first else '') + m.content.strip() }}"
    " [/inst]{% else %} {{ m.content.strip() }} </s>{% endif %}{% endfor %}"
)
BARE = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA2, "bare": BARE}
TURN_END = {"chatml": "<|im_end|>", "llama-2": " </s>", "bare": ""}
LAST_END = TURN_END | {"bare": "</s>"}


def speaking(template: str | None) -> Any:
    """A tokenizer that puts <s> before a text, with the tokens of ChatML and a template."""
    tokenizer = characters("<s>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {name: speaking(template) for name, template in TEMPLATES.items()}
TURNS = (
    ("system", "be short."),
    ("user", "who was first?"),
    ("assistant", "the first."),
    ("user", "and then?"),
    ("assistant", "the other one."),
)


def talk(*turns: tuple[str, str]) -> Example:
    return chat(tuple(Message(*turn) for turn in turns))


EXAMPLE = talk(*TURNS)
EVERY = pytest.mark.parametrize("name", TEMPLATES)


def labelled(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The text of each run of labelled tokens."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@EVERY
def test_labels_are_on_the_assistants_turns_and_their_ends(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    encoded = encode(EXAMPLE, tokenizer, 400)
    first, last = labelled(encoded, tokenizer)
    assert first.strip() == f"the first.{TURN_END[name]}"
    assert last.strip() == f"the other one.{LAST_END[name]}"
    both = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (IGNORED, token) for token, label in both)


@EVERY
def test_the_sequence_is_what_the_template_writes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    turns = [{"role": role, "content": content} for role, content in TURNS]
    text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
    written = tokenizer.decode(list(encode(EXAMPLE, tokenizer, 400).input_ids))
    assert written == text + ("</s>" if name == "bare" else "")
    asked = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(list(encode_prompt(EXAMPLE, tokenizer, 400))) == asked


@EVERY
def test_bos_comes_once_a_turn_at_most_and_only_from_the_template(name: str) -> None:
    count = {"chatml": 0, "llama-2": 2, "bare": 1}  # Llama 2 writes one before each user's turn
    assert encode(EXAMPLE, TOKENIZERS[name], 400).input_ids.count(BOS) == count[name]


@EVERY
def test_an_example_that_does_not_end_has_no_end(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    open_end = Example(EXAMPLE.prompt, EXAMPLE.completion, ends=False, messages=EXAMPLE.messages)
    assert labelled(encode(open_end, tokenizer, 400), tokenizer)[-1].strip() == "the other one."
    plain = encode(Example("p", "c", ends=False), characters(), 8)
    assert EOS not in plain.input_ids


CONTENT = st.text("abc .", min_size=1, max_size=15).filter(lambda text: text.strip())
CHATS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3).map(
    lambda pairs: talk(*(t for u, a in pairs for t in (("user", u), ("assistant", a))))
)


@settings(deadline=None)
@given(CHATS, st.sampled_from(sorted(TEMPLATES)), st.integers(10, 200))
def test_a_window_takes_the_oldest_content_and_never_what_is_learned(
    example: Example, name: str, window: int
) -> None:
    tokenizer = TOKENIZERS[name]
    whole = encode(example, tokenizer, 1000)
    try:
        encoded = encode(example, tokenizer, window, row=3)
    except ValueError as error:
        if not str(error).startswith("row 3: "):
            raise
        return
    assert encoded.length == min(window, whole.length)
    assert labelled(encoded, tokenizer) == labelled(whole, tokenizer)
    reserved = (
        len(labelled_ids := whole.labels)
        - max(i for i, label in enumerate(labelled_ids) if label == IGNORED)
        - 1
    )
    prompt = encode_prompt(example, tokenizer, window, reserved=reserved)
    assert prompt == encoded.input_ids[:-reserved]


SEGMENTS = st.lists(
    st.builds(
        lambda size, cuttable: Segment(tuple(range(size)), cuttable=cuttable),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_size=6,
)


@given(SEGMENTS, st.integers(0, 60))
def test_only_what_may_be_cut_is_cut_the_oldest_first(given_: list[Segment], room: int) -> None:
    kept, over = fitted(given_, room)
    losses = [len(a.ids) - len(b.ids) for a, b in zip(given_, kept, strict=True)]
    assert all(a.ids[: len(b.ids)] == b.ids for a, b in zip(given_, kept, strict=True))
    assert all(not loss or a.cuttable for a, loss in zip(given_, losses, strict=True))
    assert all(b.ids or not a.ids for a, b in zip(given_, kept, strict=True))  # one is left
    total = sum(len(segment.ids) for segment in given_)
    assert sum(losses) + over == max(0, total - room)
    losing = [i for i, loss in enumerate(losses) if loss]
    for i in range(losing[-1] if losing else 0):  # all but the youngest that gave have one left
        assert not given_[i].cuttable or len(kept[i].ids) <= 1
    assert not over or all(len(s.ids) <= 1 for s in kept if s.cuttable)


def test_a_chat_that_does_not_fit_is_named() -> None:
    with refusal("row 2: ", "tokens too long for a window of 40", "raise max_length"):
        encode_all([Example("p", "c"), EXAMPLE], TOKENIZERS["chatml"], 40)


def test_an_encoder_reads_the_chat_and_the_decoder_is_asked_for_the_last_turn() -> None:
    tokenizer = TOKENIZERS["bare"]
    encoded = encode(EXAMPLE, tokenizer, 400, is_encoder_decoder=True)
    assert encoded.input_ids == encode_prompt(EXAMPLE, tokenizer, 400)  # <s> is there already
    assert tokenizer.decode(list(encoded.labels)) == "<s>the other one.</s>"
    chatml = encode(EXAMPLE, TOKENIZERS["chatml"], 400, is_encoder_decoder=True)
    assert chatml.input_ids[0] == BOS


REFUSED = {
    "no chat template": (None, TURNS),
    "take turns": (LLAMA2, TURNS[2:]),
    "not write each of the 5 messages": (CHATML.replace("{{ m.content }}", "hello"), TURNS),
    "messages once (": (CHATML.replace("{{ m.content }}", "{{ m.content * 2 }}"), TURNS),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_template_cannot_write_is_refused(reason: str) -> None:
    template, turns = REFUSED[reason]
    with refusal("row 1: ", reason):
        encode_all([talk(*turns)], speaking(template), 400)


def test_a_tokenizer_without_padding_pads_with_its_end() -> None:
    assert pad_id(characters()) == PAD
    assert pad_id(characters(pad_token=None)) == EOS
    with refusal("no padding and no end-of-sequence"):
        pad_id(characters(pad_token=None, eos_token=None))
