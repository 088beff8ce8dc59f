"""The published files themselves, where this machine has them."""

import os
from pathlib import Path

import pytest

from greentrainer.tasks import SPLITS, load

DATA = Path(os.environ.get("GREENTRAINER_DATA") or Path(__file__).parents[4] / "shared" / "data")
ROWS = {  # one abstract of SciTLDR's train is in its dev, too, and left out of train
    "scitldr": (1992 - 1, 619),
    "dialogsum": (450, 50),
    "webquestions": (2834, 189),
    "piqa": (1350, 150),
}
"""Rows of train and validation together, and of test."""

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no {DATA}: set GREENTRAINER_DATA to the published files' folder"
)


@needs_data
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_read_and_no_prompt_is_in_two_splits(name: str) -> None:
    task = load(name, data_dir=DATA / name)
    train, validation, test = (task.examples(split) for split in SPLITS)
    assert (len(train) + len(validation), len(test)) == ROWS[name]
    sides = [{example.prompt for example in side} for side in (train, validation, test)]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert all(example.completion.strip() for example in [*train, *validation, *test])


@needs_data
def test_both_labels_of_piqa_occur() -> None:
    completions = {e.completion for e in load("piqa", data_dir=DATA / "piqa").examples("train")}
    assert completions == {" 0", " 1"}
