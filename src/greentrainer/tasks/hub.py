"""Data sets of the Hugging Face hub, through the `datasets` library; no code of theirs is run."""

from typing import Any

from greentrainer.tasks.row import Numbered

_CONVERTED = "refs/convert/parquet"
"""Branch where the hub keeps Parquet copies of data sets that come with a loading script."""


def hub_rows(hub: str, config: str | None, hint: str) -> dict[str, Numbered]:
    """The rows of each split of a data set, by the split's name.

    hint: what to do instead, for the error.  Raises ValueError, in one line that ends with it, if
    `datasets` is not installed or the data set cannot be had.
    """
    name = hub if config is None else f"{hub} ({config})"
    try:
        found = _loaded(hub, config)
    except ImportError as error:
        raise ValueError(f"{name} needs the package datasets: install it, or {hint}") from error
    except Exception as error:  # the client, its HTTP library and the file readers raise their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"cannot load {name} from the hub ({reason}): {hint}") from error
    return {split: Numbered(rows, f"{name}, {split}") for split, rows in found.items()}


def _loaded(hub: str, config: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(hub, config)
    except RuntimeError:  # a data set with a script: its converted copy needs none
        return datasets.load_dataset(hub, config, revision=_CONVERTED)
