"""What a run is told: one set of names for YAML files, flags and the saved `config.yaml`."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class RunConfig(BaseModel):
    """A fine-tuning run.

    task: `pydoc`, or the path of a JSONL file with `prompt` and `completion`.
    rho: share of full fine-tuning's FLOPs (method green).
    max_length: tokens of prompt and completion together; longer prompts are cut.
    train_limit, test_limit: examples used, all when None.
    selections: how often tensors are chosen, evenly spaced over the run.
    probe_batches: batches that importance is measured on at each selection.
    generate: test examples for which a completion is generated and scored by ROUGE.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "smollm2-135m"
    task: str = "pydoc"
    method: Literal["green", "full"] = "green"
    rho: Share = 0.5
    epochs: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Count = 4
    max_length: Annotated[int, Field(ge=8)] = 512
    seed: Annotated[int, Field(ge=0)] = 0
    output_dir: Path = Path("runs/green")
    train_limit: Count | None = None
    test_limit: Count | None = None
    selections: Count = 2
    probe_batches: Count = 2
    generate: Annotated[int, Field(ge=0)] = 32

    def save(self, path: Path) -> None:
        """Write the configuration as YAML."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json")), encoding="utf-8")


def read(path: Path | None, flags: dict[str, Any]) -> RunConfig:
    """The configuration in a YAML file, overridden by flags that were given (not None).

    Raises ValueError of one line for a file that is no YAML mapping, an unknown key (with the
    nearest known one) or a value that does not fit.
    """
    values = _read_yaml(path) if path else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    known = RunConfig.model_fields
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown key {name!r}{hint}")
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{name} is {first['input']!r}: {first['msg'].lower()}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"cannot read the configuration {path}: {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"the configuration {path} is no mapping of names to values")
    return values
