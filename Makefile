# Every target sets up what it needs: only python3 (3.11 or newer) and make have to be there.
#   make run [ARGS="--out somewhere"]     make test [ARGS="-k memory"] [JOBS=0]     make PYTHON=python3.12 PIP_ARGS="--no-cache-dir" test
PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= logical
ARGS ?=

# Relative paths only: the folder's name may hold spaces.
BIN := .venv/bin/python
PIP := $(BIN) -m pip install $(PIP_ARGS)

.PHONY: help run test soak large check bench docs gpu clean
.DELETE_ON_ERROR:

help:
	@echo "make run    quickstart on the embedded digits, to a report"
	@echo "make test   all tests, on as many processes as there are processors (JOBS=0: in one)"
	@echo "make check  ruff, mypy, import contracts"
	@echo "make bench  speed measurements of perf/"
	@echo "make docs   documentation into docs/_build/html"
	@echo "make soak   the long tests: kills, damaged files, several processes"
	@echo "make large  every experiment on large data sets, a few steps on tiny trees: peak memory, what is refused"
	@echo "make gpu    the tests that need a CUDA device"
	@echo "make clean  caches and builds (.venv and runs stay)"

run: .venv/.installed-run
	$(BIN) -m incrlt.run experiments/quickstart.yaml $(ARGS)

test: .venv/.installed-test
	$(BIN) -m pytest -q -n $(JOBS) $(ARGS)

check: .venv/.installed-dev
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy
	.venv/bin/lint-imports

bench: .venv/.installed-test
	$(BIN) -m pytest perf -q --benchmark-only $(ARGS)

docs: .venv/.installed-docs
	$(BIN) -m sphinx -W --keep-going -b html docs docs/_build/html $(ARGS)

soak: .venv/.installed-test
	$(BIN) -m pytest -q --soak -m soak $(ARGS)

large: .venv/.installed-test .venv/.installed-timm
	$(BIN) tests/large_runs.py $(ARGS)

gpu: .venv/.installed-test
	$(BIN) -m pytest -q -m gpu $(ARGS)

clean:
	rm -rf build dist docs/_build docs/_api htmlcov .coverage .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .benchmarks
	find incrlt tests perf docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of packages; pyproject.toml newer than the stamp installs again.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "incrlt needs Python 3.11 or newer; '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 | head -n 1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "'$(PYTHON) -m venv .venv' failed; on Debian and Ubuntu install the package python3-venv"; \
	  exit 1; }
	@touch .venv/.created

.venv/.installed-run: .venv/.created pyproject.toml
	$(PIP) -e .
	@touch $@

.venv/.installed-%: .venv/.created pyproject.toml
	$(PIP) -e ".[$*]"
	@touch $@
