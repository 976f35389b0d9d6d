# make setup | test | faults | lint | demo | run     (see README.md)
#
# Everything else comes by itself: each target does the setup first, and the setup does nothing when it was done.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
PYTHON := $(VENV)/bin/python
PACKAGES := privsep protocol workers policy
SOURCES := $(shell find $(PACKAGES) -name '*.py')
PYTEST := $(PYTHON) -m pytest -q

.PHONY: help setup test test-long test-vm faults attack lint format demo deb run selinux clean

help:
	@echo 'make setup      tools, $(VENV) and the programs in $(VENV)/bin (root: installs what the system lacks)'
	@echo 'make test       every test but the long matrix and the virtual machine'
	@echo 'make test-long  the long matrix'
	@echo 'make test-vm    the tests that boot virtual machines, and a table of them (root; ARGS="--vm-image selinux freeze power")'
	@echo 'make faults     who dies when while file systems are frozen: the whole matrix, docs/fault-matrix.md (root)'
	@echo 'make attack     what a process that was taken over can do, tried from inside each (root)'
	@echo 'make selinux    the SELinux policy: built, linked with all of Debian, compared with what is declared'
	@echo 'make bench      speed and memory beside qemu-ga: table, JSON, docs/bench.svg (root)'
	@echo 'make lint       ruff, mypy --strict, the layers'
	@echo 'make demo       one minute that shows what the agent promises (root)'
	@echo 'make deb        build/*.deb, the Debian package (root: installs what the build lacks)'
	@echo 'make run        serve on a unix socket in a fresh folder'

setup: $(VENV)/.compiled

# What each step depends on, so that a second run has nothing to do.
$(VENV)/.libraries: pyproject.toml packaging/setup.sh
	@packaging/setup.sh tools
	@packaging/setup.sh venv $(VENV)
	@packaging/setup.sh readable $(VENV)
	@touch $@

$(VENV)/.programs: $(VENV)/.libraries packaging/launchers.py privsep/domains.py
	@$(PYTHON) packaging/launchers.py --prefix $(VENV)
	@touch $@

# What each process may ask of the kernel.
$(VENV)/.filters: $(VENV)/.libraries packaging/filters.py privsep/sandbox/rules.py privsep/sandbox/seccomp.py
	@$(PYTHON) packaging/filters.py --libexecdir $(VENV)/libexec/privsep-ga
	@touch $@

# The agent's processes never write a .pyc (a write can hang while file systems are frozen), so all are compiled here.
$(VENV)/.compiled: $(VENV)/.programs $(VENV)/.filters $(SOURCES)
	@$(PYTHON) -m compileall -q $(PACKAGES)
	@touch $@

test: setup
	@$(PYTEST) -m 'not vm and not slow' $(ARGS)

test-long: setup
	@$(PYTEST) -m 'slow and not vm' --timeout 1800 $(ARGS)

test-vm: setup
	@$(PYTHON) -m tests.vm.table $(ARGS)

faults: setup
	@$(PYTHON) -m tests.faults.matrix $(ARGS)

# What comes through from inside each process (root; in a private root).
attack: setup
	@$(PYTHON) -m tests.sandbox.attack $(ARGS)

# Compiles the module, links it with the whole of Debian's policy (fetched into build/, not installed) and checks what comes out.
selinux: setup
	@$(PYTHON) -B selinux/build.py

bench: setup
	@mkdir -p build
	@$(PYTHON) -m tests.bench --json build/bench.json --svg docs/bench.svg $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports --no-logo

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

demo: setup
	@$(PYTHON) -m demo.demo

deb:
	@packaging/deb.sh $(ARGS)

# -t: state files of a trial must not meet those of an installed agent.
run: setup
	@dir=$$(mktemp -d /tmp/privsep-ga.XXXXXX); trap 'rm -rf "$$dir"' EXIT; \
	echo "serving on $$dir/ga.sock (this machine is the guest; Ctrl-C ends it).  In another terminal:"; \
	echo "    $(CURDIR)/$(VENV)/bin/privsep-gactl call --socket $$dir/ga.sock guest-info"; \
	$(VENV)/bin/privsep-ga -m unix-listen -p "$$dir/ga.sock" -t "$$dir" $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
