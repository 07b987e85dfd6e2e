# Two commands: `make demo` and `make test`. Each builds .venv when it is missing or when its pins changed.
# `make demo` ends in the Space, which runs until Ctrl-C; SPACE=no, or CI in the environment, leaves it out.
PYTHON ?= python3
SCAN ?=
SPACE ?= $(if $(CI),no,yes)
CHECKPOINT := checkpoints/default
WEIGHTS = $(wildcard $(CHECKPOINT)/model*.safetensors)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo space pictures shown viewer test coverage fuzz lint docs code train-demo checkpoint evaluate gate clean

help:
	@echo "make demo [SCAN=path]  read a scan, compute its features, write pictures to demo/; then open the Space on this machine"
	@echo "make demo SPACE=no     the same, without the Space"
	@echo "make space             open the Space; before, bring its viewer (npm); examples and gallery are drawn meanwhile"
	@echo "make pictures          take the pictures of the Space in docs/ again (needs chromium)"
	@echo "make test              run the tests"
	@echo "make coverage          the same tests, and which lines of which file they run"
	@echo "make fuzz SECONDS=60   mutated files through every reader, for so long each; findings stay in runs/fuzz"
	@echo "make lint              ruff, import-linter and pyright"
	@echo "make docs              build the documentation site in build/site and check its links (LINKS=yes: those to other sites, too)"
	@echo "make code              copy the package's code into the folders of the checkpoints, after it was edited"
	@echo "make train-demo        pretrain a tiny model on phantoms from end to end (minutes; to runs/train_demo)"
	@echo "make checkpoint        draw phantoms, train checkpoints/default on them again, measure it, fill its card (some four hours, two cores)"
	@echo "make evaluate          draw held-out phantoms and measure checkpoints/default on them (hours; to runs/evaluated)"
	@echo "make gate              measure again which scans the Space answers about (minutes)"
	@echo "make setup             build .venv and stop"

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[io,train,reporting,space,clinical,dev]"
	@touch .venv/.done

demo: setup
	$(BIN)/python -m ctfm demo $(if $(SCAN),"$(SCAN)")
ifeq ($(WEIGHTS),)
	@echo "The Space opens once there is a trained checkpoint in $(CHECKPOINT)."
else ifeq ($(SPACE),yes)
	@$(MAKE) --no-print-directory space
endif

# The page comes first; examples and gallery are drawn beside it, and are there within the minute.
space: viewer
	@echo "The Space, until Ctrl-C:"
	@$(BIN)/python -m ctfm gallery --checkpoint $(CHECKPOINT) & trap "kill $$! 2>/dev/null" EXIT; $(BIN)/python space/app.py

pictures: shown
	$(BIN)/python docs/space_pictures.py

shown: viewer
	$(BIN)/python -m ctfm gallery --checkpoint $(CHECKPOINT)

viewer: setup
	$(BIN)/python space/fetch_viewer.py

test: viewer
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu" --ignore tests/test_space_browser.py
	$(BIN)/python -m pytest tests/test_space_browser.py  # one process: what is done on a page follows on what was done before

# A target of its own: counting lines costs a quarter more CPU time (measured on 99 tests: 17.8 and 22.7 s).
coverage: viewer
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu" --ignore tests/test_space_browser.py --cov --cov-report=
	$(BIN)/python -m pytest tests/test_space_browser.py --cov --cov-append --cov-report=term:skip-covered

