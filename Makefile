# `make demo` and `make test` do all the set-up: they create .venv, install what constraints.txt pins, and run.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: demo test check docs clean

demo: .venv/ready
	$(BIN)/deepreshape run --data digits --epochs 6 --private 8 --out $(OUT)

test: .venv/ready check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --cov --cov-report=term

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/docs-ready
	$(BIN)/sphinx-build -q -W --keep-going docs docs/build

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	@touch $@

# torch goes in first, so that nothing else pulls in a newer (and much larger) build of it
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"deepreshape needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	@touch $@

clean:
	rm -rf .venv runs docs/build .pytest_cache .ruff_cache .coverage
