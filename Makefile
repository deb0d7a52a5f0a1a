# Two commands: make quickstart, make test. Both make .venv where it is missing; they need Python 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
MODEL ?=
TRAINED_ON ?=
SEGMENTER ?=
SEGMENTER_ON ?=
OUT ?= quickstart-out

.PHONY: quickstart test check gallery install clean
quickstart: install
	$(BIN)/ctfoundry quickstart --out $(OUT) $(if $(DATA),--data $(DATA))
	@echo "The report: $(OUT)/report.html"

test: install check
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# docs/gallery.md and its pictures, from real scans (DATA, with SOURCES.csv), a model (MODEL, a run folder) and perhaps a SEGMENTER.
gallery: install
	$(BIN)/ctfoundry explain gallery --data $(DATA) --model $(MODEL) $(if $(TRAINED_ON),--trained-on "$(TRAINED_ON)") \
		$(if $(SEGMENTER),--segmenter $(SEGMENTER)) $(if $(SEGMENTER_ON),--segmenter-on "$(SEGMENTER_ON)") -o docs

install: $(VENV)/.installed

# torch alone and first, so that nothing else chooses its build; the rest under the same constraints.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
