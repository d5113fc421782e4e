# Everything works from a bare checkout with Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2

.PHONY: help run test test-all test-chains setup jupyter check format bench clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name words; do printf '  make %-11s %s\n' "$$name" "$$words"; done

run: $(READY) ## Start the lab, run every notebook, publish outputs/public/index.html
	@$(BIN)/runbook run --pages

test: $(READY) ## Run the whole test suite
	@$(BIN)/python scripts/run_tests.py $(PYTEST)

test-all: $(READY) ## The same with every slow matrix complete
	@RUNBOOK_COMPLETE=1 $(BIN)/python scripts/run_tests.py $(PYTEST)

test-chains: $(READY) ## Run every notebook on each other generation of the platform
	@RUNBOOK_COMPLETE=1 $(BIN)/python -m pytest -q -n0 tests/test_whole_flavours.py

setup: $(READY) ## Create .venv and install the pinned dependencies

$(READY): pyproject.toml scripts/setup_venv.py
	@$(PYTHON) scripts/setup_venv.py $(VENV)
	@touch $(READY)

jupyter: $(READY) ## Open JupyterLab on 00_overview with the lab up
	@$(BIN)/runbook lab up
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_overview.ipynb

check: $(READY) ## Format, lint, types, layers, tests, notebooks
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/codespell
	@$(MAKE) --no-print-directory test

format: $(READY) ## Format the code and strip the notebooks
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/nbstripout --keep-count notebooks/*.ipynb

bench: $(READY) ## Measure side by side with the peers and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks

clean: ## Stop the lab and remove what the commands above made
	@if [ -x $(BIN)/runbook ]; then $(BIN)/runbook lab down || true; fi
	@rm -rf $(VENV) .lab .bootstrap outputs/public outputs/lab
