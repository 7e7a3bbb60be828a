# What a person types. The logic is in the `matu` command and in Flower; nothing here but the environment.
#
#   make run      install into .venv, then run the main job (ARGS go to `matu run`)
#   make resume RUN=runs/...   go on with a run that was cut off
#   make test     install into .venv, then run every test
#   make compare  install into .venv, then compare four methods on a small scale (ARGS go to `matu compare`)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.PHONY: run resume test compare lint install clean
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

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .flwr .pytest_cache .mypy_cache .ruff_cache .hypothesis
