# make up      a whole cluster on this machine, in the foreground (ARGS="--port 9500")
# make test    for everybody, all the time: linters, types, and what needs only Python (SHARE=100: all seeds)
# .ci/run      for every change: make test SHARE=100, and one smoke test of each outside part
# make test-all  before a release, and each night: everything that is real, with a second try for what failed
# make smoke   one test of each outside part, where that part is there
# make test-kubernetes  tests with a real Kubernetes; the first time it builds one, in minutes
# make test-browser  tests with a real browser, and real containers; as root
# make test-podman  tests with real containers; as root, since it adds Debian's packages
# make test-python  pandas, pyarrow, dask, xarray, zarr, DuckDB and others over gfs://
# make test-s3    boto3, awscli, s3cmd, rclone, restic, minio, mc, obstore, delta-rs, Polars, DuckDB
# make test-deploy  units, the image, alarms and the dashboard, with systemd's and Prometheus' own programs
# make test-disks  tests with disks that fail: ext4 on loop devices, and FUSE; as root
# make test-mount  gfs mount with real tools, as root; needs what builds pyfuse3 (docs/mount.md)
# make soak    simulated clusters under faults on all cores, new ones for SECONDS=600
# make storm   real processes killed, stopped and damaged for SECONDS=600 (ARGS="--seed 17")
# make explore property tests with new examples, where `make test` has the same ones each time
# make audit   known security holes of what is installed; needs a network, so it is not in CI
# make mutants deliberate bugs, each of which the simulation must catch
# make coverage  lines and branches that the tests run, by package; make mutants-code needs it
# make mutants-code  small changes of the code, each of which a test must notice (ARGS="gfs/cli")
# make bench   figures and a picture under bench/out/
# make bench-peers  the same loads on SeaweedFS and, as root, MooseFS (ARGS="--quick": a minute)
# make bench-links  throughput beside the limit of slow links, up to 16 clients; as root (ARGS="--quick")
# make bench-growth  what each operation costs at 10^3, 10^5 and 10^7 files (ARGS="--files 1000")
# make console  the pages at / again, when `make install` could not build them
# make install only makes .venv and builds the console; the others call it, and it is done once

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SECONDS ?= 600
FIRST ?= $(shell date +%s)000

# Percent of the seeds, and of the examples of costly properties, and which of the seeds
# (tests/share.py).
SHARE ?= 10
TURN ?= 0

# As many processes as cores, each of which takes over from the other when it is through. A
# worker that died has a reason, which is not to be lost in what follows.
SPREAD := -n auto --dist worksteal --max-worker-restart=0
PYTEST := $(BIN)/python tests/runner.py

# Tests with a browser keep pictures of the pages, each at three widths.
export GFS_TEST_PICTURES ?= $(CURDIR)/build/pictures

# Without __pycache__ each process that a test starts compiles all of ours, and each of
# pytest's rewrites the assertions of every test, which is most of what collecting them takes.
unexport PYTHONDONTWRITEBYTECODE

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install up test smoke test-all test-kubernetes test-browser test-podman test-python test-deploy test-disks test-mount install-foreign install-s3 test-s3 install-mount console soak storm explore mutants coverage mutants-code lint audit bench bench-peers bench-links bench-growth clean

help:
	@sed -n 's/^# \(make .*\|\.ci.*\)/\1/p' Makefile

install: $(VENV)/.installed $(VENV)/.console

$(VENV)/.installed: pyproject.toml constraints.txt tools/install.sh
	@PYTHON="$(PYTHON)" tools/install.sh $(VENV) server,test

# Built again when its sources have changed. Without a network all but the pages works.
PAGES := tools/console.sh $(shell find console -name node_modules -prune -o -type f -print)

$(VENV)/.console: $(VENV)/.installed $(PAGES)
	@tools/console.sh $(VENV) || true
	@touch $@

console: $(VENV)/.installed
	@tools/console.sh $(VENV)
	@touch $(VENV)/.console

$(VENV)/.installed-bench: $(VENV)/.installed
	@PYTHON="$(PYTHON)" tools/install.sh $(VENV) server,test,bench -bench

install-foreign: $(VENV)/.installed-foreign

$(VENV)/.installed-foreign: $(VENV)/.installed
	@PYTHON="$(PYTHON)" tools/install.sh $(VENV) server,test,foreign -foreign

