# Each target works as the first command on a machine that has Python 3.11 or newer with venv.
# `make` alone lists them.

PYTHON ?= python3
PYTEST_ARGS ?=
BIN := .venv/bin

# Jupyter reads no settings and no kernels but the ones of .venv: `make test` sees what a new user would see.
JUPYTER_HOME := $(CURDIR)/.venv/jupyter
ISOLATED := env -u JUPYTER_PATH -u JUPYTER_CONFIG_PATH \
	JUPYTER_CONFIG_DIR=$(JUPYTER_HOME)/config JUPYTER_DATA_DIR=$(JUPYTER_HOME)/data \
	JUPYTER_RUNTIME_DIR=$(JUPYTER_HOME)/runtime IPYTHONDIR=$(JUPYTER_HOME)/ipython \
	JUPYTER_PREFER_ENV_PATH=1 JUPYTER_PLATFORM_DIRS=1

.PHONY: help demo lab notebooks pictures test coverage soak mutations lint lint-js format bench bench-view \
	compare-view clean
.NOTPARALLEL:

help:
	@echo "make demo        run the quick start in a real kernel and print what it did"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make notebooks   run the notebooks and save their outputs anew"
	@echo "make pictures    take the pictures for the README anew"
	@echo "make test        all tests: unit, contracts, JavaScript, browser, notebooks"
	@echo "make coverage    how much of the engine's core its tests run; fails below 95 % of any file"
	@echo "make soak        the long part: load, faults, what is left over; SOAK_ARGS='callables --seed 7'"
	@echo "make mutations   break the code on purpose, and see the tests fail"
	@echo "make lint        ruff, mypy, import directions, and biome where Node is"
	@echo "make format      rewrite the code as ruff wants it"
	@echo "make bench       compare with other tools"
	@echo "make bench-view  the live view of 100, 1,000 and 10,000 jobs in a browser"
	@echo "make compare-view  which jobs failed and why, as others show it"
	@echo "make clean       remove .venv and every cache"

demo: .venv/.stamp-demo
	@$(ISOLATED) $(BIN)/python notebooks/run.py notebooks/01-quickstart.ipynb

lab: .venv/.stamp-demo
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
		$(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: .venv/.stamp-demo
	$(ISOLATED) $(BIN)/python notebooks/run.py --save

pictures: .venv/.stamp-test
	bash .ci/system-packages
	$(ISOLATED) $(BIN)/python notebooks/pictures.py

test: .venv/.stamp-test
	bash .ci/system-packages
	$(MAKE) node_modules/.stamp
	node --test tests/js/*.test.js
	$(ISOLATED) $(BIN)/python -m pytest $(PYTEST_ARGS) tests
	$(ISOLATED) $(BIN)/python -m pytest $(PYTEST_ARGS) --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval-sanitize.cfg notebooks

# Measured in this process: what a test runs in a kernel or a process of its own does not count.
CORE := arrea_nb/_ledger.py arrea_nb/_places.py arrea_nb/_policy.py arrea_nb/_broadcast.py \
	arrea_nb/workers/_output.py arrea_nb/workers/_spool.py arrea_nb/workers/_shell.py arrea_nb/workers/_process.py
CORE_TESTS := tests/test_ledger.py tests/test_ledger_model.py tests/test_places.py tests/test_output.py tests/test_bad_input.py \
	tests/test_contracts_*.py tests/test_from_arrea.py tests/test_presenter.py \
	$(addprefix tests/faults/test_,bugs.py callables.py no_room.py subscribers.py clock_and_fork.py)

coverage: .venv/.stamp-dev
	@mkdir -p .cache
	$(ISOLATED) $(BIN)/python -m coverage run -m pytest -m "not stops_callables" $(PYTEST_ARGS) $(CORE_TESTS)
	@below=0; for file in $(CORE); do \
		$(BIN)/python -m coverage report --include=$$file --fail-under=95 || below=1; done; exit $$below

soak: .venv/.stamp-test
	$(ISOLATED) $(BIN)/python tests/soak/run.py $(SOAK_ARGS)

mutations: .venv/.stamp-test
	$(ISOLATED) $(BIN)/python tests/mutations.py $(MUTATIONS_ARGS)

lint: .venv/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory lint-js; \
		else echo "without Node the JavaScript is not linted"; fi

lint-js: node_modules/.stamp
	node_modules/.bin/biome check

format: .venv/.stamp-dev node_modules/.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	node_modules/.bin/biome check --write

bench: .venv/.stamp-dev
	$(BIN)/python tests/benchmarks/run.py

bench-view: .venv/.stamp-test
	bash .ci/system-packages
	$(ISOLATED) $(BIN)/python tests/benchmarks/view.py

compare-view: .venv/.stamp-bench
	bash .ci/system-packages
	$(ISOLATED) $(BIN)/python tests/benchmarks/compare_view.py $(COMPARE_ARGS)

clean:
	rm -rf .venv .cache node_modules build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; a stamp says which extra of pyproject.toml it has.
.venv/.stamp-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "arrea_nb needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
		{ echo "$(PYTHON) -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@mkdir -p $(JUPYTER_HOME)
	@touch $@

# Tools for the JavaScript, of the versions that package.json names; no lock file, which would name a registry.
node_modules/.stamp: package.json
	npm install --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@
