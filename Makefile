# Everything a newcomer needs: `make serve`. Needs Python 3.11 or newer, with venv, and make. With a C++ compiler the engine
# is several times faster on a CPU, and `make test` needs one.

PYTHON ?= python3
# Where to take torch from, for those who want another build of it than the default index has.
TORCH_INDEX ?=
# Flags handed on to `waybill serve`, for example ARGS="--port 9000 --max-seqs 8".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install serve model test prove bench docs lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Waybill needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch into $(VENV) (the largest part; a minute or two)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "Installing the rest"
	@$(PIP) --editable ".[dev]"
	@touch $(STAMP)

model: install
	@$(BIN)/waybill model fetch

serve: install
	$(BIN)/waybill serve --host 127.0.0.1 --port 8000 --store adapters_store $(ARGS)

test: model
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

prove: model
	$(BIN)/python -m pytest tests/long
	@if docker info >/dev/null 2>&1; then $(BIN)/python tests/long/prove_docker.py; \
	else echo "No Docker engine here: tests/long/prove_docker.py was not run."; fi

# Flags in ARGS, for example ARGS="--quick"; see docs/benchmarks.md.
bench: model
	@$(BIN)/python -m benchmarks $(ARGS)

# The parts of docs/api.md that follow from the code.
docs: install
	$(BIN)/python -m tests.docs.api_reference

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .clients models build server/engine/native/built *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
