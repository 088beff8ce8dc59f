"""Many examples: little memory, several processes, and the same bits as few in one list."""

import hashlib
import json
import os
import signal
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from greentrainer.records import Spill, in_order, processes
from greentrainer.tasks import Encoded, Example, Message, expanded, load
from greentrainer.tasks import encoded as encode_many
from greentrainer.tasks.encode import AT_ONCE, encode_all
from greentrainer.tasks.holdout import apart, cut
from greentrainer.tasks.stored import Chained, Chosen, Stored, read_examples, write_examples
from tests.tiny import refusal
from tests.unit.tasks.test_formats import talking

CHAT = tuple(
    Message(role, f"{role} says {i}", i != 3, '{"name": "x"}' if i == 2 else "")
    for i, role in enumerate(("user", "assistant", "user", "assistant", "user", "assistant"))
)
KINDS = [
    Example("p", "c"),
    Example("p\u2028\n\u00e4\U0001f600", "c", "cue", ("c", "d"), where="a.jsonl, line 3"),
    Example("p", "1", choices=("0", "1"), ends=False),
    Example("said", CHAT[-1].content, messages=CHAT, tools='[{"name": "f"}]', either=True),
    Example("", "a text", text=True),
]


def some(count: int) -> list[Example]:
    """Of every kind that can be encoded together."""
    kinds = (KINDS[0], KINDS[1], KINDS[4], Example("said", "d", messages=CHAT[:4]))
    numbered = ((kinds[i % 4], i) for i in range(count))
    return [
        one if one.messages else Example(f"{one.prompt} {i}", one.completion, text=one.text)
        for one, i in numbered
    ]


def test_examples_on_the_disk_are_what_they_were(tmp_path: Path) -> None:
    stored = Stored(KINDS)
    assert stored == KINDS
    assert [one.where for one in stored] == [one.where for one in KINDS]
    assert stored[-1] == KINDS[-1]
    assert stored[1:4] == KINDS[1:4]
    stored.add(KINDS[2])  # after reading
    assert stored != KINDS
    assert list(stored) == [*KINDS, KINDS[2]]
    with pytest.raises(IndexError):
        stored[6]
    write_examples(KINDS, tmp_path / "kept")
    assert read_examples(tmp_path / "kept") == KINDS


def test_some_of_them_and_several_behind_one_another_are_as_lists_are() -> None:
    stored, listed = Stored(KINDS), list(KINDS)
    for base in (stored, listed):
        assert Chosen(base, [4, 0, 0]) == [KINDS[4], KINDS[0], KINDS[0]]
        both = Chained([base, [], Chosen(base, [2]), base[:2]])
        assert both == [*KINDS, KINDS[2], *KINDS[:2]]
        assert both[5] == KINDS[2]
        assert both[-1] == KINDS[1]
        assert both[4:7] == [KINDS[4], KINDS[2], KINDS[0]]


def plainly(examples: Sequence[Example], shares: dict[str, float], seed: int) -> Any:
    """`cut`, as its words say."""

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    prompts = sorted({one.key for one in examples}, key=rank)
    side: dict[str, str] = {}
    for later, (split, share) in reversed(list(enumerate(shares.items()))):
        count = min(max(1, round(share * len(prompts))), len(prompts) - len(side) - 1 - later)
        side |= dict.fromkeys(prompts[len(side) : len(side) + count], split)
    parts = {s: [e for e in examples if side.get(e.key, "train") == s] for s in ("train", *shares)}
    held = {one.key for split in shares for one in parts[split]}
    left = [one for one in parts["train"] if held.isdisjoint(one.keys)]
    return parts | {"train": left or parts["train"]}


@pytest.mark.parametrize("shares", [{"test": 0.1}, {"validation": 0.3, "test": 0.4}])
def test_what_is_held_out_is_what_the_words_say(shares: dict[str, float]) -> None:
    says = [(f"u{i % 31}", f"a{i}", f"v{i % 5}", f"b{i}") for i in range(40)]
    chats = [
        Example("", b, messages=(Message("user", u), Message("assistant", a),
                                 Message("user", v), Message("assistant", b)))
        for u, a, v, b in says
    ]  # fmt: skip
    examples = [*chats, *(Example(f"u{i % 29}", f"c{i}") for i in range(30))]
    left_out = 0
    for seed in range(5):
        expected = plainly(examples, shares, seed)
        left_out += len(examples) - sum(map(len, expected.values()))
        for given in (examples, Stored(examples)):
            assert dict(cut(given, shares, seed, "here")) == expected
        keys = {one.key for one in expected["test"]}
        without = [one for one in examples if keys.isdisjoint(one.keys)]
        assert apart(examples, expected["test"]) == without
    assert left_out


@pytest.mark.parametrize("count", [1, 3])
def test_several_processes_give_the_same_bits_in_the_same_order(count: int) -> None:
    examples, tokenizer = some(2 * AT_ONCE + 500), talking()
    learned = [one for example in examples for one in expanded(example, tokenizer)]
    right = encode_all(learned, tokenizer, 90)

    def expand(few: Sequence[Example]) -> list[Example]:
        return [one for example in few for one in expanded(example, tokenizer)]

    found = encode_many(Stored(examples), tokenizer, 90, False, expand, count)
    assert list(found) == right
    assert max(map(found.length, range(len(found)))) == 90
    again = encode_many(examples, tokenizer, 90, False, expand, count)
    assert list(again) == right


def test_an_error_in_another_process_names_its_row() -> None:
    rows = [Example("p", "c") for _ in range(3 * AT_ONCE)]
    rows[2 * AT_ONCE + 7] = Example("p", "c" * 500)
    rows[AT_ONCE + 5] = Example("p", "c" * 400)
    for count in (1, 2):
        with refusal(f"row {AT_ONCE + 6}: "):
            encode_many(rows, talking(), 50, count=count)


def killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_is_one_line() -> None:
    with refusal("a process that helped was killed"), in_order(killed, range(3), 2) as found:
        list(found)
    with in_order(abs, [-1, -2, -3], 2) as found:  # and the next ones work
        assert list(found) == [1, 2, 3]


def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert processes() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes() == 2


def test_no_room_for_them_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill()
    monkeypatch.setattr(spill, "file", open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with refusal("no room in", "TMPDIR"):
        spill.add(b"bytes")
    spill.file.close()


def test_a_row_takes_few_bytes_of_memory(tmp_path: Path) -> None:
    """Read, split and encoded: no example, token or line stays."""
    count, path = 6_000, tmp_path / "mine.jsonl"
    with path.open("w") as file:
        for i in range(count):
            row = {"prompt": f"a question, number {i} of many", "completion": f"answer {i}"}
            file.write(json.dumps(row) + "\n")
    tokenizer = talking()
    encode_many([Example("p", "c")], tokenizer, 90)
    tracemalloc.start()
    train = load(str(path)).examples("train")
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    rows = encode_many(train, tokenizer, 90, count=1)
    encoded, now = tracemalloc.get_traced_memory()[1], tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(rows) == len(train) == 0.9 * count
    assert read < 200 * count
    assert encoded - now < 3000 * AT_ONCE  # those in hand
    assert now < 80 * count
    assert isinstance(rows[0], Encoded)
