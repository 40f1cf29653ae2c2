# `make quickstart` and `make test` are the two commands of README.md; both make .venv first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help venv detection quickstart quickstart-full detection-quickstart test test-core test-detection lint format clean

# The first of these that is Python 3.11 or 3.12; `make PYTHON=/path/to/python` chooses another.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
STAMP := $(VENV)/.installed
DETECTION := $(VENV)/.installed-detection
PIP := $(VENV)/bin/python -m pip
PIP_INSTALL := $(PIP) install --no-input --disable-pip-version-check \
	--constraint requirements/constraints.txt --build-constraint requirements/constraints.txt

# mmcv asks for opencv-python, which needs libGL; the headless build is the same module without.
HEADLESS_OPENCV = $(PIP) uninstall --yes --quiet opencv-python && \
	$(PIP_INSTALL) --quiet --no-deps --force-reinstall opencv-python-headless

# One thread a process that sleeps when it waits: spinning OpenMP threads on busy cores slow
# training down many times.
OMP_NUM_THREADS ?= 1
OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS OMP_WAIT_POLICY

help:
	@echo 'make quickstart       search, train and compare a family of networks on real images'
	@echo 'make quickstart-full  the same with every network of the family trained'
	@echo 'make detection-quickstart  train detectors on real images, and draw what they find'
	@echo 'make test             run the tests; those of detection only where mmcv ops can be built'
	@echo 'make test-detection   only those of detection, which fails where they cannot'
	@echo 'make lint             check style; make format mends what it can'
	@echo 'make venv             only make .venv and install the pinned requirements into it'
	@echo 'make detection        the same, and mmdet and mmcv with compiled ops'
	@echo 'make clean            remove .venv and caches, keep work_dirs/'
	@echo 'ARGS="..." hands arguments to the quickstart or to pytest.'

venv: $(STAMP)

detection: $(DETECTION)

# The stamp is written last, so that an interrupted installation starts again, from nothing.
$(STAMP): requirements/runtime.txt requirements/tests.txt requirements/constraints.txt setup.py
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' || { \
		echo 'mmscale needs Python 3.11 or 3.12, found: $(or $(PYTHON),none of the two).' \
			'Choose one: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(VENV)
	$(PIP) install --no-input --disable-pip-version-check --quiet \
		--constraint requirements/constraints.txt pip
	$(PIP_INSTALL) -r requirements/runtime.txt -r requirements/tests.txt
	$(HEADLESS_OPENCV)
	$(PIP_INSTALL) --quiet --no-deps --editable .
	@touch $@

# Building the ops takes 7 minutes on two idle cores, once: the wheel is kept outside the clone.
$(DETECTION): $(STAMP) requirements/detection.txt tools/install_mmcv_ops.py
	$(VENV)/bin/python tools/install_mmcv_ops.py --check
	$(PIP_INSTALL) -r requirements/detection.txt
	$(HEADLESS_OPENCV)
	$(VENV)/bin/python tools/install_mmcv_ops.py
	@touch $@

quickstart: $(STAMP)
	$(VENV)/bin/python tools/quickstart.py $(ARGS)

quickstart-full: $(STAMP)
	$(VENV)/bin/python tools/quickstart.py --full $(ARGS)

detection-quickstart: $(DETECTION)
	$(VENV)/bin/python tools/detection_quickstart.py $(ARGS)

# ARGS may choose tests of one part alone: pytest's 5 says that it found none.
PYTEST := $(VENV)/bin/python -m pytest -q -n 3 --dist worksteal $(ARGS)
NONE_CHOSEN := $(if $(ARGS),[ $$? -eq 5 ],false)

test: test-core
	@$(VENV)/bin/python tools/install_mmcv_ops.py --check; status=$$?; \
	if [ $$status -eq 3 ]; then \
		echo '**** THE TESTS OF DETECTION WERE SKIPPED: mmcv ops cannot be built, see the line above.' \
			'make test-detection insists. ****' >&2; \
	elif [ $$status -eq 0 ]; then $(MAKE) --no-print-directory test-detection; \
	else exit $$status; fi

test-core: $(STAMP)
	$(PYTEST) tests --ignore=tests/det || $(NONE_CHOSEN)

test-detection: $(DETECTION)
	$(PYTEST) tests/det || $(NONE_CHOSEN)

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(STAMP)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist mmscale.egg-info
