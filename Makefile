# One command per habit. Every target makes .venv and installs what it needs by itself, once.
#   make demo ARGS="--minutes 3 --headless"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# Tests in as many processes as there are cores; each holds torch. -n0 in ARGS: in this one alone.
WORKERS ?= -n logical --maxprocesses=4 --dist=worksteal

# One OpenMP thread per process: two torch processes that share cores crawl otherwise.
export OMP_NUM_THREADS ?= 1
# ROS traffic stays on this machine and apart from other sessions; above 101 DDS ports would
# collide with the ephemeral ones.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
ifndef ROS_DOMAIN_ID
export ROS_DOMAIN_ID := $(shell echo $$(( $$$$ % 100 + 1 )))
endif
# .venv has its own ROS 2: one that the shell has sourced would mix two builds in one process.
unexport PYTHONPATH
unexport AMENT_PREFIX_PATH

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench gpu-check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(STAMP) ## watch a policy act on a simulated arm and get better (ARGS="--minutes 3 --headless")
	@$(BIN)/dipod demo $(ARGS)

test: lint ## lint, then every test (ARGS="-k launch")
	$(BIN)/pytest -q $(WORKERS) $(ARGS)

lint: $(STAMP) ## style, format, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(STAMP) ## measure latency and throughput
	@$(BIN)/dipod bench $(ARGS)

gpu-check: $(STAMP) ## check and time every GPU backend that is here, on a machine with an NVIDIA GPU
	@$(BIN)/dipod gpu-check $(ARGS)

clean: ## remove .venv, caches and build folders; runs/ stays
	rm -rf $(VENV) build install log *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements-ci.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("the pinned wheels are for Python 3.11, 3.12 and 3.13, this is %d.%d: make PYTHON=python3.12, or pip install . by hand" % v)'
	@if [ -e $(VENV)/.installing ]; then rm -rf $(VENV); fi  # an interrupted one may be half there
	$(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.installing
	$(BIN)/python -m pip install --quiet --requirement requirements-ci.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@mv $(VENV)/.installing $@
