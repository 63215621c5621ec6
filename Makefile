# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.11 or newer, make and a package registry.

PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3))
BIN := .venv/bin
INSTALLED := .venv/installed
# Two processes, because the tests are measured against a machine with two cores; files stay whole for their fixtures.
# What is measured runs by itself, after everything else.
PYTEST := $(BIN)/python -m pytest

.PHONY: help install demo test accept catalogs constraints clean

help:
	@echo "make demo     install, build the tiny corpus from the offline Earth Engine, train on it, probe it"
	@echo "make test     install, then lint, types and tests"
	@echo "make accept   every acceptance test; needs the shared folder beside this one (../shared)"
	@echo "make catalogs write catalogs/ again, from recipes, modality files and the offline Earth"
	@echo "make clean    remove .venv, out and the caches"

install: $(INSTALLED)

# torch comes first and by itself, so that the pinned build is the one that everything after it finds.
$(INSTALLED): pyproject.toml constraints.txt mmbuild/stream/_chunks.c
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mmbuild needs Python 3.11 or newer, found '$(PYTHON)'; name another: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv"; "$(PYTHON)" -m venv .venv; }
	@echo "installing into .venv (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/mmbuild build recipes/tiny.yaml out/tiny
	$(BIN)/mmbuild show out/tiny 000006 -o out/sample.png
	$(BIN)/python -m train.pretrain train/configs/tiny.yaml --resume
	$(BIN)/python -m train.probe out/tiny_mpmae out/tiny
	@echo
	@echo "made, from synthetic pixels:"
	@echo "  out/tiny                  the corpus: cube.zarr, items.parquet, collection.json, stats.json"
	@echo "  out/sample.png            one sample with all its modalities"
	@echo "  out/tiny_mpmae            the trained model: checkpoints, log.csv, loss.png"

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) tests --ignore=tests/acceptance -n 2 --dist loadfile

accept: $(INSTALLED)
	@test -d ../shared || { echo "make accept needs the shared folder beside this one: $(abspath ../shared) is not there"; exit 1; }
	$(PYTEST) tests/acceptance --ignore=tests/acceptance/measured -n 2 --dist loadfile
	$(PYTEST) tests/acceptance/measured

catalogs: $(INSTALLED)
	$(BIN)/python catalogs/make.py

# What `pip install -c` gets: every version as tested, torch by its public version, nothing from a local path.
constraints: $(INSTALLED)
	@{ echo "# Every version as tested; made by 'make constraints'."; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/^\(torch==[^+]*\)+.*/\1/'; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean:
	rm -rf .venv out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
