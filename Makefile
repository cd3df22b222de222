# `make help` lists the targets. The first one that needs .venv makes it.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests at a time; further arguments for pytest; one part of `make test-all`.
JOBS ?= 2
PYTEST_ARGS ?=
SHARD ?=
# The first Python that is new enough and can make environments. 3.11 is tested.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo $$p && break; done)
# --no-compile, because compiling all modules takes longer than the rest of the
# installation. Python compiles a module when it is imported.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile

# Python keeps compiled modules, even if the settings of a container forbid it. Without
# them, imports in each process that a test starts take three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo phantom-sd test test-all bench docs lint format types clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer with venv. Install one, or give its path: make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "installing medjax and the tested versions into $(VENV) ($(PYTHON)); this takes minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@# torch first and alone, so that pip takes a CPU build if an index offers one.
	@$(PIP_INSTALL) -c constraints.txt torch
	@$(PIP_INSTALL) -c constraints.txt -e ".[flax-pipelines,evaluation,preflight,dev]"
	@touch $@

install: $(STAMP)  ## set up .venv with the tested versions

demo: $(STAMP)  ## train a ControlNet for phantom-SD to follow edges: minutes on two cores
	@rm -rf workdirs/demo
	JAX_NUM_CPU_DEVICES=2 $(BIN)/python -m medjax.train \
		--config=configs/cxr_controlnet.py:demo --workdir=workdirs/demo

# JAX_NUM_CPU_DEVICES: two devices with one core each train faster than one with both.
phantom-sd: $(STAMP)  ## train the demo's Stable Diffusion again: three hours on two cores
	JAX_NUM_CPU_DEVICES=2 $(BIN)/python -m medjax.train \
		--config=configs/phantom_sd.py --workdir=workdirs/phantom_sd/first
	$(BIN)/python -m medjax.export --workdir=workdirs/phantom_sd/first --overwrite \
		--to=workdirs/phantom_sd/base --noparity
	JAX_NUM_CPU_DEVICES=2 $(BIN)/python -m medjax.train \
		--config=configs/phantom_sd.py:second --workdir=workdirs/phantom_sd/second \
		--config.model.pretrained=workdirs/phantom_sd/base
	$(BIN)/python -m medjax.export --workdir=workdirs/phantom_sd/second --overwrite \
		--to=medjax/pretrained/phantom_sd --dtype=float16 --noparity

test: $(STAMP)  ## test every module and guarantee once: minutes on two cores
	$(BIN)/python -m pytest -n $(JOBS) -m "not ci and not release" \
		--memory-limit=3 $(PYTEST_ARGS)

test-all: $(STAMP)  ## run all tests before a release: hours; SHARD=2/7 for a part
	$(BIN)/python .ci/test_all.py --jobs=$(JOBS) $(if $(SHARD),--shard=$(SHARD))

bench: $(STAMP)  ## compare with other programs: over an hour on an idle machine; see bench/README.md
	for b in step "step --trains=lora" breakdown input startup "startup --network=sd15" checkpoints sample; do \
		on=; case $$b in breakdown) on="JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=";; esac; \
		env $$on $(BIN)/python -m bench.$$b || exit 1; done

docs: $(STAMP)  ## build the documentation in docs/_build; a warning is an error
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## fix style and format automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## check the annotations of medjax/, bench/ and launch/
	$(BIN)/mypy

clean:  ## remove the environments, caches and demo output
	rm -rf .venv .venv-* .test-all .pytest_cache .mypy_cache .ruff_cache workdirs/demo build dist docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
