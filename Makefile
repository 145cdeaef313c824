# `make help` lists the targets and their variables, which are set on the command line or in the environment:
# make train MODEL=conv_alstm SPLIT=2 ARGS="--seed=3"
PYTHON      ?= python3
VENV        ?= .venv
VIDEOS      ?= data/hmdb51/videos
SPLITS      ?= data/hmdb51/splits
FEATURES    ?= features
MODEL       ?= alstm
SPLIT       ?= 1
RUN_DIR     ?= runs/$(MODEL)-split$(SPLIT)
REPORT      ?= $(if $(call is_there,RUN_DIR),$(RUN_DIR),$(firstword $(RUN_DIR)))/report
RUNS        ?= $(or $(shell ls -td runs $(call arg,DEMO)/runs 2>/dev/null | head -n 1),runs)
DEMO        ?= demo
SECONDS     ?= 600
# no default, or one of each target
BACKBONE    ?=
ANNOTATIONS ?=
ARCHIVES    ?=
FORMAT      ?=
OUTPUT      ?=
VIDEO       ?=
# text of the shell: ARGS="--label='sit down'"
ARGS        ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow faults fuzz lint docs download audit extract inspect train svm sweep eval fuse \
        table predict serve report export tensorboard bench constraints clean

goals := $(or $(MAKECMDGOALS),help)
hash := \#
variables := $(shell awk '/^[A-Z_]+ *[?]=/ {print $$1}' $(MAKEFILE_LIST))
given := $(foreach name,$(variables),$(if $(filter file,$(origin $(name))),,$(name)))

# A variable on the command line that no goal's line of help names would be dropped, so it is refused. What stands there
# as "(or MODEL, SPLIT)" is for the default of RUN_DIR only.
takes := $(shell awk -F ':.*$(hash)$(hash) ' -v goals=" $(goals) " -v run_dir="$(filter RUN_DIR,$(given))" ' \
    index(goals, " " $$1 " ") { \
        if (run_dir) sub(/[(]or [A-Z, ]*[)]/, "", $$2); \
        gsub(/[^A-Z_]+/, " ", $$2); \
        print $$2 \
    }' $(MAKEFILE_LIST))
dropped := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))), \
    $(filter-out $(takes) PYTHON VENV SHELL,$(name)))))
$(if $(dropped),$(error make $(goals): $(dropped) would change nothing there; `make help` says what each target takes))

# What was given is taken as it is: make reads nothing into its characters, and exports it to nobody.
$(foreach name,$(given),$(eval override $(name) := $$(value $(name))))
unexport $(variables)

define newline :=


endef
export newline
# $(call quoted,TEXT): one word of the shell, whatever its characters are
quoted = '$(subst $(newline),'"$$newline"',$(subst ','\'',$1))'
# $(call arg,NAME): the variable's value as one argument
arg = $(if $($1),$(call quoted,$($1)),$(error make $(goals): $1 is empty; give it a value or leave it out))
is_there = $(shell test -e $(call arg,$1) && echo yes)
# $(call optional,FLAG,NAME): the flag, if the variable was given; the program knows a better default than this file
optional = $(if $(filter $2,$(given)),$(if $($2),$1=$(call arg,$2)))
# $(call each,FLAG,NAME): the flag for each word of a list; a value that is there as a whole is one, with its spaces
each = $(if $(call is_there,$2),$1=$(call arg,$2),$(foreach item,$($2),$1=$(call quoted,$(item))))
# --run_dir for each run; the default only where ARGS does not say which runs
run_dirs = $(if $(filter RUN_DIR MODEL SPLIT,$(given)),$(call each,--run_dir,RUN_DIR), \
    $(if $(findstring -run_dir,$(ARGS))$(findstring -results,$(ARGS)),,$(call each,--run_dir,RUN_DIR)))
# what predicts: the flags of the runs where one was given, else the model of this package
predict_by = $(if $(filter RUN_DIR MODEL SPLIT,$(given)),$1, \
    $(if $(findstring -run_dir,$(ARGS))$(findstring -pretrained,$(ARGS)),,--pretrained=jhmdb21))
