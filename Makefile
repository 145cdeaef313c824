# `make help` lists the targets. Every variable can be set from outside: make train ARGS="--model=conv_alstm --split=2"
PYTHON   ?= python3
VENV     ?= .venv
VIDEOS   ?= data/hmdb51/videos
SPLITS   ?= data/hmdb51/splits
FEATURES ?= features
MODEL    ?= alstm
SPLIT    ?= 1
RUN_DIR  ?= runs/$(MODEL)-split$(SPLIT)
DEMO     ?= demo
ARGS     ?=

python := $(VENV)/bin/python


.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint extract inspect train eval tensorboard bench constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: setup.cfg constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make setup: $(PYTHON) was not found; install Python 3.10 to 3.13 or set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed  ## make the virtual environment (again only when the dependencies change)

test: setup  ## run the tests that take minutes at most
	$(python) -m pytest $(ARGS)

test-slow: setup  ## run the long tests too
	$(python) -m pytest -m "slow or not slow" $(ARGS)

lint: setup  ## check format and style
	$(python) -m ruff check .
	$(python) -m ruff format --check .

constraints:  ## pin all dependencies anew, for every supported Python (needs uv)
	uv pip compile setup.cfg --extra dev --universal --python-version 3.10 --no-annotate --no-header --upgrade -o constraints.txt

clean:  ## remove what the build and the demo made; datasets, features and runs stay
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
