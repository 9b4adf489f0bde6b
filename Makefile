# make test        installs what it needs, then lints, runs all tests, and rehearses every config for a GPU
# make test-fast   the tests that start no command in a process of its own: under two minutes
# make rehearse    every stage of every config once on fake CUDA tensors, and what torch.compile makes of its blocks
#                  (make test has the training steps and encoding of each; its tests, all steps of the smallest)
# make lint        style, formatting and types
# make demo        installs what it needs, then trains, encodes, generates and scores; ends with runs/demo/report/report.html
# make app         a page in the browser on the demo's result: generate, compress, compare; Ctrl-C ends it
# All of them need a Debian-like machine with make and Python 3.10-3.13, and nothing else.

VENV := .venv
BIN := $(VENV)/bin
CONFIG := configs/demo.yaml
# The first Python on the path that the project supports; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

.PHONY: install test test-fast rehearse demo app lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.10-3.13 found: install one, or run make PYTHON=/path/to/python"; exit 1; }
	@# Debian ships venv apart from Python.
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { test "$$(id -u)" = 0 && apt-get update -q \
		&& apt-get install -qy python3-venv && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } \
		|| { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest
	$(BIN)/python tools/rehearse.py --all --quick

test-fast: install
	$(BIN)/pytest -m "not slow"

rehearse: install
	$(BIN)/python tools/rehearse.py --all

demo: install
	$(BIN)/python tools/run_stages.py --config $(CONFIG)

app: $(VENV)/.installed-ui
	@test -d runs/demo/ldm || { echo "runs/demo has no trained model yet: run make demo first"; exit 1; }
	$(BIN)/python tools/app.py runs/demo

$(VENV)/.installed-ui: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ui]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
