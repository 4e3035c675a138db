# Two commands matter: `make demo` runs the whole chain on real candles, `make test` proves it.
# Everything is installed into .venv, at the versions of requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNEL := hrm/native/build/kernel.json

DURATION ?=
SPEED ?= max
DATA ?=
SESSION ?= last

.DEFAULT_GOAL := help
.PHONY: help setup backend browser-test demo test check static fix paper backtest replay drill torture bench train units clean

help:  ## Show the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(INSTALLED) $(KERNEL)  ## Create .venv with the locked versions, compile the native kernel

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, %s is %s: set PYTHON=" % (sys.executable, sys.version.split()[0]))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Without a compiler there is no kernel, which is no failure: another engine serves.
$(KERNEL): $(wildcard hrm/native/*.c hrm/native/*.h) hrm/native_build.py | $(INSTALLED)
	@$(BIN)/python -m hrm.native_build

demo: setup  ## Paper-trade real candles, then one JSON summary; DURATION= s, SPEED=, DATA= file
	@$(BIN)/python -m backend --demo --log-level ERROR & backend=$$!; \
	trap 'kill $$backend 2>/dev/null' EXIT; trap : INT; \
	$(BIN)/hrm-trader demo --json --speed $(SPEED) $(if $(DURATION),--duration $(DURATION)) $(if $(DATA),--data $(DATA))

test: check  ## Run every check and every test
	$(BIN)/python -m pytest -n 2 -m "integration or slow"

check: static  ## Run format, lint, types, import contracts and the fast tests
	$(BIN)/python -m pytest -n 2 -q -m "not integration and not slow"

static: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy backend daemon actors hrm tests benchmarks
	$(BIN)/lint-imports

drill: setup  ## Trade through the simulated broker while everything goes wrong, SEEDS= (20) times
	@$(BIN)/python -m benchmarks.drill --json --seeds $(or $(SEEDS),20)

torture: setup  ## Try EXAMPLES= (50,000) random lives of orders over a line that breaks
	HRM_ORDER_EXAMPLES=$(or $(EXAMPLES),50000) $(BIN)/python -m pytest -q tests/test_daemon/test_order_machine.py

fix: setup  ## Format and apply the safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

backend: setup  ## Serve the web backend on port 8000 beside the daemon of var/
	@$(BIN)/python -m backend

browser-test: setup  ## Drive a page in headless Chromium (installed with apt where it is missing)
	@command -v chromium >/dev/null || apt-get install -y chromium
	$(BIN)/python -m pytest -q tests/test_backend/test_browser.py

paper: setup  ## Run the daemon in paper mode on DATA=, as systemd would
	$(BIN)/hrm-trader run $(if $(DATA),--data $(DATA))

backtest: setup  ## Run the chain over DATA= candles as fast as it goes, one JSON result
	@$(BIN)/hrm-trader backtest --json --data $(or $(DATA),$(error DATA= must name a file of candles))

replay: setup  ## Replay a recorded session, SESSION= folder, id or last
	$(BIN)/hrm-trader replay $(SESSION)

bench: setup  ## Run the benchmarks and write benchmarks/results
	$(BIN)/python -m benchmarks.bus
	$(BIN)/python -m benchmarks.tick_to_order
	$(BIN)/python -m benchmarks.backend

train: setup  ## Train the released model again, on the embedded candles, into models/
	$(BIN)/hrm-train --steps 6000 --learning-rate 5e-4 --cost-bps 0.5 --contraction-weight 0 --out models

units: setup  ## Verify the systemd units with an ExecStart that exists here
	$(BIN)/python -m pytest -q tests/test_daemon/test_units.py

clean:  ## Remove what commands left behind: var/, runs/ and caches
	rm -rf var runs hrm/native/build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
