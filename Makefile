# `make quickstart` and `make test` are the two commands of README.md; both make .venv first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help venv quickstart quickstart-full test lint format clean

# The first of these that is Python 3.11 or 3.12; `make PYTHON=/path/to/python` chooses another.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip
PIP_INSTALL := $(PIP) install --no-input --disable-pip-version-check \
	--constraint requirements/constraints.txt --build-constraint requirements/constraints.txt

# One thread a process that sleeps when it waits: spinning OpenMP threads on busy cores slow
# training down many times.
OMP_NUM_THREADS ?= 1
OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS OMP_WAIT_POLICY

help:
	@echo 'make quickstart       search, train and compare a family of networks on real images'
	@echo 'make quickstart-full  the same with every network of the family trained'
	@echo 'make test             run the tests'
	@echo 'make lint             check style; make format mends what it can'
	@echo 'make venv             only make .venv and install the pinned requirements into it'
	@echo 'make clean            remove .venv and caches, keep work_dirs/'
	@echo 'ARGS="..." hands arguments to the quickstart or to pytest.'

venv: $(STAMP)

# The stamp is written last, so that an interrupted installation starts again, from nothing.
$(STAMP): requirements/runtime.txt requirements/tests.txt requirements/constraints.txt setup.py
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' || { \
		echo 'mmscale needs Python 3.11 or 3.12, found: $(or $(PYTHON),none of the two).' \
			'Choose one: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(VENV)
	$(PIP) install --no-input --disable-pip-version-check --quiet \
		--constraint requirements/constraints.txt pip
	$(PIP_INSTALL) -r requirements/runtime.txt -r requirements/tests.txt
# mmcv asks for opencv-python, which needs libGL; the headless build is the same module without.
	$(PIP) uninstall --yes --quiet opencv-python
	$(PIP_INSTALL) --no-deps --force-reinstall opencv-python-headless
	$(PIP_INSTALL) --quiet --no-deps --editable .
	@touch $@

quickstart: $(STAMP)
	$(VENV)/bin/python tools/quickstart.py $(ARGS)

quickstart-full: $(STAMP)
	$(VENV)/bin/python tools/quickstart.py --full $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest tests -q -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(STAMP)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist mmscale.egg-info
