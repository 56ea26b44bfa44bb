# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint types protos check-protos clean

demo: $(VENV)/.runtime
	$(BIN)/python -m examples.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

protos: $(VENV)/.test
	$(BIN)/python -m protos.generate

check-protos: $(VENV)/.test
	$(BIN)/python -m protos.generate --check

# The demo needs the runtime alone; tests add the training side (PyTorch) and the tools.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[edge,cloud]'
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP) --editable '.[edge,cloud,torch,train,test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
