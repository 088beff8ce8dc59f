"""The notebook runs from its first cell to its last, on a tiny model, and does what it says."""

import json
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from tests.tiny import characters

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "quickstart.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    """Those of a kind, in order."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def code() -> str:
    """All of its code, a cell after the other."""
    return "\n".join("".join(cell["source"]) for cell in cells("code"))


def test_it_is_committed_without_outputs() -> None:
    found = cells("code")
    assert found
    assert not any(cell["outputs"] or cell["execution_count"] for cell in found)
    assert NOTEBOOK.stat().st_size < 20_000
    for cell in found:
        compile("".join(cell["source"]), str(NOTEBOOK), "exec")


def tiny(folder: Path) -> Path:
    """A decoder with room for the rows, whose tokens are characters."""
    config = tf.LlamaConfig(
        vocab_size=len(string.printable), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=256, eos_token_id=1, pad_token_id=0,
        bos_token_id=3,
    )  # fmt: skip
    model: Any = tf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    characters().save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_it_runs_and_keeps_to_its_budget(tmp_path: Path) -> None:
    named = 'MODEL = "smollm2-135m"'
    assert code().startswith(named)
    text = code().replace(named, f"MODEL = {str(tiny(tmp_path / 'model'))!r}", 1)
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [share] = re.findall(r"spent (\d\.\d+)", done.stdout)
    assert 0.9 * 0.5 <= float(share) <= 0.5
    [(before, after)] = re.findall(r"token: (\d+\.\d+) before, (\d+\.\d+) after", done.stdout)
    assert float(after) < float(before)