# --splits; its default only where it is there, or where SPLIT says which of its lists
splits = --split=$(call arg,SPLIT) $(if $(SPLITS),$(listed),$(unlisted))
listed = $(if $(or $(filter SPLITS SPLIT,$(given)),$(wildcard $(SPLITS))),--splits=$(call arg,SPLITS))
unlisted = $(if $(filter SPLIT,$(given)),$(error make $(goals): SPLIT is one of SPLITS, which is empty; leave it out))
python = $(call arg,VENV)/bin/python

help:  ## list the targets
	@columns=999; [ ! -t 1 ] || columns=$$(stty size 2>/dev/null | cut -d' ' -f2); \
	awk -v columns="$${columns:-80}" -F ':.*## ' '/^[a-z-]+:.*## /{ \
	    line = sprintf("  make %-12s", $$1); \
	    for (i = 1; i <= split($$2, words, " "); i++) { \
	        if (length(line words[i]) >= columns) { print line; line = sprintf("%19s", "") } \
	        line = line " " words[i] \
	    } \
	    print line }' $(MAKEFILE_LIST)

# of `python_requires = >=3.10, <3.14`
supported := $(shell awk -F '[.,]' '/^python_requires/ {for (n = $$2; n < $$4; n++) print "3." n}' setup.cfg)
supports = case " $(supported) " in *" $1 "*) true;; *) false;; esac
needs := action_attention needs $(firstword $(supported)) to $(lastword $(supported)): make setup PYTHON=python3.11

# A virtual environment that works, of a supported version, stays, unless PYTHON was given and has another version.
# One that is made anew keeps its pyvenv.cfg to the end, so that it can be told from a folder of yours after any stop.
setup:  ## make the virtual environment (again only when the dependencies change): PYTHON, VENV
	@python=$(call arg,PYTHON); venv=$(call arg,VENV); \
	stop() { echo "make setup: $$1" >&2; exit 1; }; \
	version() { "$$1" -c "import sys$$2; print('%d.%d' % sys.version_info[:2])" 2>/dev/null; }; \
	old=$$(version "$$venv/bin/python" ", pip; assert sys.prefix != sys.base_prefix"); \
	$(call supports,$$old) && $(if $(filter PYTHON,$(given)),[ "$$old" = "$$(version "$$python")" ],true) && exit; \
	command -v "$$python" >/dev/null || stop "$$python was not found; $(needs)"; \
	new=$$(version "$$python") || stop "$$python does not start; $(needs)"; \
	$(call supports,$$new) || stop "$$python is Python $$new; $(needs)"; \
	if [ -e "$$venv/pyvenv.cfg" ]; then \
	    [ "$$old" ] && why="is of Python $$old" || why="is broken (its python does not start, or has no pip)"; \
	    echo "make setup: $$venv $$why; it is made anew, of Python $$new"; \
	    find "$$venv/" -mindepth 1 -maxdepth 1 ! -name pyvenv.cfg -exec rm -rf {} +; \
	elif [ "$$(ls -A "$$venv" 2>/dev/null)" ]; then \
	    stop "$$venv is there, but is no virtual environment; remove it, or say where one may be made: VENV=..."; \
	fi; \
	"$$python" -m venv "$$venv"
	@venv=$(call arg,VENV); installed=$$venv/.installed; \
	[ -e "$$installed" ] && [ -z "$$(find setup.cfg pyproject.toml constraints.txt -newer "$$installed")" ] && exit; \
	install() { "$$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$$@"; }; \
	echo "make setup: installs into $$venv what constraints.txt pins"; \
	install --require-hashes --only-binary=:all: --requirement constraints.txt \
	    && install --no-deps --no-build-isolation --editable . && touch "$$installed"

test: setup  ## run the tests that take minutes at most: ARGS
	$(python) -m pytest --numprocesses=auto --dist=worksteal $(ARGS)

test-slow: setup  ## run the long tests too: ARGS
	$(python) -m pytest -m "slow or not slow" $(ARGS)

faults: setup  ## kill, fill, damage, attack; prints the table of docs/reliability.md (takes a while): ARGS
	$(python) -m pytest -m slow tests/test_faults_*.py --faults experiments/results/faults.json $(ARGS)

