# Every target makes .venv from nothing when it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test faults gpu check lint

help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(READY) ## compare three normalizations on the embedded digits (a few minutes of 2 cores)
	$(BIN)/normlab train -m normalization=none,batch,spectral name=demo train.until='20 epochs'

test: $(READY) ## run every test (10 to 20 minutes of 2 cores)
	$(BIN)/pytest -n 3 --dist worksteal -m ''

faults: $(READY) ## kill, damage and mislead it some 2,300 times; goes on where it stopped
	$(BIN)/python -m tests.faults

GPU_CASES := dcgan_32 dcgan_64 sngan_cnn sngan_resnet sngan_resnet_5
TECHNIQUES := $(filter-out none conditional_batch,$(basename $(notdir $(wildcard configs/technique/*.yaml))))

gpu: $(READY) $(GPU_CASES:%=outputs/gpu/%.json) $(TECHNIQUES:%=outputs/gpu/dcgan_64_%.json) ## on a GPU: tests and speeds, some 40 minutes; goes on where it stopped
	$(BIN)/pytest -n 4 -m '' tests/training/test_capture.py tests/data/test_batches.py

# Exit code 5 is a figure too, whose control was noisy and says so.
measured = $(BIN)/python scripts/benchmark.py gpu --json --picture $(@:.json=.png) $(1) > $@.part \
	|| [ $$? -eq 5 ] && mv $@.part $@

outputs/gpu/dcgan_64_%.json: | $(READY)
	@mkdir -p $(@D)
	$(call measured,--case dcgan_64 $*)

outputs/gpu/%.json: | $(READY)
	@mkdir -p $(@D)
	$(call measured,--case $*)

check: lint ## format, lint, types and the fast tests (a minute or two)
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(READY) ## format, lint and types
	$(BIN)/ruff format --check src scripts tests
	$(BIN)/ruff check src scripts tests
	$(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "error: $(PYTHON) is not Python 3.11 to 3.13; name one that is: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)
