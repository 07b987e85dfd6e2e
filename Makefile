# Two commands: `make demo` and `make test`. Each builds .venv when it is missing or when its pins changed.
PYTHON ?= python3
SCAN ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

help:
	@echo "make demo [SCAN=path]  read a scan, compute its features, write pictures to demo/"
	@echo "make test              run the tests"
	@echo "make lint              ruff and pyright"
	@echo "make setup             build .venv and stop"

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[io,train,reporting,dev]"
	@touch .venv/.done

demo: setup
	$(BIN)/python -m ctfm demo $(SCAN)

test: setup
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv demo build dist *.egg-info
