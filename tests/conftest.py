"""One thread: tiny models gain nothing from more, and lose much on a busy machine.

`make test` leaves out what is marked `thorough`: long tests, and most families of the conformance
suites, of which some stand for all.  `make test-all` runs everything.
"""

import os
from typing import Any

import pytest
import torch

from greentrainer.cost import trace
from greentrainer.engine import foretelling

os.environ["GREENTRAINER_KEEP"] = "off"  # a model is traced wherever a test means it to be
torch.set_num_threads(1)

QUICK_FAMILIES = {"opt", "bloom", "llama", "t5"}
"""Those of the paper, with what most models of today are built like."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the other families of the suites that run over all of them."""
    for item in items:
        family = (
            item.callspec.params.get("family")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        if family is not None and family not in QUICK_FAMILIES and "integration" not in item.nodeid:
            item.add_marker(pytest.mark.thorough)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each pass that a `GraphCache` traces."""
    made: list[int] = []

    def noted(*args: Any) -> Any:
        made.append(1)
        return trace(*args)

    monkeypatch.setattr(foretelling, "trace", noted)
    return made
