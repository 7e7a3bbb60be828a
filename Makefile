# What a person types. The logic is in the `matu` command and in Flower; nothing here but the environment.
#
#   make run      install into .venv, then run the main job (ARGS go to `matu run`)
#   make resume RUN=runs/...   go on with a run that was cut off
#   make test     install into .venv, then run every test
#   make bench    install into .venv, then run the benchmarks of merging, wire, deployment and a simulated crowd: long, tables, JSON in benchmarks/results
#   make lint     install into .venv, then check style and types
#   make coverage install into .venv, then run the fast tests and print how much of each room they run
#   make dist     install into .venv, then build the wheel and the source archive into dist
#   make compare  install into .venv, then compare four methods on a small scale (ARGS go to `matu compare`)
#   make deploy-demo  three sites and a server in containers, one short run, all gone again (needs Docker with compose)
#   make test-docker  install into .venv, then the tests that build and run the containers (needs Docker with compose)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.PHONY: run resume test bench compare lint install clean deploy-demo test-docker
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

# Those that start Flower's processes run one after the other, beside the others.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup $(ARGS)

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
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup \
		-m "not system and not slow and not long and not docker" --cov --cov-report= $(ARGS)
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
