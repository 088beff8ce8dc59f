"""Several sources as one task: weights, limits, and no prompt on two sides."""

from collections import Counter
from dataclasses import dataclass

import pytest

from greentrainer.tasks import Example, Mixed, Part


@dataclass(frozen=True)
class Given:
    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    scores: tuple[str, ...] = ("rouge",)

    def examples(self, split: str) -> list[Example]:
        if split == "validation":
            raise ValueError("none")
        return [Example(prompt, "c") for prompt in getattr(self, split)]

    def describe(self) -> str:
        return self.name


A = Given("a", tuple(f"a{i}" for i in range(10)), ("x",), ("rouge", "exact"))
B = Given("b", ("b0", "b1", "x", "a0"), ("y", "a1"))


def prompts(task: Mixed, split: str) -> list[str]:
    return [one.prompt for one in task.examples(split)]


def test_sources_follow_one_another_and_share_no_prompt_between_sides() -> None:
    task = Mixed((Part(A), Part(B)))
    assert prompts(task, "test") == ["x", "y", "a1"]
    assert set(prompts(task, "train")) == {*A.train, *B.train} - {"x", "a1"}
    assert task.name == "a+b"
    assert task.scores == ("rouge",)
    assert "left out, for another source tests on them: 2" in task.describe()


@pytest.mark.parametrize(("weight", "times"), [(2, {2: 9}), (0.5, {1: 4}), (1.5, {1: 5, 2: 4})])
def test_a_weight_is_how_often_examples_are_seen(weight: float, times: dict[int, int]) -> None:
    task = Mixed((Part(A, weight), Part(B)))
    seen = Counter(one for one in prompts(task, "train") if one in A.train[2:] or one == "a0")
    own = Counter(Mixed((Part(A, weight), Part(Given("t", (), ("a1",))))).examples("train"))
    assert Counter(own.values()) == times
    assert seen["a0"] >= 1  # the other source has it too


def test_a_limit_comes_before_the_weight_and_the_mix_is_the_same_each_time() -> None:
    task = Mixed((Part(A, 2, 3), Part(B, 1, 1)), seed=4)
    found = prompts(task, "train")
    assert len(found) == 7
    assert found == prompts(Mixed((Part(A, 2, 3), Part(B, 1, 1)), seed=4), "train")
    assert any(
        prompts(Mixed((Part(A, 2, 3), Part(B, 1, 1)), seed=seed), "train") != found
        for seed in range(5, 9)
    )
