"""Kept tensors: budget, worth, disk, and weights that change under them."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrainer.forward.store import Store
from greentrainer.forward.watch import STRETCH, Watch


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "disk" else None


def test_gives_back_what_was_put(folder: Path | None) -> None:
    store = Store(10**6, folder)
    tensors = {
        i: torch.randn(i + 1, 3).to(d) for i, d in enumerate([torch.float32, torch.bfloat16])
    }
    for key, tensor in tensors.items():
        assert store.put(key, tensor, 1.0)
    for key, tensor in tensors.items():
        assert torch.equal(store.get(key), tensor)
    store.close()


def test_a_kept_tensor_does_not_follow_its_origin(folder: Path | None) -> None:
    store, tensor = Store(10**6, folder), torch.ones(4)
    store.put("a", tensor, 1.0)
    tensor.zero_()
    assert store.get("a").sum() == 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 3)), max_size=40))
def test_never_over_budget_and_never_a_wrong_tensor(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int, int]]
) -> None:
    stores = [Store(80, None), Store(80, tmp_path_factory.mktemp("kept"))]
    for store in stores:
        last: dict[int, torch.Tensor] = {}
        for turn, (key, length, worth) in enumerate(puts):
            last[key] = torch.full((length,), float(turn))
            store.put(key, last[key], worth)
            assert store.bytes <= 80
            assert all(torch.equal(store.get(k), last[k]) for k in last if k in store)
        store.close()
    assert len(stores[0]) == len(stores[1])


def test_what_spares_more_a_byte_drives_out_what_spares_less(folder: Path | None) -> None:
    store = Store(32, folder)
    assert store.put("poor", torch.ones(8), 1.0)
    assert not store.put("poorer", torch.ones(8), 0.5)
    assert store.put("rich", torch.ones(8), 2.0)
    assert "poor" not in store
    assert "rich" in store


def test_nothing_is_left_in_the_folder_and_deleting_it_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first, second = Store(10**6, folder), Store(10**6, folder)
    first.put("a", torch.ones(4), 1.0)
    second.put("a", torch.zeros(4), 1.0)
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert first.get("a").sum() == 4
    assert second.get("a").sum() == 0
    assert first.put("b", torch.ones(2), 1.0)


def test_a_full_disk_ends_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(10**6, tmp_path)
    store.put("a", torch.ones(4), 1.0)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert not store.put("b", torch.ones(4), 1.0)
    assert not store.put("c", torch.ones(4), 1.0)
    assert store.get("a").sum() == 4
    assert "b" not in store


def test_a_folder_that_cannot_be_written_to_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot keep activations in .*; name another folder"):
        Store(10**6, tmp_path / "file" / "below")


@pytest.mark.parametrize("size", [0, 5, STRETCH, STRETCH + 7, 3 * STRETCH])
def test_unchanged_weights_stay_unsuspected(size: int) -> None:
    watch, weight = Watch(), torch.randn(size)
    assert watch.follow({"w": weight})
    assert all(watch.unchanged({"w": weight}) for _ in range(5))
    assert watch.follow({"w": weight})


def test_a_change_in_place_is_seen_at_once() -> None:
    watch, weight = Watch(), torch.nn.Parameter(torch.randn(3 * STRETCH))
    watch.follow({"w": weight})
    with torch.no_grad():
        weight[-1] += 1
    assert not watch.unchanged({"w": weight})
    assert watch.unchanged({"w": weight})  # of what it is now


def test_another_tensor_in_its_place_is_seen() -> None:
    watch, weight = Watch(), torch.nn.Parameter(torch.randn(8))
    watch.follow({"w": weight})
    weight.data = weight.data.clone()
    assert not watch.unchanged({"w": weight})


def test_a_parameter_in_the_place_of_another_is_seen() -> None:
    watch, weight = Watch(), torch.nn.Parameter(torch.randn(8))
    watch.follow({"w": weight})
    other = torch.nn.Parameter(weight.detach().clone())
    assert not watch.unchanged({"w": other})
    assert watch.unchanged({"w": other})
    assert not watch.follow({"w": weight})


def test_a_change_behind_the_version_is_seen() -> None:
    watch, weight = Watch(), torch.nn.Parameter(torch.randn(3 * STRETCH))
    watch.follow({"w": weight})
    weight.data.mul_(2)
    assert not watch.unchanged({"w": weight})


def test_a_small_change_behind_the_version_is_seen_at_the_next_selection() -> None:
    watch, weight = Watch(), torch.nn.Parameter(torch.randn(3 * STRETCH))
    watch.follow({"w": weight})
    weight.data[-1] += 1
    assert not watch.follow({"w": weight})
