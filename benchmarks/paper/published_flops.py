"""The PFLOPs that the paper states: Huang et al., ICLR 2024 (arXiv 2309.13192).

They are multiply-accumulates (10^15) of 5 epochs of training with batches of 4, every row padded to
the same length.  `GT-0.5` there is green at rho 0.5 here.
"""

from typing import NamedTuple


class Key(NamedTuple):
    """A cell of a table; rho is None but for green."""

    model: str
    task: str
    method: str
    rho: float | None = None


_SUMMARIES: dict[str, dict[str | float, tuple[float, float]]] = {
    # method or rho: (SciTLDR, DialogSum)
    "opt-2.7b": {
        "full": (41.8, 262.0),
        "top-2": (29.0, 181.6),
        "prefix": (27.9, 174.7),
        "lora": (27.9, 174.7),
        0.36: (14.9, 92.9),
        0.4: (16.6, 103.4),
        0.5: (20.8, 130.1),
        0.6: (25.0, 156.6),
        0.7: (29.2, 182.7),
        0.8: (33.4, 209.6),
    },
    "bloomz-3b": {
        "full": (47.2, 294.8),
        "top-2": (36.5, 227.9),
        "prefix": (31.5, 196.5),
        "lora": (31.5, 196.5),
        0.5: (23.4, 146.4),
        0.7: (32.3, 204.7),
    },
    "flan-t5-3b": {
        "full": (21.7, 135.7),
        "top-2": (7.3, 46.1),
        "prefix": (8.0, 55.3),
        "lora": (14.4, 90.5),
        0.34: (7.5, 53.5),
        0.4: (10.0, 62.5),
        0.5: (12.4, 77.6),
    },
}

_OTHERS = {
    Key("opt-2.7b", "piqa", "lora"): 174.0,
    Key("opt-2.7b", "piqa", "green", 0.5): 130.5,
    Key("opt-2.7b", "webquestions", "lora"): 16.0,
    Key("opt-2.7b", "webquestions", "green", 0.5): 12.0,
    Key("opt-2.7b", "webquestions", "green", 0.6): 14.0,
    Key("opt-6.7b", "scitldr", "full"): 103.9,
    Key("opt-6.7b", "scitldr", "green", 0.7): 74.8,
}


def _key(model: str, task: str, label: str | float) -> Key:
    if isinstance(label, str):
        return Key(model, task, label)
    return Key(model, task, "green", label)


PUBLISHED: dict[Key, float] = {
    _key(model, task, label): figure
    for model, methods in _SUMMARIES.items()
    for label, figures in methods.items()
    for task, figure in zip(("scitldr", "dialogsum"), figures, strict=True)
} | _OTHERS
