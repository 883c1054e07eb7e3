PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEMPORAL := torch-geometric-temporal==0.56.2

.PHONY: setup demo test test-slow lint package lowest docs evidence evidence-quick clean

setup: $(VENV)/.installed

# torch-geometric-temporal goes in without its dependencies: it asks for torch-sparse, which it does not need.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TEMPORAL)
	touch $@

demo: setup
	$(BIN)/tsjt demo $(DEMO_FLAGS)

# The tests that take longer than ten seconds each have tiny cases here, and are run by test-slow.
test: setup
	$(BIN)/pytest -n auto --dist worksteal -m "not slow" $(PYTEST_FLAGS)

test-slow: setup
	$(BIN)/pytest -n auto --dist worksteal -m slow $(PYTEST_FLAGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The sdist and the wheel, built and used in an empty environment outside of this folder.
package: setup
	$(BIN)/python tests/packaging/check_package.py

# A part of the tests with the lowest versions that pyproject.toml allows: downloads 3 GB, since torch brings CUDA along
# there; LOWEST_FLAGS="--torch 2.13.0" spares that.
lowest: setup
	$(BIN)/python tests/packaging/check_lowest.py $(LOWEST_FLAGS)

# The site; the tutorials are run for it, with one thread a process. Warnings and dead links are errors.
docs: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -j 2 -b html docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

# Whether transfer helps, on real cities (TSJT_CITIES says where they lie): all of it takes hours and goes on where it
# stopped; the quick one takes a minute or two.
evidence: setup
	$(BIN)/python benchmarks/evidence.py $(EVIDENCE_FLAGS)

evidence-quick: setup
	$(BIN)/python benchmarks/evidence.py --quick $(EVIDENCE_FLAGS)

clean:
	rm -rf $(VENV) docs/_build docs/_generated build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