install-mount: $(VENV)/.installed-mount

$(VENV)/.installed-mount: $(VENV)/.installed
	@PYTHON="$(PYTHON)" tools/install.sh $(VENV) server,test,mount -mount

install-s3: .venv-s3/.installed

# An environment without the project: its clients want other versions of what we use.
.venv-s3/.installed: $(VENV)/.installed tests/s3/clients.txt
	@$(BIN)/python -m venv .venv-s3
	@.venv-s3/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r tests/s3/clients.txt
	@touch $@

up: install
	@[ -e control/console/built/index.html ] || \
		echo "The console is not built; make console says why. Everything else works."
	@$(BIN)/gfs up $(ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@tools/console.sh $(VENV) types

# pytest comes last and has the last word: its summary line ends the output.
test: lint
	@GFS_TEST_SHARE=$(SHARE) GFS_TEST_TURN=$(TURN) $(PYTEST) $(SPREAD) -m "thin or not real" \
		tests/unit tests/simulation tests/cluster tests/control $(ARGS)

# One of each outside part: podman, an API server, a browser, a disk that fails, a client of S3,
# PostgreSQL, etcd, tables over gfs://. Of the files that have one alone: to collect all takes
# longer than to run them.
smoke: install
	@$(PYTEST) -m smoke $(shell grep -rl --include='test_*.py' 'mark\.smoke' tests) $(ARGS)

# What is not there is skipped, or fails with GFS_TEST_REQUIRE=1: packages of Python are added here,
# the rest by the next seven.
test-all: install-foreign install-s3
	@GFS_TEST_SHARE=$(SHARE) $(PYTEST) $(SPREAD) -m "real and not thin" tests $(ARGS)

test-kubernetes: install
	@$(BIN)/python tests/kubernetes/binaries.py --install
	@$(BIN)/python tests/kubernetes/policies.py || true
	@GFS_TEST_REQUIRE=1 $(PYTEST) $(SPREAD) tests/kubernetes $(ARGS)

test-browser: install
	@$(BIN)/python tests/podman/podman_image.py --install
	@$(BIN)/python tests/browser/browser_files.py --install
	@GFS_TEST_REQUIRE=1 $(PYTEST) tests/browser $(ARGS)

test-podman: install
	@$(BIN)/python tests/podman/podman_image.py --install
	@GFS_TEST_REQUIRE=1 $(PYTEST) $(SPREAD) tests/podman $(ARGS)

test-python: install-foreign
	@GFS_TEST_REQUIRE=1 $(PYTEST) tests/python $(ARGS)

test-s3: install-s3
	@GFS_TEST_REQUIRE=1 $(PYTEST) tests/s3 $(ARGS)

test-deploy: install
	@GFS_TEST_REQUIRE=1 $(PYTEST) tests/deploy $(ARGS)

test-disks: install
	@GFS_TEST_REQUIRE=1 $(PYTEST) $(SPREAD) tests/disks $(ARGS)

test-mount: install-mount
	@GFS_TEST_REQUIRE=1 $(PYTEST) tests/mount $(ARGS)

soak: install
	@$(BIN)/python -m tests.simulation --time $(SECONDS) --first $(FIRST) --keep-going $(ARGS)

storm: install
	@$(BIN)/python -m tests.storm --seconds $(SECONDS) $(ARGS)

explore: install
	@PYTHONHASHSEED=random $(PYTEST) $(SPREAD) --hypothesis-profile=default -m hypothesis $(ARGS)

audit: install
	@PYTHON="$(PYTHON)" tools/audit.sh $(VENV) $(ARGS)

mutants: install
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

coverage: install
	@$(BIN)/python -m tests.mutation.covering $(ARGS)

mutants-code: install
	@$(BIN)/python -m tests.mutation $(ARGS)

bench: $(VENV)/.installed-bench
	@$(BIN)/python -m bench $(ARGS)

# What is missing is said, with the command that adds it, and left out.
bench-peers: $(VENV)/.installed-bench
	@$(BIN)/python -m bench.peers $(ARGS)

bench-links: $(VENV)/.installed-bench
	@$(BIN)/python -m bench.links $(ARGS)

bench-growth: install
	@$(BIN)/python -m bench.growth $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info console/node_modules control/console/built bench/out .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache .measured
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
