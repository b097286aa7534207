# What a person runs here is what CI runs. Everything happens in .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin

# One file or so for each library that sdkit works with: two minutes.
LOWEST := tests/test_noise.py tests/model tests/process/test_adapters.py tests/show/test_figures.py \
	tests/show/test_film.py tests/many/test_jobs.py tests/tasks/test_generate.py tests/tasks/test_read_prompt.py

.PHONY: demo test test-slow test-lowest coverage mutants check notebooks release clean

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

# At the lower bounds of pyproject.toml. Old libraries call what will go, of which the newest tell us.
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 -m "not slow" \
		-W ignore::DeprecationWarning -W ignore::FutureWarning $(LOWEST)

# The fast suite, and which lines of sdkit/ it does not reach.
coverage: .venv/developed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term --cov-fail-under=95

# Small faults, put one by one into what all the rest stands on: how many of them the tests see. Hours.
mutants: .venv/developed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[mutants]"
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run --max-children 1
	$(BIN)/python -m mutmut results

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

# Versions as old as these have no wheels for the newest Python: 3.11 and 3.12 have them.
.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e ".[adapters,batch,compel,plots,schedulers,test]"
	touch $@

# Run all six and keep them with their outputs; the last trains for ten minutes.
notebooks: .venv/developed
	$(BIN)/python notebooks/build.py $(ONLY)

# What goes to PyPI, in dist/. The wheel, alone in a new environment, must draw what this tree draws, to the byte.
release: .venv/developed
	rm -rf dist
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[release]"
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(PYTHON) -m venv "$$away/venv"; \
	"$$away/venv/bin/python" -m pip install --quiet -c constraints.txt dist/*.whl; \
	$(BIN)/sdkit generate "a red star on a blue background" --seed 7 -o "$$away/tree.png"; \
	cd "$$away"; venv/bin/sdkit generate "a red star on a blue background" --seed 7 -o wheel.png; \
	cmp tree.png wheel.png
	@echo "dist/ is ready; docs/releasing.md says what comes next"

clean:
	rm -rf .venv .venv-lowest dist out site
