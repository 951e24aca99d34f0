# `make` alone lists what there is to do. Everything runs in .venv, which `make setup` builds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A surrounding environment must not leak into .venv.
unexport PYTHONHOME
unexport PYTHONPATH
unexport VIRTUAL_ENV

VENV := .venv
ZOO := .venv-zoo
EXTRAS := dev
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first Python that starts and is new enough: a name on the path may be a shim for a version that is not there.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)

.PHONY: help setup demo test test-slow chromium picture bench bench-training bench-neuronscope bench-page bench-quality reference zoo docs lint format clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Build .venv with everything the demo and the tests use

# Debian ships venv without pip unless python3-venv is installed; then the pip of the system fills the new environment.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "NeuronScope needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV); }
	$(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| $(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup ## Train a small network on handwritten digits, prune it, prove it, report
	$(BIN)/neuronscope demo

test: lint chromium ## Check style, types, import direction and behaviour
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: setup ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

chromium: ## Install Chromium for the browser tests, where it is missing
	@command -v chromium >/dev/null || { \
		if [ "$$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi; \
		$$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium; \
	} || echo "Chromium is missing and could not be installed: the browser tests will be skipped." >&2

picture: setup chromium ## Draw the README's pictures: the report, and the main states of the page (docs/page.md)
	rm -rf build/picture && $(BIN)/neuronscope demo --out build/picture
	chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
		--disable-component-update --disable-sync --user-data-dir="$$(mktemp -d)" --hide-scrollbars \
		--window-size=1280,1500 --screenshot=docs/report.png \
		"file://$$(realpath build/picture/reports/*_report.html)" 2>/dev/null
	PYTHONPATH=. $(BIN)/python docs/page_picture.py

bench: setup ## Measure the cost of tracking and the gain of pruning
	$(BIN)/python benchmarks/tracking.py
	$(BIN)/python benchmarks/pruning.py

bench-training: setup ## Measure tracked training, gradual pruning, the search against a sweep, and what an impact score means
	$(BIN)/python -m pip install --quiet wandb torchlens
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/gradual.py
	$(BIN)/python benchmarks/optimize.py
	$(BIN)/python benchmarks/calibration.py

bench-neuronscope: setup ## Measure what looking at neurons costs, beside Captum, and a server under load
	$(BIN)/python -m pip install --quiet --no-deps captum
	$(BIN)/python benchmarks/answers.py

bench-page: setup chromium ## Measure how soon the page shows something, and how long a changed selection takes to be drawn
	$(BIN)/python -m benchmarks.page

bench-quality: setup ## Measure the quality kept, by us and by the field, on five trained models; goes on where it was
	$(BIN)/python -m pip install --quiet --no-deps torch-pruning==1.6.1
	$(BIN)/python -m benchmarks.quality

reference: setup ## Train the models that come with the package anew (an hour or two on a CPU)
	for name in stdlib-gpt stdlib-llama digits-vit digits-cnn; do $(BIN)/python -m neuronscope.reference $$name; done

zoo: $(ZOO)/.installed-zoo ## Prune every architecture, beside Torch-Pruning, and write the table; goes on where it was
	$(ZOO)/bin/python -m benchmarks.zoo

# An environment of its own: torchvision, timm and Torch-Pruning with what they depend on would bring another torch.
$(ZOO)/.installed-zoo: pyproject.toml constraints.txt benchmarks/zoo/requirements.txt
	$(MAKE) setup VENV=$(ZOO) EXTRAS=plot,transformers
	$(ZOO)/bin/python -m pip install --quiet --no-deps --requirement benchmarks/zoo/requirements.txt
	@touch $@

docs: setup ## Run every code block of the README and docs/
	$(BIN)/python -m pytest tests/docs

lint: setup ## Check style, types and import direction only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv, builds and caches; what runs have written to outputs/ stays
	rm -rf $(VENV) $(ZOO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