fuzz: setup  ## damaged videos and caches, other ones in each run, for SECONDS (600): ARGS
	$(python) tests/fuzz.py --seconds=$(call arg,SECONDS) $(ARGS)

lint: setup  ## check format, style and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

docs: setup  ## these pages as a site, in build/site (installs the extra `docs`)
	@$(python) -c 'import material' 2>/dev/null || $(python) -m pip install --quiet --disable-pip-version-check \
	    --no-build-isolation --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet

demo_models := softmax alstm recommended
demo = $(call arg,DEMO)
define demo_run
@rm -rf $(demo)/runs/$1
$(python) -m experiments.train --flagfile=experiments/configs/sample_$1.flags \
    --features=$(demo)/features --splits=$(demo)/sample/splits --run_dir=$(demo)/runs/$1
@$(python) -m experiments.eval --run_dir=$(demo)/runs/$1

endef

demo: setup  ## sample dataset -> features -> three models -> one table: DEMO, BACKBONE (efficientnet_lite0)
	$(python) -m data_prep.sample --output=$(demo)/sample
	$(python) -m data_prep.extract --videos=$(demo)/sample/videos --features=$(demo)/features --fall_back_to_random \
	    --backbone=$(call quoted,$(or $(BACKBONE),efficientnet_lite0))
	$(foreach model,$(demo_models),$(call demo_run,$(model)))
	@printf '\n'
	@$(python) -m experiments.table $(foreach model,$(demo_models),--run_dir=$(demo)/runs/$(model))
	@printf '%s\n' '' 'Every run has its own folder in '$(demo)'/runs:' \
	    'eval/test/attention.png shows where the model looked,' \
	    'eval/test/confusion.png what it took for what (softmax: the pairs that are each other reversed in time).' \
	    'Watch them: make report RUN_DIR="'$(demo)'/runs/alstm '$(demo)'/runs/recommended" REPORT='$(demo)/report \
	    'Next: make tensorboard RUNS='$(demo)'/runs, or your own videos: README, "Your own videos".'

download: setup  ## get HMDB-51, or unpack what you have: OUTPUT (data/hmdb51), ARCHIVES="FILE FILE", ARGS
	$(python) -m data_prep.hmdb51 --output=$(call quoted,$(or $(OUTPUT),data/hmdb51)) \
	    $(if $(ARCHIVES),$(call each,--archive,ARCHIVES)) $(ARGS)

audit: setup  ## what stands on both sides of a split, short clips: VIDEOS, SPLITS, SPLIT, OUTPUT (audit.json), ARGS
	$(python) -m data_prep.audit --videos=$(call arg,VIDEOS) --splits=$(call arg,SPLITS) --split=$(call arg,SPLIT) \
	    $(call optional,--output,OUTPUT) $(ARGS)

extract: setup  ## videos -> feature cache: VIDEOS, FEATURES, BACKBONE, ARGS
	$(python) -m data_prep.extract --videos=$(call arg,VIDEOS) --features=$(call arg,FEATURES) \
	    $(call optional,--backbone,BACKBONE) $(ARGS)

inspect: setup  ## print and check a feature cache: FEATURES, ARGS
	$(python) -m data_prep.inspect --features=$(call arg,FEATURES) --verify $(ARGS)

train: setup  ## feature cache -> run directory: FEATURES, SPLITS, SPLIT, MODEL, VIDEOS, RUN_DIR, ARGS
	$(python) -m experiments.train --features=$(call arg,FEATURES) $(splits) --model=$(call arg,MODEL) \
	    $(call optional,--videos,VIDEOS) --run_dir=$(call arg,RUN_DIR) $(ARGS)

sweep: setup  ## search settings on validation videos: FEATURES, SPLITS, SPLIT, MODEL, OUTPUT, ARGS="--workers=2"
	$(python) -m experiments.sweep --features=$(call arg,FEATURES) $(splits) --model=$(call arg,MODEL) \
	    --output=$(call quoted,$(or $(OUTPUT),runs/sweep-$(MODEL)-split$(SPLIT))) $(ARGS)

