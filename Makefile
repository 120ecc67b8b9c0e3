# `make` lists the targets. Everything happens in .venv; only Python 3.11+ and make are needed beforehand.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DOCS_READY := .venv/docs-ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint check check-report docs bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (torch with its libraries is about 5 GB) ..."
	@# uv installs several times faster; without it pip does the same.
	@$(BIN)/python -m pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python -e '.[dev]' || \
		$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

demo: $(READY) ## teacher and student on scikit-learn's digits, a minute on two cores; ends with the report's path
	@$(BIN)/longtail train --recipe demo --overwrite

test: $(READY) ## all tests, on all cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not check"

lint: $(READY) ## ruff and mypy, as CI runs them
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: $(READY) $(DOCS_READY) ## slow checks: long runs, every command of README and docs
	@$(BIN)/python -m pytest -m check

$(DOCS_READY): $(READY)
	@echo "installing what builds the documentation ..."
	@$(BIN)/uv pip install -q --python $(BIN)/python -e '.[docs]' || $(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@

docs: $(DOCS_READY) ## the documentation, into site/; a warning or a broken link is an error
	@# Not --quiet, which hides warnings from --strict too.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html"
check-report: $(READY) ## the pages that runs write, opened in headless Chromium (apt-get install chromium)
	@$(BIN)/python -m pytest -m check -k in_browser

bench: $(READY) ## benchmarks; results as JSON in benchmarks/results
	@$(BIN)/python benchmarks/loss.py
	@$(BIN)/python benchmarks/scaling.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/augment.py
	@$(BIN)/python benchmarks/step.py
	@$(BIN)/python benchmarks/end_to_end.py
	@$(BIN)/python benchmarks/stream.py
	@$(BIN)/python benchmarks/classes.py
	@$(BIN)/python benchmarks/predict.py
	@$(BIN)/python benchmarks/embed.py
	@$(BIN)/python benchmarks/heads.py
	@$(BIN)/python benchmarks/busy.py
	@$(BIN)/python benchmarks/index.py
	@$(BIN)/python benchmarks/large_list.py
	@$(BIN)/python benchmarks/slow_storage.py
	@$(BIN)/python benchmarks/digits.py
	@$(BIN)/python benchmarks/prior_shift.py

clean: ## remove .venv and everything built
	@rm -rf .venv site build dist .mypy_cache .ruff_cache .pytest_cache
