# Two commands matter: `make demo` runs the whole job on a synthetic catalog, `make test` runs the tests.
# Both make the environment first (.venv; Python >= 3.11 is all they need). Variables:
#   PYTHON=python3.12       the interpreter to build the environment with
#   GENREC_TORCH_CPU=...    index URL or folder with CPU wheels of torch, used where no GPU is found
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types bench clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install:  ## make the environment
	@$(PYTHON) .ci/install.py --venv $(VENV)

demo: install  ## synthetic catalog -> identifiers -> model -> recommendations, in minutes
	@$(BIN)/genrec demo --out runs/demo

# one thread each: two workers of two spinning threads on two cores would wait for each other
test: install  ## the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: install  ## only the slow tests (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not gpu and not vllm"

lint: install  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install  ## mypy --strict on genrec
	@$(BIN)/mypy

bench: install  ## list the benchmarks; NAME=x measures one, QUICK=1 the short form, JSON=file writes rows
	@$(BIN)/python benchmarks/run.py $(if $(NAME),--name $(NAME)) $(if $(QUICK),--quick) $(if $(JSON),--json $(JSON))

clean:  ## remove the environment and caches (runs stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
