# `make` lists what there is. CI runs these targets and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test cluster lint format clean

help: ## list the targets
	@grep -hE '^[a-z.]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z.]+):.*## /  \1\t/' | expand -t 12

.venv: $(INSTALLED) ## a virtual environment with everything in it

# The stamp is older than pyproject.toml where the list of packages may have changed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11; say another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv \
	    || { echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## train on the embedded digits under exact and under sage, and compare
	$(BIN)/sage run digits --reducer exact --runs runs/demo
	$(BIN)/sage run digits --reducer sage --runs runs/demo
	$(BIN)/sage report runs/demo --output runs/demo

test: $(INSTALLED) ## run every test
	$(BIN)/pytest -q

NODES ?= 4
cluster: $(INSTALLED) ## a real SLURM on this machine until Ctrl-C; as root: make cluster RATE=100mbit
	@$(BIN)/python tests/slurm/cluster.py --nodes $(NODES) $(if $(RATE),--rate $(RATE))

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sage tests
	$(BIN)/pyright

format: $(INSTALLED) ## put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built or cached, but neither .venv nor runs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
