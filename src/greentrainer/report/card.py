"""The model card of a run: `model/README.md`, drawn from the run's folder.

Its front matter is the Hub's (`huggingface_hub.ModelCardData`), also where names would be no YAML.
Paths are left out: a folder or a file is called by its last name.
"""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from greentrainer.records import write_text
from greentrainer.report import account
from greentrainer.report.record import RunRecord, read
from greentrainer.report.run import headline
from greentrainer.report.tables import markdown

SMOLLM2 = ModelCardData(base_model="HuggingFaceTB/SmolLM2-135M-Instruct", license="apache-2.0")
BUNDLED = {"smollm2-135m": SMOLLM2, "smollm2": SMOLLM2}
"""Models that are no hub id and have no card."""
DATASETS = {
    "scitldr": "allenai/scitldr",
    "dialogsum": "knkarthick/dialogsum",
    "piqa": "ybisk/piqa",
    "webquestions": "stanfordnlp/web_questions",
}
"""Hub ids of tasks."""
OTHER = "other"
"""The Hub's word for a licence that is none of its list."""
TRAINED_WITH = (
    "method", "rho", "metric", "epochs", "learning_rate", "weight_decay", "warmup", "batch_size",
    "accumulate", "max_length", "selections", "positions", "lora_rank", "bf16", "seed",
)  # fmt: skip
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def write(folder: Path) -> Path:
    """Write the card of the model that a run's folder holds; returns its path."""
    path = folder / "model" / "README.md"
    write_text(path, card(read(folder), folder / "model"))
    return path


def card(record: RunRecord, model: Path) -> str:
    """The card as Markdown with front matter.  model: the saved model's folder."""
    data = ModelCardData(**front_matter(record, model))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body(record)}"))


def front_matter(record: RunRecord, model: Path) -> dict[str, Any]:
    """What the Hub reads; keys of which nothing is known are left out."""
    config, base = record.config, base_card(record.config["model"])
    adapter = (model / "adapter_config.json").is_file()
    return {
        "base_model": base.base_model,
        "base_model_relation": ("adapter" if adapter else "finetune") if base.base_model else None,
        "datasets": [name for task in record.tasks if (name := dataset_of(task))] or None,
        "library_name": "peft" if adapter else "transformers",
        "license": config.get("license") or base.license or _packed_license(record) or OTHER,
        "pipeline_tag": None if adapter else _pipeline(model),
        "tags": ["greentrainer"],
        "co2_eq_emissions": emissions(record),
    }


def base_card(model: str) -> ModelCardData:
    """What is known of the model that training began with: licence, and its name on the Hub.

    Of a folder, what its own card says; its base is the nearest model that the Hub may know.
    """
    if model.lower() in BUNDLED:
        return BUNDLED[model.lower()]
    readme = Path(model).expanduser() / "README.md"
    if readme.is_file():
        try:
            found = ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        except (ValueError, yaml.YAMLError):  # a front matter that is none
            return ModelCardData()
        return ModelCardData(base_model=found.get("base_model"), license=found.get("license"))
    name = model.partition(":")[0] if model.lower().endswith(".gguf") else model
    known = _HUB_ID.fullmatch(name) and not Path(model).exists()
    return ModelCardData(base_model=name if known else None)


def dataset_of(task: str) -> str | None:
    """The task's data set on the Hub, None of one's own file or of docstrings."""
    known = _HUB_ID.fullmatch(task) and not Path(task).exists()
    return DATASETS.get(task, task if known else None)


def emissions(record: RunRecord) -> dict[str, Any] | None:
    """`co2_eq_emissions` in grams, None where the bill has none."""
    bill, hardware = record.metrics["bill"], record.state["provenance"]["hardware"]
    if bill.get("co2_grams") is None:
        return None
    return {
        "emissions": bill["co2_grams"],
        "source": bill.get("energy_source", "GreenTrainer"),
        "training_type": "fine-tuning",
        "hardware_used": hardware["gpu"] or hardware["cpu"],
    }


def _packed_license(record: RunRecord) -> str | None:
    """What the file says that the weights were read out of."""
    found = (record.state.get("weights") or {}).get("license")
    return found if isinstance(found, str) else None


def _pipeline(model: Path) -> str:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return "text2text-generation" if config.get("is_encoder_decoder") else "text-generation"


def body(record: RunRecord) -> str:
    """The card's text."""
    names = {"model": _name(record.config["model"]), "task": " + ".join(map(_name, record.tasks))}
    record = replace(record, config={**record.config, **names, "tasks": None})
    bill = account.account_of(record)
    quality_head, quality = account.quality_of(record.metrics)
    lines = [[line.what.strip(), line.spent, line.full, line.saved]
             for line in account.lines_of(bill)]  # fmt: skip
    parts = [
        f"# {_plain(names['model'])}, fine-tuned on {_plain(names['task'])}",
        _plain(headline(record, bill)),
        _broken_off(record.metrics["bill"]),
        _plain(f"The model began with {record.weights}.") if record.weights else "",
        "## What it cost",
        markdown(["", "spent", "full fine-tuning", "saved"], lines),
        " ".join(map(_plain, account.notes_of(bill))),
        "## Quality" if quality else "",
        markdown(quality_head, quality) if quality else "",
        "## How it was trained",
        "With GreenTrainer, which trains the tensors that are worth most within a stated share of "
        "full fine-tuning's FLOPs.",
        _settings(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _broken_off(bill: Mapping[str, Any]) -> str:
    if not bill["interrupted"]:
        return ""
    return f"Training was interrupted after {bill['steps']} of {bill['planned_steps']} steps."


def _settings(record: RunRecord) -> str:
    config: Mapping[str, Any] = record.config
    bill, data = record.metrics["bill"], record.state["data"]
    lines = [[key, str(config[key])] for key in TRAINED_WITH if config.get(key) is not None]
    lines += [
        ["training examples", str(data["train"])],
        ["optimizer steps", f"{bill['steps']} of {bill['planned_steps']}"],
        ["tensors trained at the end", f"{bill['tensors_trained_last']} of {bill['tensors']}"],
    ]
    return markdown(["", ""], lines)


def _name(text: str) -> str:
    """A hub id or a task as it is; the last name of a path."""
    local = Path(text).expanduser().exists() or not _HUB_ID.fullmatch(text)
    return Path(text).name if local else text


def _plain(text: str) -> str:
    """The text on one line, with nothing that Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
