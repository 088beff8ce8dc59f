"""How well texts answer: ROUGE, exact match, token F1 and accuracy, each x 100.  No torch here.

A reference may be several texts, all of them right: the best one counts, for each score by itself.
Every function raises ValueError for different numbers of predictions and references, or none.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

References = Sequence[str | Sequence[str]]
"""For each prediction the right text, or all the right texts."""

ROUGE = ("rouge1", "rouge2", "rougeL")

_ARTICLES = frozenset({"a", "an", "the"})
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2 and -L, with Porter stemming (Google's `rouge_score`)."""
    from rouge_score.rouge_scorer import RougeScorer  # half a second, with nltk

    pairs = _pairs(predictions, references)
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score_multi(answers, prediction) for prediction, answers in pairs]
    return {key: 100 * sum(s[key].fmeasure for s in scores) / len(scores) for key in ROUGE}


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Share of predictions that are a reference, after `normalised` (SQuAD's measure)."""
    return _mean_of_best(_equal, predictions, references)


def token_f1(predictions: Sequence[str], references: References) -> float:
    """Mean F1 of the words of prediction and reference, after `normalised` (SQuAD's measure)."""
    return _mean_of_best(_word_f1, predictions, references)


def accuracy(predictions: Sequence[str], references: References) -> float:
    """Share of predictions that are the right choice, but for case, punctuation and spaces.

    Articles stay, unlike in `exact_match`: the choice may be "A".
    """
    return _mean_of_best(_same_choice, predictions, references)


def grounded(predictions: Sequence[str], sources: Sequence[str]) -> float:
    """Share of the content words and numbers written that stand in what each was written from.

    Words of four letters and more, and numbers; without case, by their Porter stems.  100 where
    there is none.  A low share is invention, a high one no proof of the contrary.
    """
    found = total = 0
    for prediction, answers in _pairs(predictions, list(sources)):
        known = set(_content(answers[0]))
        said = _content(prediction)
        found, total = found + sum(word in known for word in said), total + len(said)
    return 100 * found / total if total else 100.0


def _content(text: str) -> list[str]:
    words = re.findall(r"[^\W\d_]{4,}|\d+(?:[.,]\d+)*", text.lower())
    return [_stemmer().stem(word) for word in words]


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def normalised(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no article, words joined by one space."""
    return " ".join(word for word in _words(text) if word not in _ARTICLES)


def _words(text: str) -> list[str]:
    return text.lower().translate(_WITHOUT_PUNCTUATION).split()


def _equal(prediction: str, answer: str) -> float:
    return float(normalised(prediction) == normalised(answer))


def _same_choice(prediction: str, answer: str) -> float:
    """Texts of nothing but punctuation, such as "+", are compared as they are."""
    ours, theirs = (" ".join(_words(text)) or text.strip() for text in (prediction, answer))
    return float(ours == theirs)


def _word_f1(prediction: str, answer: str) -> float:
    """2 common / (ours + theirs), repeated words as often as both have them."""
    ours, theirs = normalised(prediction).split(), normalised(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def _mean_of_best(
    score: Callable[[str, str], float], predictions: Sequence[str], references: References
) -> float:
    pairs = _pairs(predictions, references)
    best = [max(score(prediction, a) for a in answers) for prediction, answers in pairs]
    return 100 * sum(best) / len(best)


def _pairs(predictions: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    answers = [[given] if isinstance(given, str) else list(given) for given in references]
    return list(zip(predictions, answers, strict=True))
