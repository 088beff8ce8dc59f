"""The ledger adds up, survives writing, and keeps probes apart from training."""

import json

from hypothesis import given
from hypothesis import strategies as st

from greentrainer.records import Entry, Ledger

entries = st.lists(
    st.builds(
        Entry,
        kind=st.sampled_from(["train", "probe", "select", "trace"]),
        forward_flops=st.integers(0, 10**15),
        backward_flops=st.integers(0, 10**15),
        full_flops=st.integers(0, 10**15),
        tokens=st.integers(0, 10**6),
    ),
    max_size=20,
)


@given(entries)
def test_totals_are_sums_over_the_entries(rows: list[Entry]) -> None:
    ledger = Ledger(rows)
    assert ledger.spent_flops == sum(e.flops for e in rows if e.kind != "select")
    assert ledger.probe_flops == sum(e.flops for e in rows if e.kind == "probe")
    assert ledger.full_flops == sum(e.full_flops for e in rows)
    assert ledger.batches == sum(e.kind == "train" for e in rows)
    assert ledger.saved_flops == ledger.full_flops - ledger.spent_flops


@given(entries)
def test_state_round_trips_through_json(rows: list[Entry]) -> None:
    again = Ledger([Entry("train", 1)])
    again.load_state_dict(json.loads(json.dumps(Ledger(rows).state_dict())))
    assert list(again) == rows
    assert again.summary() == Ledger(rows).summary()


def test_amending_changes_the_newest_training_batch_only() -> None:
    ledger = Ledger([Entry("train", 1), Entry("train", 2), Entry("probe", 4)])
    ledger.amend(backward_flops=8)
    assert [e.backward_flops for e in ledger] == [0, 8, 0]
    assert ledger.spent_flops == 15
