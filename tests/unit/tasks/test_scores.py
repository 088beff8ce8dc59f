"""Scores of texts, by hand and against naive implementations written another way."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from nltk.stem.porter import PorterStemmer

from greentrainer.tasks.scores import accuracy, exact_match, grounded, normalised, rouge, token_f1
from tests.tiny import refusal

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


@pytest.mark.parametrize(
    ("said", "source", "share"),
    [
        ("The model was trained on 12,5 hours.", "Training models took 12,5 hours", 100),
        ("The model was trained on 13 hours.", "Training models took 12,5 hours", 75),
        ("a cat and dogs", "nothing of it", 0),
        ("", "anything", 100),
        ("it is so", "anything", 100),  # no content word
    ],
)
def test_what_is_said_is_looked_for_in_the_source(said: str, source: str, share: float) -> None:
    assert grounded([said], [source]) == pytest.approx(share)


def test_grounded_words_are_counted_over_all_texts() -> None:
    assert grounded(["four words said here", "lost"], ["four words said here", "found"]) == 80


def test_rouge_is_the_mean_over_pairs() -> None:
    means = [sum(column) / len(F1) for column in zip(*F1.values(), strict=True)]
    scores = rouge([p for p, _ in F1], [r for _, r in F1])
    assert list(scores) == ["rouge1", "rouge2", "rougeL"]
    assert list(scores.values()) == pytest.approx(means)


def test_of_several_references_the_best_counts_for_each_score() -> None:
    """One reference has the words, the other has fewer of them but a pair."""
    scores = rouge(["a b c d"], [["d c b a", "a b x y"]])
    assert list(scores.values()) == pytest.approx([100.0, 100 / 3, 50.0])


@pytest.mark.parametrize("score", [rouge, exact_match, token_f1, accuracy])
@pytest.mark.parametrize(("predictions", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_unlike_numbers_are_refused(
    score: Callable[..., object], predictions: list[str], references: list[str]
) -> None:
    with refusal(f"{len(predictions)} predictions for {len(references)} references"):
        score(predictions, references)


STORED: list[tuple[str, list[str]]] = [
    ("Barack Obama", ["Barack Hussein Obama", "Obama"]),
    ("the United States of America", ["United States", "U.S.A."]),
    ("The Jamaican dollar!", ["jamaican dollar"]),
    ("An apple a day keeps the doctors away.", ["apples keep a doctor away", "eat fruit"]),
    ("it was running quickly over the hills", ["the fox ran quickly over a hill; it was running"]),
    ("", ["nothing"]),
    ("the", ["a", "Padme"]),
    ("New  York\tCity", ["new york city"]),
    ("don't know, don't care", ["dont know"]),
    ("1889", ["1889.", "the year 1889"]),
    ("yes yes yes", ["yes", "yes yes"]),
    ("completely unrelated", ["something else", "entirely"]),
]
PREDICTIONS = [prediction for prediction, _ in STORED]
REFERENCES = [references for _, references in STORED]


def stems(text: str) -> list[str]:
    words = re.findall("[a-z0-9]+", text.lower())
    return [PorterStemmer().stem(word) if len(word) > 3 else word for word in words]


def harmonic(common: int, ours: int, theirs: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / ours, common / theirs
    return 2 * precision * recall / (precision + recall)


def overlap(ours: Sequence[object], theirs: Sequence[object]) -> float:
    """F1 of two bags, crossing out one after the other what is found in both."""
    left = list(theirs)
    for one in ours:
        if one in left:
            left.remove(one)
    return harmonic(len(theirs) - len(left), len(ours), len(theirs))


def longest_common(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def naive_rouge(prediction: str, reference: str) -> list[float]:
    a, b = stems(prediction), stems(reference)
    pairs = [list(pairwise(words)) for words in (a, b)]
    ordered = harmonic(longest_common(a, b), len(a), len(b))
    return [overlap(a, b), overlap(pairs[0], pairs[1]), ordered]


def test_rouge_is_that_of_a_naive_count() -> None:
    best = [
        [max(column) for column in zip(*(naive_rouge(p, r) for r in references), strict=True)]
        for p, references in STORED
    ]
    means = [100 * sum(column) / len(STORED) for column in zip(*best, strict=True)]
    assert list(rouge(PREDICTIONS, REFERENCES).values()) == pytest.approx(means)


def bare(text: str) -> list[str]:
    """SQuAD's words by regular expressions."""
    return re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]|_", "", text.lower())).split()


def test_exact_match_is_that_of_a_naive_count() -> None:
    hits = [any(bare(p) == bare(r) for r in references) for p, references in STORED]
    assert 2 < sum(hits) < len(hits) - 2
    assert exact_match(PREDICTIONS, REFERENCES) == pytest.approx(100 * sum(hits) / len(hits))


def test_token_f1_is_that_of_a_naive_count() -> None:
    best = [
        max(overlap(bare(p), bare(r)) if bare(p) or bare(r) else 1.0 for r in references)
        for p, references in STORED
    ]
    assert token_f1(PREDICTIONS, REFERENCES) == pytest.approx(100 * sum(best) / len(best))


def test_each_reference_is_as_good_as_any() -> None:
    for score in (exact_match, token_f1, accuracy):
        assert score(["Lima"], [["Cuzco", "Lima"]]) == 100
        assert score(["Lima", "Lima"], ["Lima", "Cuzco"]) == 50


def test_the_normal_form_drops_case_punctuation_articles_and_spaces() -> None:
    assert normalised(" The  U.S. and\nan Answer-key, the END ") == "us and answerkey end"
    assert normalised("another theatre") == "another theatre"


@pytest.mark.parametrize(
    ("prediction", "choice", "right"),
    [
        (" 1\n", "1", True),
        ("1.", "1", True),
        ("yes", "Yes", True),
        ("11", "1", False),
        ("a", "A", True),
        ("", "A", False),
        ("the", "A", False),
        ("+", "-", False),
        ("+ ", "+", True),
    ],
)
def test_a_choice_is_right_but_for_case_and_punctuation(
    prediction: str, choice: str, right: bool
) -> None:
    assert accuracy([prediction], [choice]) == 100 * right
