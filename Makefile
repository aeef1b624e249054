# Two commands do all the set-up: `make quickstart` and `make test`. VENV names the environment they make and use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test check bench install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@

quickstart: install
	PATH="$(abspath $(BIN)):$$PATH" bash pipelines/quickstart.sh

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# On images of your own: make bench IMAGES=folder
IMAGES ?= bench-glyphs

bench: install
	test -d $(IMAGES) || $(BIN)/leokit demo $(IMAGES)
	for size in 84 224; do $(BIN)/leokit bench extract $(IMAGES) --image-size $$size --repeat 2; done
	$(BIN)/leokit bench read
	for shots in 1 5; do $(BIN)/leokit bench meta-train --shots $$shots; $(BIN)/leokit bench eval --shots $$shots; done

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
