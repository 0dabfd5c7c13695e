# Everything a fresh machine needs: CPython 3.11 or newer with venv and pip, and make. Nothing outside .venv is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := pipeline model tools
SOURCES := $(shell find $(ROOMS) -name '*.py') setup.py pyproject.toml constraints.txt
# DALI has Linux wheels only; elsewhere everything but its backend works.
comma := ,
DALI := $(if $(filter Linux,$(shell uname -s)),dali-cuda13$(comma),)
EXTRAS := $(DALI)train,report,tensorboard,imagenet,dask,remote
DEMO_OUT ?= demo-out

.PHONY: demo test soak oldest lint types clean help

help:
	@echo 'make demo   the whole journey on a built-in dataset, a few minutes'
	@echo 'make test   lint, strict types and all tests, against a normal install'
	@echo 'make soak   the fault tests over long ranges, an hour or two'
	@echo 'make oldest all tests with the oldest versions that are taken of every package, in a .venv-oldest'
	@echo 'make lint   style alone     make types   types alone     make clean   remove .venv and build leftovers'

demo: $(VENV)/installed-demo
	$(BIN)/lmdali demo --out $(DEMO_OUT)

# A test process for each CPU, up to four: docs/testing.md says why.
test: lint types
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# The fault tests of `make test` over long ranges, an hour or two: docs/testing.md says what each variable is.
soak: $(VENV)/installed-test
	LMDALI_POWER_CUTS=1000000 LMDALI_FLIPS=100000 LMDALI_LENGTHS=1 LMDALI_MANIFEST_EDITS=1000000 LMDALI_SIGNALS=50 \
		LMDALI_ALL_POINTS=1 LMDALI_KILLS=500 LMDALI_KILL_WORKERS=4 LMDALI_TRAIN_KILLS=500 LMDALI_APNGS=100000 \
		LMDALI_CACHE_KILLS=500 \
		$(BIN)/python -m pytest -o timeout=7200 -s tests/test_power_cuts.py tests/test_damage.py tests/test_manifest.py \
		tests/test_storage_faults.py tests/test_convert.py tests/test_png_chunks.py tests/test_saved_run.py \
		tests/test_shard_cache.py tests/test_conversion_upload.py

# All tests with the oldest version of every package that setup.py takes. torch 2.10 comes with a Triton whose
# interpreter does not run the GPU kernels of the tests.
oldest:
	rm -rf build *.egg-info
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c oldest.txt '.[$(EXTRAS),faiss]' \
		pytest pytest-timeout pytest-xdist hypothesis pillow 'moto[server]'
	.venv-oldest/bin/python -m pip install --quiet --no-deps triton==3.7.0
	rm -rf build *.egg-info
	.venv-oldest/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy -p lmdali.pipeline -p lmdali.model -p lmdali.tools

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A normal install, so that a forgotten package or data file is found here and not by a user. `build/` would bring back
# modules that were deleted from the source.
$(VENV)/installed-demo: $(BIN)/python $(SOURCES)
	rm -rf build *.egg-info
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[train,report]'
	rm -rf build *.egg-info
	touch $@

$(VENV)/installed-test: $(BIN)/python $(SOURCES)
	rm -rf build *.egg-info
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[$(EXTRAS),dev]'
	rm -rf build *.egg-info
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