# Guided by coverage where atheris can be had (Linux and macOS), else with the project's own mutations.
SECONDS ?= 60
fuzz: setup
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[fuzz]"
	$(BIN)/python -m ctfm.fuzz.run --seconds $(SECONDS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# A site in build/site, of README, docs and docstrings; a link that leads nowhere is an error.
LINKS ?= no
docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 CHECK_LINKS=$(if $(filter yes,$(LINKS)),true,false) $(BIN)/python -m mkdocs build --quiet --strict

code: setup
	$(BIN)/python -m ctfm code

# A pretraining from end to end, which may be killed and started again: scans, shards, self-supervision, label maps and alignment
# (recipe "demo"), metrics, the folder of the checkpoint, and a process without this package that loads what was exported.
TRAIN_DEMO ?= runs/train_demo
TRAIN_DEMO_SCANS ?= --num-train 128 --num-validation 48 --num-test 64 --shape 64 96 96 --num-workers 2
$(TRAIN_DEMO)/phantoms/table.csv: | setup
	$(BIN)/python -m ctfm phantom $(TRAIN_DEMO)/phantoms $(TRAIN_DEMO_SCANS)

$(TRAIN_DEMO)/prepared/fingerprint.json: $(TRAIN_DEMO)/phantoms/table.csv
	$(BIN)/python -m ctfm prepare csv $< $(TRAIN_DEMO)/prepared --num-workers 2

$(TRAIN_DEMO)/run/finished: $(TRAIN_DEMO)/prepared/fingerprint.json
	$(BIN)/python -m ctfm pretrain demo --out $(TRAIN_DEMO)/run --data $(TRAIN_DEMO)/prepared

train-demo: $(TRAIN_DEMO)/run/finished
	$(BIN)/python -m ctfm evaluate $(TRAIN_DEMO)/run/exported --data $(TRAIN_DEMO)/prepared \
		--out $(TRAIN_DEMO)/evaluated --random
	$(BIN)/python -m ctfm record $(TRAIN_DEMO)/run $(TRAIN_DEMO)/checkpoint
	mkdir -p $(TRAIN_DEMO)/loaded
	$(BIN)/python -I release/load_check.py $(TRAIN_DEMO)/run/exported main \
		$(TRAIN_DEMO)/phantoms/test/1000000.mha $(TRAIN_DEMO)/loaded
	@echo "Checkpoint: $(TRAIN_DEMO)/run/exported. Metrics: $(TRAIN_DEMO)/evaluated/metrics.json. It proves that the machinery runs."

# Phantoms come from their seeds, so these are the scans that checkpoints/default was trained and measured on.
TEXT_TOWER := sentence-transformers/all-MiniLM-L6-v2
DRAW := $(BIN)/python -m ctfm phantom --shape 96 144 144 --num-workers 2
PREPARE := $(BIN)/python -m ctfm prepare csv --num-workers 2
checkpoint: setup
	$(DRAW) runs/train --num-train 2200 --num-test 0
	$(PREPARE) runs/train/table.csv runs/train_prepared
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node 2 -m ctfm pretrain embedded \
		--out runs/embedded --data runs/train_prepared --num-workers 1 --recipe.text-start $(TEXT_TOWER)
	$(BIN)/python -m ctfm record runs/embedded $(CHECKPOINT)
	$(BIN)/python -m ctfm export runs/embedded/checkpoints/segmentation-0003000 runs/without_alignment
	$(BIN)/python -m ctfm pretrain phantoms --out runs/phantoms --data runs/train_prepared
	$(BIN)/python -m ctfm export runs/phantoms/checkpoints/self_supervision-0000400 runs/self_supervision
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node 2 -m ctfm finetune findings \
		--recipe.start $(CHECKPOINT) --recipe.from-scratch --recipe.steps 300 --recipe.global-batch 4 --recipe.micro-batch 4 \
		--recipe.optimizer.learning-rate 5e-4 --recipe.optimizer.warmup-steps 30 --probe-every 0 \
		--out runs/supervised --data runs/train_prepared
	$(MAKE) --no-print-directory evaluate CALIBRATE=--calibrate BASELINES="--baseline supervised=runs/supervised/exported \
		--baseline without_alignment=runs/without_alignment --baseline self_supervision=runs/self_supervision"
	cp runs/evaluated/metrics.json $(CHECKPOINT)
	$(MAKE) --no-print-directory gate
	$(BIN)/python -m ctfm card

# What the Space's gate compares a scan with: needs to be measured again whenever the weights change.
gate: setup
	$(DRAW) runs/gate --num-train 120 --num-validation 80 --num-test 0
	$(BIN)/python space/measure_gate.py $(CHECKPOINT) runs/gate/table.csv

# CALIBRATE=--calibrate writes the calibration into the checkpoint's config.json.
evaluate: setup
	$(DRAW) runs/test --num-train 500 --num-validation 300 --num-test 1000
	$(PREPARE) runs/test/table.csv runs/test_prepared
	$(BIN)/python -m ctfm evaluate $(CHECKPOINT) --data runs/test_prepared --out runs/evaluated \
		--random --histogram $(BASELINES) --num-workers 2 --failures docs/failures.png $(CALIBRATE)

clean:
	rm -rf .venv demo build dist *.egg-info
