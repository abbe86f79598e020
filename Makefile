# make up      a whole cluster on this machine, in the foreground (ARGS="--port 9500")
# make test    linters, types, import direction, and all tests that need only Python (SHARE=100: all seeds)
# make test-all  the tests that need root, containers, an API server, a browser or another program
# make test-kubernetes  tests with a real Kubernetes; the first time it builds one, in minutes
# make test-browser  tests with a real browser, and real containers; as root
# make test-podman  tests with real containers; as root, since it adds Debian's packages
# make test-deploy  units, alarms and the dashboard, with systemd's and Prometheus' own programs
# make test-disks  tests with disks that fail: ext4 on loop devices, and FUSE; as root
# make soak    simulated clusters under faults on all cores, new ones for SECONDS=600
# make storm   real processes killed, stopped and damaged for SECONDS=600 (ARGS="--seed 17")
# make explore property tests with new examples, where `make test` has the same ones each time
# make audit   known security holes of what is installed; needs a network, so it is not in CI
# make mutants deliberate bugs, each of which the simulation must catch
# make mutants-code  small changes of the code, each of which a test must notice (ARGS="gfs/cli")
# make bench   figures and a picture under bench/out/
# make install only makes .venv; the others call it, and it is done once

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SECONDS ?= 600
FIRST ?= $(shell date +%s)000

# Percent of the seeds, and of the examples of costly properties (tests/share.py).
SHARE ?= 25

# Twice as many processes as cores, since many tests wait. Files in the order of
# tests/conftest.py: by the number of their tests, which is the default, the slowest come last.
SPREAD := -n auto --dist loadfile --no-loadscope-reorder

# Without __pycache__ each process that a test starts compiles all of ours, and each of
# pytest's rewrites the assertions of every test, which is most of what collecting them takes.
unexport PYTHONDONTWRITEBYTECODE

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install up test test-all test-kubernetes test-browser test-podman test-deploy test-disks soak storm explore mutants mutants-code lint audit bench clean

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
	@GFS_TEST_SHARE=$(SHARE) $(BIN)/python -m pytest $(SPREAD) -m "not extra" \
		tests/unit tests/simulation tests/cluster tests/control $(ARGS)

# What is not there is skipped, or fails with GFS_TEST_REQUIRE=1: the next five add it.
test-all: install
	@$(BIN)/python -m pytest $(SPREAD) -m extra tests $(ARGS)

test-kubernetes: install
	@$(BIN)/python tests/kubernetes/binaries.py --install
	@$(BIN)/python tests/kubernetes/policies.py || true
	@GFS_TEST_REQUIRE=1 $(BIN)/python -m pytest $(SPREAD) tests/kubernetes $(ARGS)

test-browser: install
	@$(BIN)/python tests/podman/podman_image.py --install
	@$(BIN)/python tests/browser/browser_files.py --install
	@GFS_TEST_REQUIRE=1 $(BIN)/python -m pytest tests/browser $(ARGS)

test-podman: install
	@$(BIN)/python tests/podman/podman_image.py --install
	@GFS_TEST_REQUIRE=1 $(BIN)/python -m pytest $(SPREAD) tests/podman $(ARGS)

test-deploy: install
	@GFS_TEST_REQUIRE=1 $(BIN)/python -m pytest tests/deploy $(ARGS)

test-disks: install
	@GFS_TEST_REQUIRE=1 $(BIN)/python -m pytest $(SPREAD) tests/disks $(ARGS)

soak: install
	@$(BIN)/python -m tests.simulation --time $(SECONDS) --first $(FIRST) --keep-going $(ARGS)

storm: install
	@$(BIN)/python -m tests.storm --seconds $(SECONDS) $(ARGS)

explore: install
	@$(BIN)/python -m pytest $(SPREAD) --hypothesis-profile=default -m hypothesis $(ARGS)

audit: install
	@PYTHON="$(PYTHON)" tools/audit.sh $(VENV) $(ARGS)

mutants: install
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

mutants-code: install
	@$(BIN)/python -m tests.mutation $(ARGS)

bench: $(VENV)/.installed-bench
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info bench/out .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
