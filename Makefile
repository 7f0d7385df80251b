# `make demo` and `make test` are the whole set-up; both make `.venv` first, and are quick the second time.
#
# PYTHON=python3.12 chooses the interpreter (3.11 to 3.13). Which build of torch is installed, for CPU or CUDA, is
# decided by the package index that pip is set to; both run everything here.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

# Where `make builtin` keeps its data and its run; BUILTIN_FLAGS are further options of `t2im train`.
BUILTIN_DATA := data/emoji
BUILTIN_RUN := output/builtin
BUILTIN_FLAGS :=

.PHONY: help demo test builtin clean
.DELETE_ON_ERROR:

help: ## List what there is to make
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: .venv/installed ## Install, and draw four pictures with the built-in model
	$(BIN)/t2im generate "a red apple" --num-images 4 --seed 7 --output outputs/demo

test: .venv/installed-for-tests ## Install what the tests need, and run linters, type checker and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses auto --dist loadfile

builtin: .venv/installed-for-tests ## Train a new built-in model and put it into the package; goes on where it was stopped
	$(BIN)/t2im data emoji $(BUILTIN_DATA)
	$(BIN)/t2im train $(BUILTIN_DATA) --recipe emoji --vae train --text-encoder train \
		--output $(BUILTIN_RUN) --resume $(BUILTIN_FLAGS)
	$(BIN)/python tools/install_builtin.py $(BUILTIN_RUN)/model --attribution $(BUILTIN_DATA)/ATTRIBUTION.md

clean: ## Remove the environment and the tools' caches; pictures, data and runs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The files below are stamps: pip runs again only when what is to be installed has changed.
.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into .venv: some minutes the first time, for torch is large"
	@$(PIP_INSTALL) --editable .
	@touch $@

.venv/installed-for-tests: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into .venv: some minutes the first time, for torch is large"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch .venv/installed $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
