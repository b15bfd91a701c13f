# Needs make and Python 3.11 or newer; everything else goes into .venv.
#
#   make quickstart              ingest and search real documents with the bundled demo models; kept in .quickstart
#   make quickstart MODEL=0.6B   the same with the published models (0.6B, 4B, 8B), downloaded on first use
#   make test                    lint, types and the whole test suite
#   make test-frameworks         the adapters' tests, with the newest and then the lowest supported frameworks
#   make bench                   the models' speed on this CPU beside other libraries (see benchmarks/README.md)
#   make bench-gpu               the same on a CUDA device, for all three sizes, in ten minutes
#
# Variables: PYTHON (the interpreter to start from), MODEL, PIP_FLAGS (for every pip install), PYTEST_FLAGS, BENCH_FLAGS,
# DIST.

PYTHON ?= python3
MODEL ?= demo
DIST ?= dist
PIP_FLAGS ?=
BENCH_FLAGS ?=
PYTEST_FLAGS ?= -n auto --maxprocesses 4 --dist worksteal

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt $(PIP_FLAGS)
CHECKED := core integrations tests examples benchmarks

# Of the Qdrant helper only what meets other frameworks and the client; the rest does not depend on their versions.
ADAPTERS := $(filter-out tests/integrations/test_qdrant_%,$(wildcard tests/integrations/test_*.py)) \
  $(addprefix tests/integrations/test_qdrant_,layouts.py frameworks.py) \
  tests/test_conformance.py tests/test_examples.py
EXTRAS := qdrant,parquet,evaluate,synthesize,langchain,llama-index,haystack,test

.PHONY: quickstart test test-frameworks test-lowest lint format bench bench-gpu demo-pair wheel clean help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/.installed
	@$(BIN)/qwen-retrieval quickstart --model $(MODEL) --store .quickstart

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-frameworks: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_FLAGS) $(ADAPTERS)
	$(MAKE) test-lowest

test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest $(PYTEST_FLAGS) $(ADAPTERS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.models $(BENCH_FLAGS)
	$(BIN)/python -m benchmarks.layer invariant
	$(BIN)/python -m benchmarks.load callers --model simulated
	$(BIN)/python -m benchmarks.haystack_copies

bench-gpu: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.models --gpu-table $(BENCH_FLAGS)

demo-pair: .venv-demo/.installed
	.venv-demo/bin/python demo/train.py

wheel: $(VENV)/.created
	$(PIP) wheel --quiet --no-deps $(PIP_FLAGS) --wheel-dir $(DIST) .

clean:
	rm -rf .venv .venv-demo .venv-lowest .quickstart dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file says that an environment holds what pyproject.toml and constraints.txt ask for.

%/.created:
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "make: Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) -V 2>&1); run: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $*/bin/python || { echo "creating $*"; $(PYTHON) -m venv $* || { echo \
	  "make: $(PYTHON) could not create a virtual environment (Debian and Ubuntu: install python3-venv)" >&2; exit 1; }; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing qwen-retrieval and what it needs (a few minutes the first time)"
	@$(INSTALL) -e '.[qdrant]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing qwen-retrieval, its extras and the test tools (a few minutes the first time)"
	@$(INSTALL) -e '.[$(EXTRAS),ray,train,mteb]'
	@touch $@ $(VENV)/.installed

.venv-lowest/.installed: .venv-lowest/.created pyproject.toml constraints-lowest.txt
	@echo "installing the lowest supported version of each framework into .venv-lowest"
	@.venv-lowest/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-lowest.txt $(PIP_FLAGS) \
	  -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.created pyproject.toml constraints.txt
	@$(INSTALL) -e '.[bench,test,haystack]'
	@touch $@

.venv-demo/.installed: .venv-demo/.created demo/requirements.txt pyproject.toml constraints.txt
	@.venv-demo/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_FLAGS) \
	  -r demo/requirements.txt -e '.[train,evaluate]'
	@touch $@

.PRECIOUS: %/.created
