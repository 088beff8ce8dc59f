"""The model card: a front matter that the Hub can read, whatever names there are."""

import json
from pathlib import Path

from huggingface_hub import ModelCard

from greentrainer.report import card
from greentrainer.report.record import read
from greentrainer.report.run import standing
from tests.folders import HOSTILE, folder, model


def written(path: Path) -> ModelCard:
    return ModelCard(card.write(path).read_text(encoding="utf-8"))


def test_a_card_says_what_it_is_made_of_and_what_it_cost(tmp_path: Path) -> None:
    bill = {"energy_kwh": 0.1, "co2_grams": 41.5, "energy_source": "RAPL: package"}
    path = model(folder(tmp_path / "run", model="smollm2-135m", task="scitldr", bill=bill))
    found = written(path)
    assert found.data.get("base_model") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found.data.get("license") == "apache-2.0"
    assert found.data.get("datasets") == ["allenai/scitldr"]
    assert found.data.get("pipeline_tag") == "text-generation"
    assert found.data.get("tags") == ["greentrainer"]
    assert found.data.get("co2_eq_emissions") == {
        "emissions": 41.5,
        "source": "RAPL: package",
        "training_type": "fine-tuning",
        "hardware_used": "cpu",
    }
    words = (
        "50.0% of full fine-tuning's FLOPs",
        "| held-out loss per token | 5.0000 | 4.0000 |",
        "| learning_rate | 0.0001 |",
        "| optimizer steps | 6 of 6 |",
        "| CO2 | 41.5 g (estimate) |",
    )
    assert [one for one in words if one not in found.text] == []


def test_of_a_mix_every_source_is_named(tmp_path: Path) -> None:
    mix = [{"path": "scitldr"}, {"path": "./mine.jsonl"}, {"path": "org/set"}]
    found = written(model(folder(tmp_path / "run", model="smollm2-135m", tasks=mix)))
    assert found.data.get("datasets") == ["allenai/scitldr", "org/set"]
    assert "fine-tuned on scitldr + mine.jsonl + org/set" in found.text


def test_nothing_is_invented(tmp_path: Path) -> None:
    path = model(folder(tmp_path / "run", "interrupted", steps=4), is_encoder_decoder=True)
    found = written(path)
    assert found.data.get("license") == "other"
    assert found.data.get("pipeline_tag") == "text2text-generation"
    for key in ("base_model", "base_model_relation", "datasets", "co2_eq_emissions"):
        assert found.data.get(key) is None
    assert "interrupted after 4 of 6 steps" in found.text
    assert "after" not in found.text.split("## Quality")[1].split("## How")[0]


def test_names_cannot_break_out(tmp_path: Path) -> None:
    evil = f"a: b\n- c\n---\n{HOSTILE}"
    path = model(folder(tmp_path / "run", evil=evil, license=f"mit: {evil}", bill={
        "co2_grams": 1.0, "energy_source": evil}))  # fmt: skip
    found = written(path)
    assert found.data.get("license") == f"mit: {evil}"
    assert (found.data.get("co2_eq_emissions") or {})["source"] == evil
    assert "<script" not in found.text
    assert "<b>" not in found.text
    assert found.text.count("\n# ") == 1


def test_a_folder_hands_on_its_card_and_not_its_path(tmp_path: Path) -> None:
    base, rows = tmp_path / "secret" / "base", tmp_path / "secret" / "mine.jsonl"
    base.mkdir(parents=True)
    rows.touch()
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: org/first\n---\nhello\n")
    found = written(model(folder(tmp_path / "run", model=str(base), task=str(rows))))
    assert (found.data.get("license"), found.data.get("base_model")) == ("mit", "org/first")
    assert "base, fine-tuned on mine.jsonl" in found.text
    assert "secret" not in found.content
    (base / "README.md").write_text("---\n: [\n---\n")
    assert written(tmp_path / "run").data.get("license") == "other"


def test_weights_out_of_a_quantised_file_are_told(tmp_path: Path) -> None:
    path = model(folder(tmp_path / "run", model="org/name:tiny.gguf"))
    state = json.loads((path / "run.json").read_text())
    state["weights"] = {"said": "weights out of tiny.gguf (Q8_0)", "license": "mit"}
    (path / "run.json").write_text(json.dumps(state))
    found = written(path)
    assert found.data.get("base_model") == "org/name"
    assert found.data.get("license") == "mit"
    assert "The model began with weights out of tiny.gguf (Q8_0)." in found.text
    assert "The model began with weights out of tiny.gguf (Q8_0)." in standing(read(path))


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    path = model(folder(tmp_path / "run", model="org/base", task="org/rows"))
    (path / "model" / "adapter_config.json").write_text(json.dumps({}))
    found = written(path)
    assert found.data.get("library_name") == "peft"
    assert found.data.get("base_model_relation") == "adapter"
    assert (found.data.get("base_model"), found.data.get("datasets")) == ("org/base", ["org/rows"])
