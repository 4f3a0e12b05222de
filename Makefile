# `make demo` and `make test` work from a fresh clone: each sets up .venv first, which does nothing
# when .venv is up to date.
#
#   PYTHON=/path/to/python3.12   the Python to set up with (3.11, 3.12 or 3.13)
#   ENV=/path/to/environment     use this environment as it is, without any set-up (vLLM for CUDA, say)
#   ARGS="..."                   further arguments for demo, test or bench
#   WORKERS=1                    test with so many processes (2); 0 tests in pytest's own

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-v2 test-fast check-seams lint bench clean

ARGS ?=
# An engine of the suite computes with one thread. Files stay whole, since their tests share engines.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

ifdef ENV
BIN := $(ENV)/bin
setup:
else
BIN := .venv/bin
RUNNER := $(shell command -v python3 || command -v $(or $(PYTHON),python))
setup:
	$(if $(RUNNER),,$(error No Python was found: install Python 3.11, 3.12 or 3.13, or name one with PYTHON=/path/to/python3.12))
	@$(RUNNER) tools/bootstrap.py
endif

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## generate with vLLM alone and with Kangaroo, side by side
	@$(BIN)/vllm-kangaroo demo $(ARGS)

test: setup ## run the test suite
	@$(PYTEST) $(ARGS)

test-v2: setup ## run the tests of vLLM's V2 model runner, under Triton's interpreter
	@$(BIN)/python tools/setup_v2.py
	@PYTHONPATH="$(CURDIR)/.v2:$(CURDIR)/tests/v2/interpreter:$$PYTHONPATH" TRITON_INTERPRET=1 \
	TRITON_DEFAULT_BACKEND=cpu VLLM_USE_V2_MODEL_RUNNER=1 $(PYTEST) tests/v2 $(ARGS)

test-fast: setup ## run the quick tests (no engine, no set-up), in a minute and a half
	@$(PYTEST) --ignore tests/e2e -m "not e2e and not slow" $(ARGS)

check-seams: setup ## compare every seam with the releases of vLLM that are served, fetched once (470 MB)
	@$(BIN)/python tools/check_seams.py $(ARGS)

lint: setup ## ruff check, ruff format --check, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup ## measure speed and acceptance against vLLM alone
	@$(BIN)/vllm-kangaroo bench $(ARGS)

clean: ## remove .venv, caches and build outputs
	rm -rf .venv .v2 .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
