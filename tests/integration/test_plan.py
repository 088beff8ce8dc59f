"""`greentrainer plan`, as its user types it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from typer.testing import CliRunner

from greentrainer.cli import app
from greentrainer.config import RunConfig
from greentrainer.cost.trace import trace
from greentrainer.hf.models import CACHE_VARIABLE, blank
from greentrainer.plan import Planner
from greentrainer.run import EpochOrder, load_task, training_examples
from greentrainer.tasks.encode import Collator, encode_all, pad_id
from tests.conformance.families import build
from tests.tiny import refusal, saved


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return saved(tmp_path / "model")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": "ab" * (3 + n % 5), "completion": "c" * (2 + n % 3)} for n in range(24)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def planned(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


@pytest.mark.parametrize("family", ["opt", "t5", "bloom", "gpt2"])
def test_a_plan_needs_a_configuration_alone(family: str, tmp_path: Path) -> None:
    network: Any = build(family)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(network.config.to_dict(), default=str))
    plan = planned(str(path), "--max-length", "32", "--batch-size", "2")
    assert plan["parameters"] == sum(p.numel() for p in network.parameters())
    assert plan["tensors"] == len(plan["profile"])
    rows = plan["rows"]
    for key in ("depth", "trained", "skipping_trained", "flops"):
        values = [row[key] for row in rows]
        assert values == sorted(values)
    assert rows[-1]["trained"] == 1
    assert rows[-1]["memory"]["gradients"] == rows[-1]["memory"]["weights"]
    for row in rows:
        assert row["skipping_trained"] >= row["trained"]
    assert all(row["seconds"] is None for row in rows)
    own = sum(row["t_dw"] for row in plan["profile"])
    assert 0 < own < plan["batch"]["backward_flops"]


def test_costs_are_those_of_the_run_s_batches(model: Path, rows: Path) -> None:
    """Summed over the batches of each epoch, each traced by itself."""
    config = RunConfig(model=str(model), task=str(rows), max_length=32, pad_multiple=4, epochs=2)
    planner = Planner(config)
    network, tokenizer = blank(planner.network), planner.tokenizer
    train, _ = training_examples(load_task(config, tokenizer), config)
    encoded = encode_all(train, tokenizer, 32, False)
    order = EpochOrder(encoded, config.batch_size, config.seed)
    collate = Collator(pad_id(tokenizer), 4, 32)
    batches = [collate([encoded[i] for i in group]) for group in order.groups()]
    assert len({batch["input_ids"].shape for batch in batches}) > 1
    whole = sum(trace(network, batch).full_flops for batch in batches)
    plan = planner.summary()
    assert plan["rows"][-1]["flops"] == plan["full_flops"] == 2 * whole
    assert plan["completions_only_rho"] < 1


@pytest.mark.thorough
def test_a_calibration_tells_time_and_is_kept(model: Path, rows: Path, tmp_path: Path) -> None:
    given = (str(model), "--task", str(rows), "--max-length", "32")
    page = tmp_path / "plan.html"
    first = planned(*given, "--calibrate", "--picture", str(page))
    assert first["clock"]["forward"] > 0
    row = first["rows"][-1]
    assert row["hours"] == pytest.approx(row["seconds"] * first["batches"] / 3600)
    assert row["co2_grams"] == pytest.approx(row["kwh"] * 480)
    assert [len(list((tmp_path / "cache" / "clocks").iterdir()))] == [1]
    again = planned(*given)
    assert again["clock"] == first["clock"]
    text = page.read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href)=.?http", text)
    grid = tmp_path / "grid.csv"
    now = time.time()
    grid.write_text(f"0,400\n{now + 3600},100\n{now + 7200},200\n")
    scheduled = planned(*given, "--set", f"carbon_schedule={grid}")
    grams = [start["co2_grams"]["1"] for start in scheduled["starts"]]
    assert [g / grams[0] for g in grams] == pytest.approx([1, 0.25, 0.5], rel=1e-3)
    shown = CliRunner().invoke(app, ["plan", *given])
    assert "s / batch" in shown.output


def test_hostile_names_are_shown_and_not_executed(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)</script>"
    folder.mkdir(parents=True)
    network: Any = build("opt")
    (folder / "config.json").write_text(json.dumps(network.config.to_dict(), default=str))
    page = tmp_path / "plan.html"
    planned(str(folder / "config.json"), "--max-length", "16", "--picture", str(page))
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    for text in ("{}", "no json", "[1]", '{"model_type": "martian"}'):
        path = tmp_path / "config.json"
        path.write_text(text)
        with refusal():
            Planner(RunConfig(model=str(path)), padded=True)
    path.write_text(json.dumps(tf.OPTConfig(num_hidden_layers=1).to_dict(), default=str))
    with refusal("no tokenizer"):
        Planner(RunConfig(model=str(path)))
    result = CliRunner().invoke(app, ["plan", str(path), "--picture", str(tmp_path / "x.png")])
    assert ".svg" in str(result.exception)


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_model_of_seven_billion_weights_takes_seconds(tmp_path: Path) -> None:
    """At most 15 s of processor time and 2 GB, imports included."""
    config = tf.OPTConfig(
        hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32,
        word_embed_proj_dim=4096,
    )  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict(), default=str))
    code = (
        "import sys, time; from pathlib import Path; from greentrainer.cli import app\n"
        "app(['plan', sys.argv[1], '--json'], standalone_mode=False)\n"
        "print(time.process_time(), Path('/proc/self/status').read_text(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["parameters"] == 6_658_473_984
    said = done.stderr.splitlines()
    seconds = next(float(line.split()[0]) for line in said if line.split()[1:2] == ["Name:"])
    kilobytes = next(int(line.split()[1]) for line in said if line.startswith("VmHWM"))
    assert seconds < 15
    assert kilobytes * 1024 < 2e9


def test_what_a_budget_could_be_spent_on_is_shown_before(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"please add {i} and {i}", "completion": f"{2 * i}"} for i in range(60)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    typed = ["plan", str(saved(tmp_path / "base")), "--task", str(rows), "--probe", "--rho", "0.45",
             "--max-length", "32", "--set", "pad_multiple=1"]  # fmt: skip
    assert app(typed, standalone_mode=False) in (0, None)
    said = capsys.readouterr().out
    assert "what rho 0.45 could be spent on" in said
    assert said.count("taken") == 1
    assert "all" in said
