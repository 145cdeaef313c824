# `make help` lists the targets. Every variable can be set from outside: make train ARGS="--model=conv_alstm --split=2"
PYTHON   ?= python3
VENV     ?= .venv
VIDEOS   ?= data/hmdb51/videos
SPLITS   ?= data/hmdb51/splits
FEATURES ?= features
MODEL    ?= alstm
SPLIT    ?= 1
RUN_DIR  ?= runs/$(MODEL)-split$(SPLIT)
REPORT   ?= $(firstword $(RUN_DIR))/report
RUNS     ?= runs
DEMO     ?= demo
ARGS     ?=

python := $(VENV)/bin/python


.DEFAULT_GOAL := help
.PHONY: help setup demo demo-model test test-slow faults fuzz lint download audit extract inspect train svm sweep eval table predict report \
        tensorboard bench constraints clean

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

faults: setup  ## kill, fill, damage, attack; prints the README's reliability table (takes a while): ARGS
	$(python) -m pytest -m slow tests/test_faults_*.py --faults experiments/results/faults.json $(ARGS)

fuzz: setup  ## damaged videos and caches, other ones in each run, for SECONDS (600): ARGS
	$(python) tests/fuzz.py --seconds $(or $(SECONDS),600) $(ARGS)

lint: setup  ## check format, style and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

demo: setup  ## sample dataset -> features -> three models -> one table, in minutes; results in $(DEMO)/
	$(python) -m data_prep.sample --output $(DEMO)/sample
	$(python) -m data_prep.extract --videos $(DEMO)/sample/videos --features $(DEMO)/features --fall_back_to_random
	@for model in softmax alstm conv_alstm; do $(MAKE) --no-print-directory MODEL=$$model demo-model || exit 1; done
	@printf '\n'
	@$(python) -m experiments.table $(foreach model,softmax alstm conv_alstm,--run_dir $(DEMO)/runs/$(model))
	@printf '\nEvery run has its own folder in $(DEMO)/runs: eval/test/attention.png shows where the model looked,\n'
	@printf 'eval/test/confusion.png what it took for what (softmax: the pairs that are each other reversed in time).\n'
	@printf 'Watch them: make report RUN_DIR="$(DEMO)/runs/alstm $(DEMO)/runs/conv_alstm" REPORT=$(DEMO)/report\n'
	@printf 'Next: make tensorboard RUNS=$(DEMO)/runs, or your own videos: README, "Your own videos".\n'

demo-model:
	@rm -rf $(DEMO)/runs/$(MODEL)
	$(python) -m experiments.train --flagfile=experiments/configs/sample_$(MODEL).flags \
	    --features $(DEMO)/features --splits $(DEMO)/sample/splits --run_dir $(DEMO)/runs/$(MODEL)
	@$(python) -m experiments.eval --run_dir $(DEMO)/runs/$(MODEL)

download: setup  ## get HMDB-51, or unpack what you have: OUTPUT (data/hmdb51), ARCHIVES="FILE FILE"
	$(python) -m data_prep.hmdb51 --output $(or $(OUTPUT),data/hmdb51) $(foreach file,$(ARCHIVES),--archive $(file)) $(ARGS)

audit: setup  ## what stands on both sides of a split, short clips, counts: VIDEOS, SPLITS, SPLIT, ARGS
	$(python) -m data_prep.audit --videos $(VIDEOS) --splits $(SPLITS) --split $(SPLIT) $(ARGS)

extract: setup  ## videos -> feature cache: VIDEOS, FEATURES, ARGS
	$(python) -m data_prep.extract --videos $(VIDEOS) --features $(FEATURES) $(ARGS)

inspect: setup  ## print and check a feature cache: FEATURES
	$(python) -m data_prep.inspect --features $(FEATURES) --verify $(ARGS)

train: setup  ## feature cache -> run directory: FEATURES, SPLITS, SPLIT, MODEL, RUN_DIR, ARGS
	$(python) -m experiments.train --features $(FEATURES) $(if $(wildcard $(SPLITS)),--splits $(SPLITS)) \
	    --split $(SPLIT) --model $(MODEL) --run_dir $(RUN_DIR) $(ARGS)

sweep: setup  ## search hyper-parameters on validation videos: FEATURES, SPLITS, SPLIT, MODEL, OUTPUT, ARGS="--workers=2"
	$(python) -m experiments.sweep --features $(FEATURES) $(if $(wildcard $(SPLITS)),--splits $(SPLITS)) \
	    --split $(SPLIT) --model $(MODEL) --output $(or $(OUTPUT),runs/sweep-$(MODEL)-split$(SPLIT)) $(ARGS)

svm: MODEL := svm
svm: setup  ## the control without a network, a linear SVM: FEATURES, SPLITS, SPLIT, RUN_DIR (runs/svm-split1), ARGS
	$(python) -m experiments.svm --features $(FEATURES) $(if $(wildcard $(SPLITS)),--splits $(SPLITS)) \
	    --split $(SPLIT) --run_dir $(RUN_DIR) $(ARGS)

eval: setup  ## evaluate a run on its test videos: RUN_DIR, ARGS
	$(python) -m experiments.eval --run_dir $(RUN_DIR) $(ARGS)

table: setup  ## one table of evaluated runs: RUN_DIR="A B ...", or ARGS="--results=FILE"
	@$(python) -m experiments.table $(if $(findstring --results,$(ARGS)),,$(foreach run_dir,$(RUN_DIR),--run_dir $(run_dir))) $(ARGS)

report: setup  ## evaluated run, or several side by side, -> one page with playing overlays: RUN_DIR, REPORT, ARGS
	$(python) -m experiments.report $(foreach run_dir,$(RUN_DIR),--run_dir $(run_dir)) --output $(REPORT) $(ARGS)

# VIDEO as it was given, through the environment: neither make nor the shell reads anything into its characters
unexport VIDEO
predict: export VIDEO_FILE := $(value VIDEO)
predict: setup  ## what a video shows and where the model looks: VIDEO, RUN_DIR, OUTPUT, ARGS
	@test -n "$$VIDEO_FILE" || { echo "make predict: say which video: make predict VIDEO=FILE RUN_DIR=..."; exit 1; }
	@$(python) -m experiments.predict --run_dir "$(RUN_DIR)" --video "$$VIDEO_FILE" \
	    --output "$(or $(OUTPUT),$(RUN_DIR)/predictions)" $(ARGS)

tensorboard: setup  ## curves and pictures of the runs below RUNS
	$(VENV)/bin/tensorboard --logdir $(RUNS) $(ARGS)

bench: setup  ## measure the stages against their limits: OUTPUT (bench.json), ARGS="--videos=DIR --features=DIR"
	$(python) -m experiments.benchmark --output $(or $(OUTPUT),bench.json) $(ARGS)

constraints:  ## pin all dependencies anew, for every supported Python (needs uv)
	uv pip compile setup.cfg --extra dev --universal --python-version 3.10 --no-annotate --no-header --upgrade -o constraints.txt

clean:  ## remove what the build and the demo made; datasets, features and runs stay
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
