"""PIQA (Bisk et al., 2020): a goal and two solutions in, which of them is right out."""

from greentrainer.tasks.base import Example
from greentrainer.tasks.published import Dataset, Form
from greentrainer.tasks.row import Row


def example(row: Row, form: Form) -> Example | None:
    """Choices are 0 and 1; None for a row without a label (the hub's test split has -1).

    The paper's format is `goal:{goal}</s>sol1:{sol1}</s>sol2:{sol2}</s>label:{label}</s>`.
    """
    label = str(row.values.get("label", "-1")).strip()
    goal, one, other = (row.text(key) for key in ("goal", "sol1", "sol2"))
    if label == "-1":
        return None
    if label not in ("0", "1"):
        raise ValueError(f"{row.where}: the label is {label!r}, neither 0 nor 1")
    if form.name == "paper":
        prompt = form.eos.join((f"goal:{goal}", f"sol1:{one}", f"sol2:{other}"))
        return Example(prompt, label, f"{form.eos}label:", choices=("0", "1"))
    prompt = f"Goal: {goal}\nSolution 0: {one}\nSolution 1: {other}"
    if form.name == "source":
        return Example(prompt, label, choices=("0", "1"))
    cue = "\nThe better solution is number"
    return Example(prompt, f" {label}", cue, choices=(" 0", " 1"))


PIQA = Dataset("piqa", "ybisk/piqa", ("choice", "exact"), example)
