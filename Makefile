# `make quickstart` and `make test` are the two commands of README.md; both make .venv first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help venv detection quickstart quickstart-full detection-quickstart test test-core \
	test-detection test-oldest test-newest lint format clean

# The Pythons that constraints.txt is for. The first that is found is taken, pyenv's too;
# `make PYTHON=/path/to/python` chooses another.
VERSIONS := 3.11 3.12
FITS = -c 'import ensurepip, sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' \
	$(VERSIONS)
PYTHON ?= $(shell for p in $(foreach v,$(VERSIONS),python$(v) \
	$(wildcard $(HOME)/.pyenv/versions/$(v).*/bin/python)) python3; do \
	$$p $(FITS) 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
STAMP := $(VENV)/.installed
DETECTION := $(VENV)/.installed-detection
CONSTRAINTS := requirements/constraints.txt
PIP = $(VENV)/bin/python -m pip
PIP_INSTALL = $(PIP) install --no-input --disable-pip-version-check \
	$(addprefix --constraint ,$(CONSTRAINTS)) --build-constraint requirements/constraints.txt
REQUIREMENTS := requirements/runtime.txt requirements/tests.txt

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
	@echo 'make test-oldest      the core of the tests with the oldest versions, in .venv-oldest'
	@echo 'make test-newest      the same with the newest that pip finds, in .venv-newest'
	@echo 'make lint             check style; make format mends what it can'
	@echo 'make venv             only make .venv and install the pinned requirements into it'
	@echo 'make detection        the same, and mmdet and mmcv with compiled ops'
	@echo 'make clean            remove .venv, .venv-* and caches, keep work_dirs/'
	@echo 'ARGS="..." hands arguments to the quickstart or to pytest.'

venv: $(STAMP)

detection: $(DETECTION)

# The stamp, the target of such a rule, is written last, so that an interrupted installation starts
# again, from nothing.
define MAKE_VENV
@$(or $(PYTHON),false) $(FITS) || { echo 'Found no Python of $(VERSIONS) with ensurepip: $(PYTHON).' \
	'Choose one: make PYTHON=/path/to/python' >&2; exit 2; }
$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(VENV)
$(PIP) install --no-input --disable-pip-version-check --quiet \
	--constraint requirements/constraints.txt pip
$(PIP_INSTALL) $(addprefix -r ,$(REQUIREMENTS))
$(HEADLESS_OPENCV)
$(PIP_INSTALL) --quiet --no-deps --editable .
@touch $@
endef

$(STAMP): $(REQUIREMENTS) requirements/constraints.txt setup.py
	$(MAKE_VENV)

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
PYTEST = $(VENV)/bin/python -m pytest -q -n 3 --dist worksteal $(ARGS)
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

# What does not depend on training: what other versions of torch, NumPy and Python may break.
CORE := tests/arch tests/cost tests/models tests/search tests/test_layers.py

# The lower ends of runtime.txt, on the oldest Python that is found.
test-oldest .venv-oldest/.installed: VENV := .venv-oldest
test-oldest .venv-oldest/.installed: VERSIONS := 3.10 3.11 3.12
test-oldest .venv-oldest/.installed: CONSTRAINTS := requirements/oldest.txt

.venv-oldest/.installed: $(REQUIREMENTS) requirements/oldest.txt setup.py
	$(MAKE_VENV)

test-oldest: .venv-oldest/.installed
	$(PYTEST) $(CORE) || $(NONE_CHOSEN)

# What pip finds today, on the newest Python that is found.
test-newest .venv-newest/.installed: VENV := .venv-newest
test-newest .venv-newest/.installed: VERSIONS := 3.13 3.12 3.11
test-newest .venv-newest/.installed: CONSTRAINTS :=

.venv-newest/.installed: $(REQUIREMENTS) setup.py
	$(MAKE_VENV)

test-newest: .venv-newest/.installed
	$(PIP_INSTALL) --quiet --upgrade --upgrade-strategy eager $(addprefix -r ,$(REQUIREMENTS))
	$(HEADLESS_OPENCV)
	$(PYTEST) $(CORE) || $(NONE_CHOSEN)

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(STAMP)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .pytest_cache .ruff_cache .hypothesis build dist mmscale.egg-info
