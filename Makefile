# Every target works from a fresh clone: what it needs is installed into .venv first.

PYTHON := python3.11 python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
READY := $(VENV)/.ready
# peers.py needs 5 GB of other libraries, and objective.py hours: they are started by hand.
BY_HAND := benchmarks/common.py benchmarks/processes.py benchmarks/peers.py benchmarks/objective.py
BENCHMARKS := $(filter-out $(BY_HAND),$(wildcard benchmarks/*.py))

# A file's tests share its fixtures, so one worker takes them all; tests/conftest.py puts the slow files first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# Where nothing compiled is kept, each process that a test starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# Tests run side by side: each has one thread, and small tables gain nothing from more.
test contract docs: export OMP_NUM_THREADS = 1
test contract docs: export POLARS_MAX_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help setup browser postgres demo test lint contract wheel ci bench site docs clean

help: ## Show this list (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with all that development needs; quick when nothing changed

$(BASE): pyproject.toml
	@for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "twotower needs Python 3.11 or newer, got none named $(PYTHON); install it, or say make PYTHON=/path/to/it." >&2; \
	  exit 2; \
	fi; \
	echo "Installing into $(VENV) with $$($$found --version); PyTorch is large, so the first time takes a while."; \
	$$found -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(READY): $(BASE)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

demo: $(BASE) ## Train on MovieLens-100K into demo/model, compare, recommend (about a minute), write its report
	$(BIN)/python examples/demo.py --out demo/model

test: $(READY) ## Run the tests and the examples in docstrings; at least 92 % of the lines
	$(BIN)/python -m slipcover --json --out .coverage.json \
	  -m pytest $(PARALLEL) --durations 15 --doctest-modules tests src
	$(BIN)/python -m slipcover --merge .coverage.json --out .coverage.json --skip-covered --fail-under 92

lint: $(READY) ## Check the formatting, ruff, mypy --strict and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

contract: $(READY) ## Run the property tests and schemathesis with 500 random examples each (over half an hour)
	TWOTOWER_EXAMPLES=500 $(BIN)/python -m pytest $(PARALLEL) -m hypothesis tests

browser: ## Install chromium, in which the report is tested, by apt-get where there is none
	@command -v chromium >/dev/null && exit 0; \
	echo "Installing chromium and a font for Chinese with apt-get."; \
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$as_root apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -qq -y --no-install-recommends \
	  -o Acquire::Retries=3 chromium fonts-noto-cjk >/dev/null

postgres: ## Install PostgreSQL with pgvector, for the test of that export, by apt-get where there is none
	@ls /usr/share/postgresql/*/extension/vector.control >/dev/null 2>&1 && exit 0; \
	echo "Installing PostgreSQL with pgvector with apt-get."; \
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$as_root apt-get update -qq && \
	package=$$(apt-cache pkgnames postgresql- | grep -E '^postgresql-[0-9]+-pgvector$$' | sort -V | tail -n 1) && \
	if [ -z "$$package" ]; then \
	  echo "make postgres needs a package postgresql-NN-pgvector, got none from apt-cache; install pgvector by hand." >&2; \
	  exit 2; \
	fi; \
	DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -qq -y --no-install-recommends \
	  -o Acquire::Retries=3 $$package >/dev/null

wheel: $(READY) ## Build wheel and sdist, install the wheel alone into an empty environment, train, answer
	rm -rf dist build/wheel
	$(BIN)/python -m build --quiet --outdir dist
	$(if $(WHEEL_PYTHON),$(WHEEL_PYTHON),$(BIN)/python) -m venv build/wheel
	build/wheel/bin/python -m pip install --disable-pip-version-check --quiet dist/*.whl
	cd build/wheel && PYTHONPATH= bin/python -I ../../tests/installed.py

ci: export TWOTOWER_BROWSER = 1
ci: export TWOTOWER_POSTGRES = 1
ci: export TWOTOWER_SITE = 1
ci: setup browser postgres lint site test wheel ## What the continuous integration runs: these seven, in this order

bench: $(READY) ## Print every figure that we claim; one: make bench BENCHMARKS=benchmarks/loader.py
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

site: $(READY) ## Build the documentation site in both languages into site, without a network; warnings are errors
	rm -rf site
	@for language in en zh; do \
	  TWOTOWER_DOCS_LANGUAGE=$$language $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet \
	    -c docs -d build/docs/$$language . site/$$language & builds="$$builds $$!"; \
	done; \
	for build in $$builds; do wait $$build || exit 1; done
	cp docs/_static/languages.html site/index.html

docs: $(READY) ## Check that links resolve and that the commands and code shown are current; build the site
	$(BIN)/python -m pytest tests/test_docs.py
	$(MAKE) site

clean: ## Remove the demo, what was built, and all caches; .venv stays
	rm -rf demo build dist site benchmarks/out .coverage.json .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
