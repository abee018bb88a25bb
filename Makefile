# Proof of Cache. `make run` and `make test` need nothing before them but Python 3.11 or later.
.DEFAULT_GOAL := help
SHELL := /bin/sh
POCACHE_PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_INDEX ?=
ARGS ?=

.PHONY: help install run test soak chaos lint bench up clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  TORCH_INDEX=URL installs torch from that index first; ARGS=... is passed on to the command."

install: $(STAMP) ## make the virtual environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(POCACHE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; say which: make install POCACHE_PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(POCACHE_PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then \
		$(BIN)/python -m pip install --quiet --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' constraints.txt)"; \
	elif ! $(BIN)/python -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null 2>&1; then \
		echo "No GPU is seen here. Where pip finds no other build, torch's default on Linux is the CUDA build (2.7 GB)."; \
		echo "For the CPU build stop now and run: make install TORCH_INDEX=<the CPU index that pytorch.org's install page names>"; \
	fi
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,gateway,postgres,dev]'
	@touch $(STAMP)

run: $(STAMP) ## play the demo: a whole network here, with cheats among the workers
	$(BIN)/pocache demo $(ARGS)

up: $(STAMP) ## run a network here until Ctrl-C
	$(BIN)/pocache up $(ARGS)

test: $(STAMP) ## run the tests, on two cores; what fails is tried once more, and both are told
	$(BIN)/python -m pytest -n 2 --dist worksteal --reruns 1 -rR $(ARGS)

soak: $(STAMP) ## run the tests that take many minutes
	$(BIN)/python -m pytest -m soak $(ARGS)

chaos: $(STAMP) ## disturb whole networks for half an hour: 200 faults over 2,000 jobs, drawn from a seed
	PYTHONPATH=tests $(BIN)/python -m chaos --waves 42 $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m chaos --waves 12 --cluster --seed 2 $(ARGS)

lint: $(STAMP) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## run the benchmarks and print their tables
	PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
