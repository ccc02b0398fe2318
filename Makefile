# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data
TASK ?= classification
# Processes of the lane that starts no Ray.
TESTERS ?= 2
CONFIG ?= configs/train/$(TASK)/glyphs.yaml
EMBEDDED := $(if $(filter segmentation detection,$(TASK)),scenes,glyphs)
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed: make PYTHON=python3.11 …"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: .venv/installed ## make .venv and install metashard with its tools

data/glyphs/index/manifest.json: | .venv/installed
	$(BIN)/metashard pack - data/glyphs --layout glyphs --size 28

data/scenes/index/manifest.json: | .venv/installed
	$(BIN)/metashard pack - data/scenes --layout scenes

train: .venv/installed data/$(EMBEDDED)/index/manifest.json ## pack embedded data, meta-train with 2 workers, evaluate (TASK=segmentation, detection, verification: other tasks)
	$(BIN)/metashard train $(CONFIG)

test: .venv/installed ## what CI runs: default and Ray lanes, and a short slow smoke
	$(BIN)/python -m pytest -m "not ray and not slow" -n $(TESTERS) --dist worksteal
	$(BIN)/python -m pytest -m "ray and not slow"
	$(BIN)/python -m pytest -m "slow and smoke"

test-all: .venv/installed ## every test, the long ones too
	$(BIN)/python -m pytest -m "not ray"
	$(BIN)/python -m pytest -m ray

drills: .venv/installed ## every fault that a run must survive, as a table in runs/drills.md
	mkdir -p runs
	$(BIN)/python -m pytest -m drill --drills=runs/drills.md
	@cat runs/drills.md

check: .venv/installed ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest tests/test_layers.py

ui: .venv/installed ## open MLflow on this machine
	$(BIN)/metashard ui

bench: .venv/installed data/glyphs/index/manifest.json ## the figures of docs/results.md that need no other data
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/remote.py
	$(BIN)/python benchmarks/startup.py

results: .venv/installed ## the table of all methods in docs/results.md (hours; DATA=folder with omniglot/ and cifar_fs_trainval/)
	$(BIN)/python benchmarks/results.py --data $(DATA)

clean: ## remove packed data, runs and the environment
	rm -rf .venv data/glyphs data/scenes runs *.egg-info

.PHONY: help install train test test-all drills check ui bench results clean
