# Every target installs what it needs into .venv; `make -j` is safe.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# torch's threads spin where they wait: on a machine shared with others that is many times slower
export OMP_WAIT_POLICY ?= PASSIVE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# processes that run tests
WORKERS ?= 2
DEMO_DOCUMENT ?= examples/demo_document.txt
DEMO_QUESTION ?= What is the occupation of William Talbot?

.PHONY: demo test test-gpu lint type fmt bench exactness ci

# torch first and constrained, so that a build for the machine at hand is taken and kept
.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(PIP) torch && $(PIP) -e . && touch $@

.venv/.installed: .venv/.core lab/pyproject.toml
	$(PIP) -e '.[dev,ecosystem]' -e lab && touch $@

demo: .venv/.core
	@$(BIN)/remamba ask --document $(DEMO_DOCUMENT) --question "$(DEMO_QUESTION)" --compare

test: .venv/.installed
	$(BIN)/python -m pytest -n $(WORKERS)

test-gpu: .venv/.installed
	$(BIN)/python -m pytest -m gpu

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: .venv/.installed
	$(BIN)/mypy

fmt: .venv/.installed
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: .venv/.installed
	$(BIN)/remamba bench generate

exactness: .venv/.installed
	$(BIN)/python -m tests.exactness

ci: lint type test
