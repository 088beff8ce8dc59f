"""Which Trainers and families hold with which versions: `python benchmarks tried [--end lowest]`.

Runs the conformance suite (half an hour on a core) and writes what passed to
`results/tried_newest.json`, or `tried_lowest.json` where it is run with the lowest versions that
are allowed: `.venv-lowest/bin/python benchmarks tried --end lowest` after `make test-lowest`.
Trainers are tried as they come, with LoRA, and resumed; `make test-all` tries more.  `--only WORDS`
is pytest's `-k`, and writes nothing.
"""

import argparse
import sys
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from shared.results import ROOT, check, write

FILES = (
    "tests/conformance/test_trainers.py", "tests/conformance/test_senses.py",
    "tests/conformance/test_cost.py", "tests/conformance/test_modes.py",
    "tests/conformance/test_split.py", "tests/conformance/test_forward.py",
    "tests/integration/test_quantised.py",
)  # fmt: skip
COLUMNS = {
    "test_the_books_say_what_is_executed": "{mode}",
    "test_a_run_that_was_cut_short_resumes_to_the_same_bits": "resumed",
    "test_predicted_flops_are_the_counted_ones": "costs",
    "test_every_set_costs_what_is_counted": "costs",
    "test_a_run_trains_the_selection_and_costs_what_the_ledger_says": "runs",
    "test_a_run_keeps_to_its_budget": "runs",
    "test_a_share_of_the_adapters_own_cost_is_spent_and_the_books_are_exact": "adapters",
    "test_adapters_are_selected_like_any_tensor": "adapters",
    "test_executed_flops_are_those_foretold": "positions",
    "test_losses_and_weights_are_those_of_the_whole_pass": "work left out",
}
"""What each test shows; of what, its parameters say."""
LEFT_OUT = ("accumulated", "bfloat16", "checkpointed", "compiled", "full_size")
"""Words in the names of long cases that are left to `make test-all`."""
PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "sentence-transformers", "bitsandbytes",
    "torchao",
)  # fmt: skip


class Outcomes:
    """A plugin of pytest: counts what passed and what failed, by what was tried."""

    def __init__(self) -> None:
        self.shown: dict[str, tuple[str, str, str]] = {}
        self.counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)

    def pytest_collection_finish(self, session: Any) -> None:
        """Note what each case shows."""
        for item in session.items:
            column = COLUMNS.get(item.originalname)
            if column is None or not hasattr(item, "callspec"):
                continue
            params = item.callspec.params
            what = params.get("name") or params.get("family") or params.get("settings")
            what = what or params["make"].__name__
            group = "trainers" if "name" in params else "families"
            group = "few bits" if "settings" in params else group
            self.shown[item.nodeid] = (group, str(what), column.format(**params))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count one case; a failure to set it up is one too."""
        if report.nodeid in self.shown and (report.when == "call" or report.failed):
            self.counts[self.shown[report.nodeid]][report.outcome] += 1

    def rows(self) -> list[dict[str, Any]]:
        """Of each thing and column, how many cases passed and failed."""
        return [
            {"group": group, "what": what, "column": column,
             "passed": count["passed"], "failed": count["failed"]}
            for (group, what, column), count in self.counts.items()
        ]  # fmt: skip


def versions() -> dict[str, str]:
    """Those installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run the suite, and write down what held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--end", choices=["newest", "lowest"], default="newest")
    parser.add_argument("--only", help="words, as for pytest -k; nothing is written")
    asked = parser.parse_args()
    outcomes = Outcomes()
    sys.path.insert(0, str(ROOT))
    words = ["-m", "", "--rootdir", str(ROOT), *(str(ROOT / name) for name in FILES)]
    out = " and ".join(f"not {word}" for word in LEFT_OUT)
    pytest.main([*words, "-k", asked.only or out], plugins=[outcomes])
    rows = outcomes.rows()
    if asked.only:
        print(*rows, sep="\n")
        return
    failed = sum(row["failed"] for row in rows)
    checks = [check("cases that failed", failed, 0)]
    write(f"tried_{asked.end}", rows, checks, versions=versions())


if __name__ == "__main__":
    main()
