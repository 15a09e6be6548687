# Every target sets up what it needs: on a fresh machine `make demo` or `make test` is the first and only command.
#   make test PYTHON=python3.12           another interpreter (3.10 or newer)
#   make test JOBS=8                      so many processes share the tests; 0 is pytest without helpers
#   make demo PIP_ARGS="--index-url URL"  options for pip install
#   make fuzz RUNS=1000000 SEED=2         other inputs

PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
RUNS ?= 200000
SEED ?= 1
BIN := .venv/bin

PACKAGES := devices/smart_common devices/smart_devices runtime/smart_runtime train/smart_train train/smart_eval export/smart_export
# mypy refuses a folder without Python files, so folders come in once they have some.
SCRIPTS := $(wildcard examples benchmarks fuzz tools)
SCRIPTS := $(foreach folder,$(SCRIPTS),$(if $(wildcard $(folder)/*.py),$(folder)))

# A module found through these would hide an install step that is missing.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-browser check fuzz format clean

help:
	@echo "make demo    train, evaluate, export, compare and switch on handwritten digits (demo-out/)"
	@echo "make test    run the tests in two processes, slow ones left out"
	@echo "make test-browser  show the report page in headless Chromium, which must be installed"
	@echo "make check   lint, format, types, imports and the Python 3.10 lint"
	@echo "make fuzz    give 200,000 changed files to everything that reads a stranger's files (x86-64 only)"
	@echo "make format  rewrite the sources in the house format"
	@echo "make venv    create or renew .venv; the targets above do that themselves"
	@echo "make clean   delete .venv, caches and demo-out/"

# What a virtual environment depends on: the two files that say what is in it, the interpreter, and where it lies,
# since a copied or moved one still points at the old folder. Printed with the interpreter behind PYTHON, which may be
# the one of an activated .venv and then goes with it.
KEY = import hashlib, os, pathlib, sys; \
  sys.version_info >= (3, 10) or sys.exit("error: expected Python 3.10 or newer, got %s; pass another with PYTHON=" % sys.version.split()[0]); \
  parts = [pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]; \
  parts += [text.encode() for text in (sys.version, os.path.realpath(sys.executable), os.getcwd())]; \
  print(hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest(), os.path.realpath(sys.executable))

# The stamp is the first thing to go and the last to be written: an interrupted install leaves none.
venv:
	@set -e; \
	found=$$($(PYTHON) -c '$(KEY)'); \
	key=$${found%% *}; \
	if [ "$$(cat .venv/stamp 2>/dev/null)" = "$$key" ]; then exit 0; fi; \
	echo "creating .venv (the install takes some minutes)"; \
	rm -f .venv/stamp; \
	rm -rf .venv; \
	"$${found#* }" -m venv .venv; \
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev]' </dev/null; \
	printf '%s\n' "$$key" >.venv/stamp.new; \
	mv .venv/stamp.new .venv/stamp

demo: venv
	$(BIN)/python examples/01_demo.py

test: venv
	$(BIN)/python -m pytest -m "not slow and not browser" -n $(JOBS) --dist worksteal

test-browser: venv
	$(BIN)/python -m pytest -m browser -rs

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(PACKAGES) tests $(SCRIPTS)
	$(BIN)/mypy --strict --python-version 3.10 devices/smart_common devices/smart_devices runtime/smart_runtime
	$(BIN)/lint-imports
	$(BIN)/vermin --quiet --violations --no-tips --eval-annotations --target=3.10- $(PACKAGES)

fuzz: venv
	$(BIN)/python fuzz/fuzz_bundle.py --runs $(RUNS) --seed $(SEED)

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
