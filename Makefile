# What a person types. The logic is in the `matu` command and in Flower; nothing here but the environment.
#
#   make run      install into .venv, then run the main job (ARGS go to `matu run`)
#   make resume RUN=runs/...   go on with a run that was cut off
#   make settings install into .venv, then write the defaults of the settings into pyproject.toml, where Flower looks for them
#   make test     install into .venv, then run the tests: minutes
#   make test-all install into .venv, then run what `make test` leaves out: long real runs, real faults, more cases
#   make bench    install into .venv, then run the benchmarks of merging, wire, deployment and a simulated crowd: long, tables, JSON in benchmarks/results
#   make lint     install into .venv, then check style and types
#   make coverage install into .venv, then run the fast tests and print how much of each room they run
#   make dist     install into .venv, then build the wheel and the source archive into dist
#   make compare  install into .venv, then compare four methods on a small scale (ARGS go to `matu compare`)
#   make docs     build the site into site/ (in a venv of its own: it needs no PyTorch)
#   make deploy-demo  three sites and a server in containers, one short run, all gone again (needs Docker with compose)
#   make test-docker  install into .venv, then the tests that build and run the containers (needs Docker with compose)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.PHONY: run resume settings test test-all bench compare lint install clean deploy-demo test-docker
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

# Made again only when what is installed changes.
$(READY): pyproject.toml constraints.txt
	@echo "installing matu-flwr and its tested dependencies into $(VENV) (first time: some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: $(READY)

run: $(READY)
	@$(BIN)/matu run $(ARGS)

resume: $(READY)
	@$(BIN)/matu run --resume $(RUN) $(ARGS)

compare: $(READY)
	@$(BIN)/matu compare $(if $(ARGS),$(ARGS),--seeds 2 --rounds 8)

settings: $(READY)
	$(BIN)/python -m matu_flwr.config.toml

# Those that start Flower's processes run one after the other, beside the others. The order is that of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

test: $(READY)
	$(PYTEST) $(ARGS)

# With four times as many cases of every law.
test-all: $(READY)
	MATU_HYPOTHESIS_PROFILE=ci $(PYTEST) -m "(long or hypothesis) and not docker and not slow" $(ARGS)

# The site reads the package's source and imports none of it, so that its tools alone are installed.
DOCS := .venv-docs
.PHONY: docs clean-docs
$(DOCS)/.ready: pyproject.toml constraints.txt
	@echo "installing what builds the site into $(DOCS)"
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

bench: $(READY)
	@mkdir -p benchmarks/results
	@for name in merging_client merging_server merging_files merging_growth wire deployment simulation; do \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json $(ARGS) || exit 1; done

.PHONY: coverage dist

# Only what runs in the tests' own processes counts, so the tests that start Flower's are left out.
coverage: $(READY)
	$(PYTEST) -m "not system and not slow and not long and not docker" --cov --cov-report= $(ARGS)
	@$(BIN)/python .ci/coverage_by_room.py

# hatchling is in .venv, so nothing is fetched.
dist: $(READY)
	$(BIN)/python -m build --no-isolation

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .flwr .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist
