"""What a comparison is told: from YAML to rows and runs, and every mistake in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.compare import read
from greentrainer.compare.spec import Spec, Trial, Variant
from greentrainer.config import RunConfig
from tests.tiny import refusal

WHOLE = """
name: two.rows-1
seeds: [4, 2]
run: {task: mine.jsonl, validation_limit: 8, rho: 0.6}
methods:
  - {method: zero_shot}
  - {method: full, learning_rate: [5e-5, 1.0e-4, 2e-4]}
  - {method: green, rho: [0.5, 0.7], tune: first, learning_rate: [1e-4, 2e-4], seeds: [0, 1, 2]}
  - {method: green, metric: random}
  - {method: lora, lora_targets: all-linear, learning_rate: 1e-3}
  - {name: wide, method: prompt, virtual_tokens: [4, 8]}
"""


def told(folder: Path, text: str, **changes: Any) -> Spec:
    path = folder / "spec.yaml"
    path.write_text(text)
    return read(path, changes)


def rows(folder: Path, methods: str, run: str = "{}") -> list[Variant]:
    return told(folder, f"name: a\nrun: {run}\nmethods: {methods}").variants()


def test_each_entry_makes_its_rows(tmp_path: Path) -> None:
    found = told(tmp_path, WHOLE).variants()
    assert [(v.label, v.rates, v.seeds, v.follows) for v in found] == [
        ("zero_shot", (), (4,), None),
        ("full", (5e-5, 1e-4, 2e-4), (4, 2), None),
        ("green, rho 0.5", (1e-4, 2e-4), (0, 1, 2), None),
        ("green, rho 0.7", (), (0, 1, 2), "green, rho 0.5"),
        ("green, metric random, rho 0.6", (1e-4,), (4, 2), None),
        ("lora, lora_targets all-linear", (1e-3,), (4, 2), None),
        ("wide, virtual_tokens 4", (1e-4,), (4, 2), None),
        ("wide, virtual_tokens 8", (1e-4,), (4, 2), None),
    ]
    assert [v.config.method for v in found[:3]] == ["zero_shot", "full", "green"]
    assert [v.config.rho for v in found[2:5]] == [0.5, 0.7, 0.6]
    assert all(v.config.task == "mine.jsonl" and v.config.validation_limit == 8 for v in found)
    assert found[4].config.metric == "random"
    assert [v.config.virtual_tokens for v in found[-2:]] == [4, 8]


def test_a_run_has_its_rate_and_seed_and_all_else_from_its_row(tmp_path: Path) -> None:
    row = told(tmp_path, WHOLE).variants()[1]
    trial = row.trial(2e-4, 7)
    changed = {"learning_rate": 2e-4, "seed": 7}
    assert trial.config == row.config.model_copy(update=changed)
    assert row.trial(None, 7).config.learning_rate == row.config.learning_rate == 5e-5
    assert trial.title == "full, learning rate 0.0002, seed 7"
    assert "learning rate" not in told(tmp_path, WHOLE).variants()[0].trial(None, 4).title


def test_several_methods_may_share_an_entry(tmp_path: Path) -> None:
    found = rows(tmp_path, "[{method: [full, bitfit, zero_shot], learning_rate: 1e-3}]")
    assert [(v.label, v.rates) for v in found] == [
        ("full", (1e-3,)), ("bitfit", (1e-3,)), ("zero_shot", ()),
    ]  # fmt: skip


def test_what_is_said_twice_is_done_once(tmp_path: Path) -> None:
    text = "name: a\nseeds: [1, 1, 0]\nmethods: [{method: full, learning_rate: [1.0e-4, 1e-4]}]"
    (row,) = told(tmp_path, text).variants()
    assert (row.rates, row.seeds) == ((1e-4,), (1, 0))


def test_flags_go_over_the_file_key_by_key(tmp_path: Path) -> None:
    run = {"task": "other.jsonl", "epochs": 2}
    spec = told(tmp_path, WHOLE, run=run, output_dir=tmp_path / "here")
    assert spec.run == {"task": "other.jsonl", "validation_limit": 8, "rho": 0.6, "epochs": 2}
    assert spec.folder == tmp_path / "here"
    assert told(tmp_path, WHOLE).folder == Path("runs") / "two.rows-1"
    assert run == {"task": "other.jsonl", "epochs": 2}


def test_a_key_is_of_the_run_not_of_where_it_is_written() -> None:
    def key(label: str = "full", **settings: Any) -> str:
        return Trial(label, RunConfig(**settings)).key

    assert key(output_dir=Path("a")) == key(output_dir=Path("b/c"))
    others = {
        key(), key("other"), key(seed=1), key(learning_rate=2e-4), key(rho=0.7),
        key(training={"optim": "sgd"}), key(task="mine.jsonl"),
    }  # fmt: skip
    assert len(others) == 7
    assert key() == Trial("full", RunConfig()).key == key(rho=0.5)


HOSTILE = ["../../etc/passwd", "a/b", "a\\b", "..", ".", "\0", "\n", "𝒜" * 300, "x" * 999, "", "C:"]


@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=80)))
def test_a_record_is_a_plain_file_whatever_its_row_is_called(label: str) -> None:
    trial = Trial(label, RunConfig())
    name = trial.file_name
    assert Path(name).name == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
    assert len(name.encode()) < 120
    assert name.endswith(f"-0-{trial.key}.json")
    assert name != Trial(f"{label}!", RunConfig()).file_name


MISTAKES = [
    ("nane: a\nmethods: [{method: full}]", "unknown key 'nane': did you mean 'name'?"),
    ("name: a\nmethods: [{metod: full}]", "unknown key 'metod': did you mean 'method'?"),
    ("name: a\nrun: {rhoo: 1}\nmethods: [{}]", "unknown key 'rhoo': did you mean 'rho'?"),
    ("name: a\n3: b\nmethods: [{}]", "unknown key 3"),
    ("name: a\nrun: 3\nmethods: [{}]", "run is 3: give it a mapping"),
    ("name: a\nrun: [rho]\nmethods: [{}]", "run is ['rho']: give it a mapping"),
    ("name: a\nmethods: full", "methods is 'full'"),
    ("name: a\nmethods: []", "methods is []"),
    ("name: a\nmethods: [full]", "methods.0 is 'full'"),
    ("name: a", "methods is"),
    ("methods: [{method: full}]", "name is"),
    ("name: ..\nmethods: [{method: full}]", "name is '..'"),
    ("name: a/b\nmethods: [{method: full}]", "name is 'a/b'"),
    ("name: a\nmethods: [{method: best}]", "method is 'best'"),
    ("name: a\nmethods: [{rho: [0.5, 2]}]", "rho is 2"),
    ("name: a\nmethods: [{rho: []}]", "rho is an empty list"),
    ("name: a\nmethods: [{learning_rate: []}]", "learning_rate is an empty list"),
    ("name: a\nmethods: [{learning_rate: [1e-4, fast]}]", "learning_rate is 'fast'"),
    ("name: a\nmethods: [{learning_rate: [1e-4, 2e-4]}]", "set validation_limit"),
    ("name: a\nmethods: [{seeds: []}]", "methods.0.seeds is []"),
    ("name: a\nseeds: [-1]\nmethods: [{}]", "seeds.0 is -1"),
    ("name: a\nmethods: [{seed: 3}]", "give seeds"),
    ("name: a\nmethods: [{tune: most}]", "methods.0.tune is 'most'"),
    ("name: a\nmethods: [{method: full}, {method: full}]", "two rows are called 'full'"),
    (
        "name: a\nmethods: [{method: green, rho: [0.5, 0.50]}]",
        "two rows are called 'green, rho 0.5",
    ),
    ("- a", "is no mapping of names to values"),
    ("", "is no mapping of names to values"),
    ("{a: [", "cannot read"),
    ("a: !!python/object:os.system x", "cannot read"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with refusal(message):
        told(tmp_path, text).variants()


def test_no_file_and_no_text_are_one_line_too(tmp_path: Path) -> None:
    with refusal("cannot read", "nowhere.yaml"):
        read(tmp_path / "nowhere.yaml", {})
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with refusal("cannot read", "binary.yaml"):
        read(tmp_path / "binary.yaml", {})


@pytest.mark.parametrize("name", ["scitldr", "webquestions"])
def test_the_specifications_that_come_with_it_are_good(name: str) -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "quality" / f"{name}.yaml"
    found = read(path, {}).variants()
    assert len(found) == len({row.label for row in found}) > 4
    assert yaml.safe_load(path.read_text())["name"] == name
