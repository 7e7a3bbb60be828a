# Commands for daily work. This file only prepares the environment; the work is done by `matu`, Flower and the tools.
#
#   make run      install into .venv, then simulate a federation (ARGS go to `matu run`)
#   make resume RUN=runs/...   resume a run that was cut off
#   make settings install into .venv, then write the default settings into pyproject.toml, where Flower reads them
#   make test     install into .venv, then run the tests (takes minutes)
#   make test-all install into .venv, then run what `make test` leaves out: long real runs, real faults, more cases
#   make fuzz     install into .venv, then try more than 100,000 damaged payloads and 10,000 lying clients (takes long)
#   make bench    install into .venv, then run the benchmarks (takes long); tables, and JSON in benchmarks/results
#   make lint     install into .venv, then check style and types
#   make coverage install into .venv, then run the fast tests and print how much of each sub-package they cover
#   make dist     install into .venv, then build the wheel and the source archive into dist
#   make compare  install into .venv, then compare four methods on a small scale (ARGS go to `matu compare`)
#   make docs     build the documentation into site/ (in a virtual environment of its own, without PyTorch)
#   make deploy-demo  start a server and three sites in containers, run once, remove everything (needs Docker with compose)
#   make test-docker  install into .venv, then run the tests that build and run the containers (needs Docker with compose)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.PHONY: run resume settings test test-all fuzz bench compare lint install clean deploy-demo test-docker
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

# Installed again only when the list of dependencies changes.
$(READY): pyproject.toml constraints.txt
	@echo "installing matu-flwr and its tested dependencies into $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: $(READY)

run: $(READY)
	@$(BIN)/matu run $(ARGS)

resume: $(READY)
	@$(BIN)/matu run --resume "$(RUN)" $(ARGS)

compare: $(READY)
	@$(BIN)/matu compare $(if $(ARGS),$(ARGS),--seeds 2 --rounds 8)

settings: $(READY)
	$(BIN)/python -m matu_flwr.config.toml

# Tests that start Flower's processes share one worker and run one after the other; the other workers take the rest.
# tests/conftest.py decides the order.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

test: $(READY)
	$(PYTEST) $(ARGS)

# The profile ci tries more random cases of every property than the default one.
test-all: $(READY)
	MATU_HYPOTHESIS_PROFILE=ci $(PYTEST) -m "(long or hypothesis) and not docker and not slow" $(ARGS)

# The docs are built from the source without importing it, so only the tools that build them are installed.
DOCS := .venv-docs
.PHONY: docs clean-docs
$(DOCS)/.ready: pyproject.toml constraints.txt
	@echo "installing the tools that build the documentation into $(DOCS)"
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/requirements.txt
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $(DOCS)/requirements.txt
	@touch $@

docs: $(DOCS)/.ready
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict $(ARGS)
	@echo "open site/index.html; with search: $(PYTHON) -m http.server --directory site"

clean: clean-docs
clean-docs:
	rm -rf $(DOCS) site

# MATU_BUILD_ARGS go to `docker build`.
deploy-demo:
	@$(PYTHON) docker/demo/run.py $(ARGS)

test-docker: $(READY)
	$(BIN)/python -m pytest -m docker tests/docker $(ARGS)

fuzz: $(READY)
	MATU_HYPOTHESIS_PROFILE=soak $(PYTEST) tests/wire/test_fuzz.py tests/federation/test_fuzz.py $(ARGS)

bench: $(READY)
	@mkdir -p benchmarks/results
	@for name in merging_client merging_server merging_files merging_growth wire deployment simulation; do \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json $(ARGS) || exit 1; done

.PHONY: coverage dist

# Coverage is measured in the tests' own processes only, so tests that start Flower's processes would add nothing.
# The tests of memory are left out: what coverage has freed is used again, and their measurement comes out too small.
coverage: $(READY)
	$(PYTEST) -m "not system and not slow and not long and not docker" --deselect tests/merging/test_memory.py --cov --cov-report= $(ARGS)
	@$(BIN)/python .ci/coverage_by_room.py

# The build needs hatchling, which is in .venv, so nothing is downloaded.
dist: $(READY)
	$(BIN)/python -m build --no-isolation

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .flwr .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist
