.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## set up .venv from the pinned versions

demo: $(STAMP)  ## train, evaluate, export, serve and ask the classifier, on built-in data; no download
	$(BIN)/python -m apps._demo

check: $(STAMP)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check  ## check, then all tests
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

verify: $(STAMP)  ## measure every export on its whole test split and compare with its card; needs KERASDL_DATA_DIR
	$(BIN)/pytest tests/apps -k on_its_card --whole-splits

format: $(STAMP)  ## format and repair what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

serve: $(STAMP)  ## serve saved_models/ on port 8501
	$(BIN)/python -m kerasdl.serving saved_models

results: $(STAMP)  ## write the README's table from saved_models/ and benchmarks/results/
	$(BIN)/python -m benchmarks.readme

lock: $(STAMP)  ## write requirements.lock from what pyproject.toml allows today
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[serving,tuning,captioning,dev]'
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > requirements.lock

clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info

.PHONY: help install demo check test verify format serve results lock clean
