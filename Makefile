# Two commands to remember: `make run` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUITE ?= fewshot
SEEDS ?= 1
# More options for bench (of pytest) and bench-peers, such as BENCH=--benchmark-compare, PEERS=--quick
BENCH ?=
PEERS ?=
# Two processes with a thread each; one that has no tests left takes half of the other's, so that
# tests that stand together, and share what is made for them, mostly run together.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
PEERS_DATA = $(or $(METABENCH_DATA),$(wildcard ../shared/data))

.PHONY: run test test-all bench bench-peers lint clean help
.DEFAULT_GOAL := help

help:  ## What can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

run: $(VENV)/.ready  ## Run the fewshot suite with one seed and print its table
	$(BIN)/metabench run --suite $(SUITE) --seeds $(SEEDS)

test: $(VENV)/.ready-test  ## Run the tests that CI runs
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.ready-test  ## Run all tests, the slow ones too
	$(PYTEST)

bench: $(VENV)/.ready-test  ## Time everything that is registered, and save the times
	$(BIN)/metabench bench -- --benchmark-autosave $(BENCH)

bench-peers: $(VENV)/.ready-peers  ## Compare with other libraries, and write leaderboards/measurements/speed.csv
	METABENCH_DATA=$(PEERS_DATA) $(BIN)/python -m metabench.testing.peers \
	  --out leaderboards/measurements/speed.csv $(PEERS)

lint: $(VENV)/.ready-test  ## Check style, types, import directions and the tree
	BIN=$(BIN) ci/lint

clean:  ## Delete the virtual environment and what tools left behind (no results)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# A folder without its mark is one whose making was interrupted: it is made anew.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "metabench needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.ready: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

$(VENV)/.ready-peers: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[peers]'
	touch $@
