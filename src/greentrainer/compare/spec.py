"""What a comparison is told, and the rows of its table.

    name: scitldr
    seeds: [0, 1, 2]
    run: {model: smollm2-135m, task: scitldr, train_limit: 128}     # as for `greentrainer train`
    methods:
      - {method: zero_shot}
      - {method: full, learning_rate: [5e-5, 1e-4, 2e-4]}           # the best one is found
      - {method: green, rho: [0.5, 0.7], learning_rate: [1e-4, 2e-4]}

A list of learning rates is tuned: each is tried with the first seed, and the one with the lowest
validation loss is run with all seeds.  Any other list makes a row for each of its values.
"""

import hashlib
import itertools
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from greentrainer.config import BUDGETS, RunConfig, over, read_mapping, validated

TUNED = "learning_rate"
PLACES = ("output_dir", "data_dir")
"""Where a run's files are: no part of what it is."""
OWN = {"seed": "seeds", "output_dir": "output_dir of the comparison"}
"""Keys of a run that the comparison sets, and what to give in their place."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Variant:
    """One row of the table: a run but for its learning rate and seed.

    rates: learning rates to tune over; empty where there is nothing to tune.
    follows: label of the row whose best learning rate is taken over, in place of tuning.
    """

    label: str
    config: RunConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    follows: str | None = None

    def trial(self, rate: float | None, seed: int) -> "Trial":
        """The run with this learning rate and seed."""
        changed = {"seed": seed} | ({} if rate is None else {TUNED: rate})
        return Trial(self.label, self.config.model_copy(update=changed))


@dataclass(frozen=True)
class Trial:
    """One run.

    key: the same for the same run, wherever its files are; defaults do not enter it, so that a
        release with more keys knows the run again.  The label does: renamed rows are run again.
    """

    label: str
    config: RunConfig
    key: str = field(init=False)

    def __post_init__(self) -> None:
        settings = self.config.model_dump(mode="json", exclude=set(PLACES), exclude_defaults=True)
        text = json.dumps([self.label, settings], sort_keys=True)
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest()[:12])

    @property
    def title(self) -> str:
        """For people."""
        trained = self.config.method != "zero_shot"
        rate = f", learning rate {self.config.learning_rate:g}" if trained else ""
        return f"{self.label}{rate}, seed {self.config.seed}"

    @property
    def file_name(self) -> str:
        """Of its record."""
        plain = string.ascii_letters + string.digits + ".-"
        words = "".join(c if c in plain else "_" for c in self.label)
        return f"{words[:60]}-{self.config.learning_rate:g}-{self.config.seed}-{self.key}.json"


class Entry(BaseModel):
    """One of `methods`: keys of a run, some of them lists.

    name: what the row is called, in place of the method's name and what is special about it.
    seeds: in place of the comparison's.
    tune: `each` row its own learning rate, or the `first` one's for all rows of this entry.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    seeds: Seeds | None = None
    tune: Literal["each", "first"] = "each"

    @property
    def keys(self) -> dict[str, Any]:
        """Keys of the run."""
        return dict(self.model_extra or {})


class Spec(BaseModel):
    """A comparison.

    run: keys that all runs share.  seeds: of each row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    methods: Annotated[tuple[Entry, ...], Field(min_length=1)]
    run: dict[str, Any] = Field(default_factory=dict)
    seeds: Seeds = (0, 1, 2)
    output_dir: Path | None = None
    note: str = ""

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.output_dir or Path("runs") / self.name

    def variants(self) -> list[Variant]:
        """The rows of the table.

        Raises ValueError for a key or value that no run can have, or two rows of one name.
        """
        found = [variant for entry in self.methods for variant in self._variants(entry)]
        labels = [variant.label for variant in found]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two rows are called {label!r}: give each a name")
        return found

    def _values(self, entry: Entry) -> dict[str, Any]:
        """Keys of a run as the comparison and the entry have them, some of them lists."""
        values = over(self.run, entry.keys)
        for name, instead in OWN.items():
            if name in values:
                raise ValueError(f"{name} is no key of a single run here: give {instead}")
        if "training" in values:
            values["training"] = self.run.get("training", {}) | entry.keys.get("training", {})
        return values | {"output_dir": str(self.folder / "work")}

    def _variants(self, entry: Entry) -> Iterator[Variant]:
        values = self._values(entry)
        rates = values.pop(TUNED, RunConfig.model_fields[TUNED].default)
        listed = [key for key, value in values.items() if isinstance(value, list)]
        for key, value in {TUNED: rates, **values}.items():
            if value == []:
                raise ValueError(f"{key} is an empty list: give it a value, or leave it out")
        first: str | None = None
        for combination in itertools.product(*(values[key] for key in listed)):
            chosen = dict(zip(listed, combination, strict=True))
            options = rates if isinstance(rates, list) else [rates]
            configs = [validated(RunConfig, values | chosen | {TUNED: rate}) for rate in options]
            label = _label(entry, configs[0], listed)
            follows = first if entry.tune == "first" else None
            first = first or label
            tried = tuple(dict.fromkeys(config.learning_rate for config in configs))
            seeds = tuple(dict.fromkeys(entry.seeds or self.seeds))
            trains = configs[0].method != "zero_shot"
            tuned = trains and follows is None
            if configs[0].patience and not configs[0].validation_limit:
                raise ValueError(
                    f"{label}: patience would stop by the test examples: set validation_limit"
                )
            if tuned and len(tried) > 1 and not configs[0].validation_limit:
                raise ValueError(
                    f"{label}: learning rates are chosen by the loss on held-back examples: set "
                    "validation_limit, or give one learning_rate"
                )
            yield Variant(
                label,
                configs[0],
                rates=tried if tuned else (),
                seeds=seeds if trains else seeds[:1],
                follows=follows,
            )


def _label(entry: Entry, config: RunConfig, listed: list[str]) -> str:
    """The method, and what sets this row apart."""
    base = entry.name or config.method
    special = [key for key in listed if key != "method" or entry.name is not None]
    if entry.name is None:
        shown = {"green": ("metric", "rho"), "full_at_budget": ("rho",), "lora": ("lora_targets",)}
        defaults = RunConfig.model_fields
        rho = ("rho",) if config.stop_early else ()
        for key in (*shown.get(config.method, ()), *rho):
            unusual = getattr(config, key) != defaults[key].default
            if key not in special and (key == "rho" or unusual):
                special.append(key)
    unit, amount = config.budget
    words = [
        f"{unit} {amount:g}" if key in BUDGETS else f"{key} {getattr(config, key)}"
        for key in dict.fromkeys(unit if key in BUDGETS else key for key in special)
    ]
    return ", ".join([base, *words])


def read(path: Path, changes: dict[str, Any]) -> Spec:
    """The comparison told in a YAML file; `changes` go over it, those of `run` key by key.

    Raises ValueError, in one line, for what is no such file.
    """
    values = read_mapping(path)
    run = values.get("run") or {}
    if not isinstance(run, dict):
        raise ValueError(f"run is {run!r}: give it a mapping of names to values")
    return validated(Spec, {**values, **changes, "run": run | changes.get("run", {})})
