# Two commands: `make demo` and `make test`. Each builds .venv when it is missing or when its pins changed.
# `make demo` ends in the Space, which runs until Ctrl-C; SPACE=no, or CI in the environment, leaves it out.
PYTHON ?= python3
SCAN ?=
SPACE ?= $(if $(CI),no,yes)
CHECKPOINT := checkpoints/default
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo space test lint evaluate clean

help:
	@echo "make demo [SCAN=path]  read a scan, compute its features, write pictures to demo/; then open the Space on this machine"
	@echo "make demo SPACE=no     the same, without the Space"
	@echo "make space             bring what the Space shows: the viewer (npm), examples and gallery"
	@echo "make test              run the tests"
	@echo "make lint              ruff and pyright"
	@echo "make evaluate          draw held-out phantoms and measure checkpoints/default on them (hours; to runs/evaluated)"
	@echo "make setup             build .venv and stop"

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[io,train,reporting,space,dev]"
	@touch .venv/.done

demo: setup
	$(BIN)/python -m ctfm demo $(SCAN)
ifeq ($(wildcard $(CHECKPOINT)/model.safetensors),)
	@echo "The Space opens once there is a trained checkpoint in $(CHECKPOINT)."
else ifeq ($(SPACE),yes)
	@$(MAKE) --no-print-directory space
	@echo "The Space, until Ctrl-C:"
	$(BIN)/python space/app.py
endif

space: setup space/gallery/gallery.json
	$(BIN)/python space/fetch_viewer.py

space/gallery/gallery.json: $(CHECKPOINT)/model.safetensors train/gallery.py | setup
	$(BIN)/python -m ctfm.train.gallery --checkpoint $(CHECKPOINT)

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
