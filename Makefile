# Two commands: `make demo` and `make test`. Each builds .venv when it is missing or when its pins changed.
PYTHON ?= python3
SCAN ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint evaluate clean

help:
	@echo "make demo [SCAN=path]  read a scan, compute its features, write pictures to demo/"
	@echo "make test              run the tests"
	@echo "make lint              ruff and pyright"
	@echo "make evaluate          draw held-out phantoms and measure checkpoints/default on them (hours; to runs/evaluated)"
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

# Phantoms come from their seeds, so these are the scans that checkpoints/default/metrics.json is of. CALIBRATE=--calibrate
# writes the calibration into the checkpoint's config.json.
PHANTOMS := runs/phantoms
evaluate: setup
	$(BIN)/python -m ctfm.train.phantom_dataset $(PHANTOMS) --num-train 500 --num-validation 500 --num-held-out 1000 \
		--shape 96 144 144 --num-workers 2
	$(BIN)/python -m ctfm.train.prepare csv $(PHANTOMS)/table.csv $(PHANTOMS)_prepared --num-workers 2
	$(BIN)/python -m ctfm.train.evaluate checkpoints/default --data $(PHANTOMS)_prepared --out runs/evaluated \
		--fit-scans 500 --random --histogram --num-workers 2 --failures docs/failures.png $(CALIBRATE)

clean:
	rm -rf .venv demo build dist *.egg-info
