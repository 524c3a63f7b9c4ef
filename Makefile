# The two commands of the README: `make demo` and `make test`. Both install what they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo
INSTALLED := $(VENV)/.installed

.PHONY: install demo test style quality

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(if $(shell $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) and print("new")' 2>/dev/null),,$(error \
		Python 3.11 or newer is needed and '$(PYTHON)' is not; name one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12))
	$(if $(shell $(PYTHON) -c 'import venv, ensurepip; print("has")' 2>/dev/null),,$(error \
		'$(PYTHON)' has no venv module; on Debian and Ubuntu: apt-get install python3-venv))
	@echo "installing into $(VENV), which takes some minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,quality]'
	@touch $@

demo: install
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no \
		scripts/train.py --output_dir $(DEMO_DIR)
	@$(BIN)/python scripts/demo.py $(DEMO_DIR)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