svm: override MODEL := svm
svm: setup  ## the control without a network, a linear SVM: FEATURES, SPLITS, SPLIT, RUN_DIR (runs/svm-split1), ARGS
	$(python) -m experiments.svm --features=$(call arg,FEATURES) $(splits) --run_dir=$(call arg,RUN_DIR) $(ARGS)

eval: setup  ## evaluate a run on its test videos: RUN_DIR (or MODEL, SPLIT), FEATURES, VIDEOS, ANNOTATIONS, ARGS
	$(python) -m experiments.eval --run_dir=$(call arg,RUN_DIR) $(call optional,--features,FEATURES) \
	    $(call optional,--videos,VIDEOS) $(call optional,--annotations,ANNOTATIONS) $(ARGS)

fuse: setup  ## average what evaluated runs say: RUN_DIR="A B", OUTPUT (runs/fused), ARGS="--weights=0.4,0.6"
	$(python) -m experiments.fuse $(run_dirs) --output=$(call quoted,$(or $(OUTPUT),runs/fused)) $(ARGS)

table: setup  ## one table of evaluated runs: RUN_DIR="A B" (or MODEL, SPLIT), OUTPUT, ARGS="--results=FILE"
	@$(python) -m experiments.table $(run_dirs) $(call optional,--output,OUTPUT) $(ARGS)

report: setup  ## evaluated runs -> a page with playing overlays: RUN_DIR="A B" (or MODEL, SPLIT), REPORT, VIDEOS, ARGS
	$(python) -m experiments.report $(run_dirs) --output=$(call arg,REPORT) $(call optional,--videos,VIDEOS) $(ARGS)

predict: setup  ## what videos show, by the pretrained model or a run: VIDEO, RUN_DIR (or MODEL, SPLIT), OUTPUT, ARGS
	$(if $(VIDEO),,$(error make predict: say which video: make predict VIDEO=FILE))
	@$(python) -m experiments.predict $(call predict_by,--run_dir=$(call arg,RUN_DIR)) --video=$(call arg,VIDEO) \
	    $(call optional,--output,OUTPUT) $(ARGS)

serve: setup  ## a page to drop a video on, by the pretrained model or runs: RUN_DIR="A B" (or MODEL, SPLIT), ARGS
	@$(python) -m experiments.serve $(call predict_by,$(call each,--run_dir,RUN_DIR)) $(ARGS)

export: setup  ## a model for other programs, or to pass on: FORMAT, RUN_DIR (or MODEL, SPLIT), OUTPUT, ARGS=--with_backbone
	$(if $(FORMAT),,$(error make export: say which: make export FORMAT=onnx, saved_model, litert or package))
	@$(python) -m experiments.export $(call predict_by,--run_dir=$(call arg,RUN_DIR)) --format=$(call arg,FORMAT) \
	    --output=$(call quoted,$(or $(OUTPUT),exported/$(FORMAT))) $(ARGS)

tensorboard: setup  ## curves and pictures of the runs below RUNS (the newer of runs and what the demo made), ARGS
	$(if $(call is_there,RUNS),,$(error make tensorboard: RUNS=$(RUNS) is not there; say which folder holds the runs))
	$(python) -m experiments.tensorboard --logdir=$(call arg,RUNS) $(ARGS)

bench: setup  ## measure the stages against their limits: OUTPUT (bench.json), VIDEOS, FEATURES, ARGS
	$(python) -m experiments.benchmark --output=$(call quoted,$(or $(OUTPUT),bench.json)) \
	    $(call optional,--videos,VIDEOS) $(call optional,--features,FEATURES) $(ARGS)

constraints:  ## pin what setup.cfg needs, with hashes, for every Python (needs uv): ARGS=--upgrade takes new versions
	@command -v uv >/dev/null || { echo "make constraints: uv was not found; pip install uv" >&2; exit 1; }
	uv pip compile setup.cfg --extra=dev --universal --python-version=$(firstword $(supported)) --generate-hashes \
	    --no-annotate --custom-compile-command="make constraints" --quiet --output-file=constraints.txt $(ARGS)

clean:  ## remove what the build and the demo made (VENV, DEMO); datasets, features and runs stay
	rm -rf -- $(call arg,VENV) $(call arg,DEMO) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
