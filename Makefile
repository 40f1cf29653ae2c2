# `make quickstart` and `make test` are the two commands of README.md; both make .venv first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help venv detection quickstart quickstart-full detection-quickstart bench test test-core \
	test-detection test-oldest test-newest lint licences lock format clean

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
REQUIREMENTS := requirements/runtime.txt requirements/tests.txt
PIP_INSTALL = $(VENV)/bin/python -m pip install --no-input --disable-pip-version-check

# Whatever is installed is in a lock file with its SHA-256, what builds it too: pip checks no hash
# in an isolated build. `make LOCK= ...` takes the versions of constraints.txt without hashes, from
# another index for example.
LOCK := requirements/constraints.lock
LOCKED = --require-hashes --no-deps --no-build-isolation
CONSTRAINTS := requirements/constraints.txt
UNLOCKED = $(addprefix --constraint ,$(CONSTRAINTS)) \
	--build-constraint requirements/constraints.txt
HEADLESS := requirements/headless.txt
BUILD = $(if $(LOCK),--require-hashes -r requirements/build.lock,\
	--constraint requirements/constraints.txt -r requirements/build.txt)

# mmcv asks for opencv-python, which needs libGL; the headless build is the same module without,
# and the only one in the lock files.
HEADLESS_OPENCV = $(VENV)/bin/python -m pip uninstall --yes --quiet opencv-python && \
	$(PIP_INSTALL) $(UNLOCKED) --quiet --no-deps --force-reinstall -r $(HEADLESS)

# Installs a lock file, the first argument, or without locks files of requirements, the second.
install = $(if $(LOCK),$(PIP_INSTALL) $(LOCKED) -r $(1),\
	$(PIP_INSTALL) $(UNLOCKED) $(addprefix -r ,$(2)) && $(HEADLESS_OPENCV))

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
	@echo 'make bench            measure the speed of trainings, evaluations and searches: 15 minutes'
	@echo 'make lint             check style; make format mends what it can'
	@echo 'make licences         check the licences of what is installed'
	@echo 'make lock             write the lock files after a change of requirements/*.txt'
	@echo 'make venv             only make .venv and install the pinned requirements into it'
	@echo 'make detection        the same, and mmdet and mmcv with compiled ops'
	@echo 'make clean            remove .venv, .venv-* and caches, keep work_dirs/'
	@echo 'ARGS="..." hands arguments to the quickstart, to the benchmarks or to pytest.'

venv: $(STAMP)

detection: $(DETECTION)

# The stamp, the target of such a rule, is written last, so that an interrupted installation starts
# again, from nothing.
define MAKE_VENV
@$(or $(PYTHON),false) $(FITS) || { echo 'Found no Python of $(VERSIONS) with ensurepip: $(PYTHON).' \
	'Choose one: make PYTHON=/path/to/python' >&2; exit 2; }
$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(VENV)
$(PIP_INSTALL) --quiet $(BUILD)
$(call install,$(LOCK),$(REQUIREMENTS))
$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
@touch $@
endef

$(STAMP): $(REQUIREMENTS) $(CONSTRAINTS) requirements/build.lock $(LOCK) setup.py
	$(MAKE_VENV)

# Building the ops takes 7 minutes on two idle cores, once: the wheel is kept outside the clone.
$(DETECTION): $(STAMP) requirements/detection.txt requirements/detection.lock tools/install_mmcv_ops.py
	$(VENV)/bin/python tools/install_mmcv_ops.py --check
	$(call install,requirements/detection.lock,requirements/detection.txt)
	$(VENV)/bin/python tools/install_mmcv_ops.py $(addprefix --lock ,$(LOCK))
	@touch $@

quickstart: $(STAMP)
	$(VENV)/bin/python tools/quickstart.py $(ARGS)

quickstart-full: $(STAMP)
	$(VENV)/bin/python tools/quickstart.py --full $(ARGS)

detection-quickstart: $(DETECTION)
	$(VENV)/bin/python tools/detection_quickstart.py $(ARGS)

bench: $(STAMP)
	$(VENV)/bin/python benchmarks/run_all.py $(ARGS)

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
test-oldest .venv-oldest/.installed: LOCK := requirements/oldest.lock

.venv-oldest/.installed: $(REQUIREMENTS) requirements/build.lock requirements/oldest.lock setup.py
	$(MAKE_VENV)

test-oldest: .venv-oldest/.installed
	$(PYTEST) $(CORE) || $(NONE_CHOSEN)

# What pip finds today, on the newest Python that is found.
test-newest .venv-newest/.installed: VENV := .venv-newest
test-newest .venv-newest/.installed: VERSIONS := 3.13 3.12 3.11
test-newest .venv-newest/.installed: CONSTRAINTS :=
test-newest .venv-newest/.installed: LOCK :=

.venv-newest/.installed: $(REQUIREMENTS) requirements/build.lock setup.py
	$(MAKE_VENV)

test-newest: .venv-newest/.installed
	$(PIP_INSTALL) $(UNLOCKED) --quiet --upgrade --upgrade-strategy eager \
		$(addprefix -r ,$(REQUIREMENTS))
	$(HEADLESS_OPENCV)
	$(PYTEST) $(CORE) || $(NONE_CHOSEN)

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

# What is allowed, and why, is in pyproject.toml; docs/licences.md says it in words.
licences: $(STAMP)
	$(VENV)/bin/pip-licenses --summary

# The versions are those of constraints.txt and oldest.txt, the hashes those of every file that
# PyPI has of them; uv itself comes from the lock that there is.
UV_COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --excludes <(echo opencv-python)
TESTED = --python-version 3.11 --constraint requirements/constraints.txt
OLDEST = --python-version 3.10 --constraint requirements/oldest.txt

lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --require-hashes -r requirements/locking.lock
	$(UV_COMPILE) $(TESTED) -o requirements/locking.lock requirements/locking.txt
	$(UV_COMPILE) $(subst 3.11,3.10,$(TESTED)) -o requirements/build.lock requirements/build.txt
	$(UV_COMPILE) $(TESTED) -o requirements/constraints.lock $(REQUIREMENTS) $(HEADLESS)
	$(UV_COMPILE) $(TESTED) -o requirements/detection.lock $(REQUIREMENTS) $(HEADLESS) \
		requirements/detection.txt
	$(UV_COMPILE) $(OLDEST) -o requirements/oldest.lock $(REQUIREMENTS) $(HEADLESS)

format: $(STAMP)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-lock .pytest_cache .ruff_cache .hypothesis build dist mmscale.egg-info
