# Every command of the project. Nothing to activate: each target makes .venv first where it is missing.
# Needs Python 3.11, make and a C compiler.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup packages retrain test story check format lock clean distclean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages-done
STAMP := $(VENV)/.setup-done
# Added to the end of the command of `retrain`, `test` and `story`.
ARGS ?=

export UV_PYTHON_DOWNLOADS := never

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the packages of requirements.lock (every other target does it too)

packages: $(PACKAGES) ## only the packages, without this project (a layer of the container images)

$(PACKAGES): requirements.lock
	@test -n "$(PYTHON)" || { echo "no python3.11 found; set it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "$(PYTHON) is $$("$(PYTHON)" --version), Python 3.11 is needed: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	awk '/^[a-z0-9]/ { keep = /^uv==/ } keep' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements.lock
	touch $(PACKAGES)

$(STAMP): $(PACKAGES) pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(STAMP)

retrain: $(STAMP) ## the whole story: raw video in, trained and evaluated model out (ARGS="--sources PATH")
	$(BIN)/flashvideo retrain --recipe debug $(ARGS)

test: $(STAMP) ## every test, the whole story included
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

story: $(STAMP) ## the whole-story tests alone
	$(BIN)/python -m pytest -m story $(ARGS)

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## write the format and the lint's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP) ## pin anew what pyproject.toml asks for
	$(BIN)/uv pip compile pyproject.toml --quiet --group dev --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --output-file requirements.lock $(ARGS)

clean: ## remove caches and build leftovers; runs stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)
