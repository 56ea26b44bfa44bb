# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint types docs protos check-protos train-demo clean

demo: $(VENV)/.runtime
	$(BIN)/python -m examples.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

# The documentation site, into build/site; it needs nothing from the network to be read.
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

protos: $(VENV)/.test
	$(BIN)/python -m protos.generate
	$(BIN)/python -m protos.page

check-protos: $(VENV)/.test
	$(BIN)/python -m protos.generate --check
	$(BIN)/python -m protos.page --check

# Trains the shipped bundle anew, or goes on where it stopped:
# make train-demo DATA=folder-with-CIFAR-10 [TEACHER=resnet56.th]
RUN := runs/resnet18-cifar10-demo
train-demo: $(VENV)/.test
	$(if $(DATA),,$(error expected DATA=folder-with-CIFAR-10))
	$(BIN)/neucodex-train fit training/recipes/resnet18-cifar10-demo.toml --resume \
		--data $(DATA) $(if $(TEACHER),--teacher $(TEACHER)) --out $(RUN)
	$(BIN)/neucodex-train evaluate $(RUN) --data $(DATA)
	$(BIN)/neucodex-train export $(RUN) --data $(DATA) --evaluation $(RUN)/evaluation.json

# The demo needs the runtime alone; tests add the training side (PyTorch) and the tools.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt shared/codec/_native.c | $(VENV)/bin/python
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP) --editable '.[demo,torch,train,test]'
	touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
