# Thin on purpose: each target is one command that can be typed by hand.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LAVIS  := salesforce-lavis==1.0.2

.PHONY: demo models test check docs bench install clean

demo: $(VENV)/demo     ## train, evaluate and show GIT-LLM on real data, on a CPU
	$(BIN)/python -m examples.easyvqa.demo

models: $(VENV)/demo   ## the demonstration's models alone, to train on own pictures
	$(BIN)/python -m examples.easyvqa.demo --models-only

test: install          ## all fast tests; a file's tests stay in one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: install         ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: install          ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install         ## training steps on a CPU beside the article's: half an hour, writes benchmarks/results/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks cpu

install: $(VENV)/installed

# pip resumes from its cache after an interruption; a stamp is written only when all is there.
$(VENV)/demo: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[host,demo,web]'
	$(BIN)/python -m pip install --no-deps $(LAVIS)
	$(BIN)/gitllm doctor
	touch $@

$(VENV)/installed: $(VENV)/demo
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[host,demo,eval,web,docs,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
