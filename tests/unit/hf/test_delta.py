"""A delta holds what changed and nothing else, and fits its base alone."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from greentrainer.hf import load_delta, save_delta
from greentrainer.hf.delta import DELTA, fingerprint, tensors_of
from tests.conformance.families import FAMILIES, build


def changed_copy(family: str, names: int = 3) -> tuple[nn.Module, list[str]]:
    model = build(family)
    parameters = dict(model.named_parameters())
    chosen = list(parameters)[:: max(1, len(parameters) // names)]
    with torch.no_grad():
        for name in chosen:
            parameters[name].add_(torch.randn_like(parameters[name]))
    return model, chosen


@pytest.mark.parametrize("family", [f for f in FAMILIES if "checkpointed" not in f])
def test_base_and_delta_give_the_model_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model, chosen = changed_copy(family)
    written = save_delta(model, build(family), tmp_path)
    assert sorted(written.tensors) == sorted(chosen)
    rebuilt = build(family)
    assert sorted(load_delta(rebuilt, tmp_path)) == sorted(chosen)
    for (name, a), b in zip(model.state_dict().items(), rebuilt.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_only_what_changed_is_in_the_file(tmp_path: Path) -> None:
    model, chosen = changed_copy("llama")
    written = save_delta(model, build("llama"), tmp_path)
    with safe_open(written.path, framework="pt") as file:
        assert sorted(file.keys()) == sorted(chosen)
    assert written.bytes == (tmp_path / DELTA).stat().st_size
    assert 0 < written.share < 1


def test_odd_bits_count_as_what_they_are(tmp_path: Path) -> None:
    model, base = nn.Linear(3, 1), nn.Linear(3, 1)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[float("nan"), 0.0, 1.0]]))
        model.load_state_dict(base.state_dict())
    assert save_delta(model, base, tmp_path).tensors == ()
    with torch.no_grad():
        model.weight[0, 1] = -0.0
    assert save_delta(model, base, tmp_path).tensors == ("weight",)
    load_delta(base, tmp_path)
    assert torch.signbit(base.weight[0, 1])


def test_another_base_is_refused_and_left_alone(tmp_path: Path) -> None:
    model, _ = changed_copy("llama")
    save_delta(model, build("llama"), tmp_path)
    other, _ = changed_copy("llama", names=1)
    before = fingerprint(tensors_of(other))
    with pytest.raises(ValueError, match="another base model"):
        load_delta(other, tmp_path)
    assert fingerprint(tensors_of(other)) == before
    with pytest.raises(ValueError, match="another base model"):
        load_delta(model, tmp_path)  # nor twice
    with pytest.raises(ValueError, match="the base is another model"):
        save_delta(model, build("opt"), tmp_path)


def test_a_damaged_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the delta"):
        load_delta(build("llama"), tmp_path / "none")
    (tmp_path / DELTA).write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot read the delta"):
        load_delta(build("llama"), tmp_path)
