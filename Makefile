# What a person runs here is what CI runs. Everything happens in .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check notebooks clean

demo: .venv/installed
	mkdir -p out
	$(BIN)/sdkit generate "a red star on a blue background" --seed 7 -o out/star.png
	@echo "The picture lies in $(CURDIR)/out/star.png"

# One thread in each of two processes is twice as fast as two threads in one: threads wait for one another.
test: .venv/developed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# Whole notebooks, and a model of the true size of Stable Diffusion 1.5.
test-slow: .venv/developed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

check: .venv/developed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("sdkit needs Python 3.11 or newer; say which with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Run all six and keep them with their outputs; the last trains for ten minutes.
notebooks: .venv/developed
	$(BIN)/python notebooks/build.py $(ONLY)

clean:
	rm -rf .venv out site
