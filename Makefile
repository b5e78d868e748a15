# The two commands of a fresh machine: make quickstart, make test. Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-deepspeed check docs format clean chaos bench bench-gpu

$(BIN)/hfpretrain: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: $(BIN)/hfpretrain
	PATH="$(abspath $(BIN)):$$PATH" sh recipes/quickstart.sh

test: $(BIN)/hfpretrain
	$(BIN)/python -m pytest --numprocesses 2

check: $(BIN)/hfpretrain
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py tests/test_docs.py tests/test_recipes_shipped.py

# What `make test` skips where DeepSpeed, which takes a while to build, is not installed.
test-deepspeed: $(BIN)/hfpretrain
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deepspeed]'
	$(BIN)/python -m pytest tests/test_deepspeed.py

# The documentation as pages, in site/. Another folder: make docs SITE=folder.
SITE := site
docs: $(BIN)/mkdocs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(abspath $(SITE))

$(BIN)/mkdocs: $(BIN)/hfpretrain
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# Kills and signals real runs and prints a table; about a quarter of an hour on two cores. It belongs in docs/reliability.md.
chaos: $(BIN)/hfpretrain
	cd tests && ../$(BIN)/python -m chaos

# Minutes each, on an otherwise idle machine; results belong in benchmarks/README.md.
bench: $(BIN)/hfpretrain
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/speed.py --precision bf16
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/data.py

# With the Python that has PyTorch for CUDA: no installation, no network.
bench-gpu:
	$(PYTHON) benchmarks/speed.py --device cuda

format: $(BIN)/hfpretrain
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
