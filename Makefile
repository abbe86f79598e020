# make up      a whole cluster on this machine, in the foreground (ARGS="--port 9500")
# make test    linters, types, import direction, tests
# make bench   figures and a picture under bench/out/
# make install only makes .venv; the others call it, and it is done once

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install up test lint bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt tools/install.sh
	@PYTHON="$(PYTHON)" tools/install.sh $(VENV) server,test

$(VENV)/.installed-bench: $(VENV)/.installed
	@PYTHON="$(PYTHON)" tools/install.sh $(VENV) server,test,bench -bench

up: install
	@$(BIN)/gfs up $(ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# pytest comes last and has the last word: its summary line ends the output.
test: lint
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

bench: $(VENV)/.installed-bench
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info bench/out .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
