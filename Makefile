# Each target makes .venv, installs what it needs, and runs; running again reuses what is there.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= out/demo
FUZZ_SECONDS ?= 3600

# What `make oldest` tries, of the lower bounds of these extras.
OLDEST := zoo commands search clip hub buckets gguf keras stream

.PHONY: demo page test optimised check parity oldest browser notebooks fuzz docs results gpu format clean

demo: .venv/installed-demo
	$(BIN)/python -m experiments.demo --workdir=$(WORKDIR)

page: | $(WORKDIR)/forest .venv/installed-page
	$(BIN)/python -m experiments.serve --forest=$(WORKDIR)/forest --index=$(WORKDIR)/indexes

$(WORKDIR)/forest:
	$(error $(WORKDIR) has no forest yet: run make demo first)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist=loadgroup -q

# Without the flags by which tests/conftest.py has XLA compile quickly.
optimised: .venv/installed-dev
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist=loadgroup -q

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: .venv/installed-parity
	$(BIN)/python -m pytest -n 2 --dist=loadgroup -q -m parity tests

oldest: out/oldest/installed
	out/oldest/bin/python -m pytest -q -n 2 tests/reports/test_card.py tests/experts/test_card.py \
	  tests/experts/test_checkpoints.py tests/layer_store/test_packing.py tests/search/test_index.py \
	  tests/language/test_clip_tokens.py tests/fitting/test_fit.py tests/model_files/test_remote.py

browser: .venv/installed-browser
	$(BIN)/python -m pytest -n 2 --dist=loadgroup -q -m browser tests

notebooks: .venv/installed-notebooks
	$(BIN)/python -m pytest -n 2 -q -m notebook tests/colab

fuzz: .venv/installed-fuzz
	$(BIN)/python -m tests.model_files.fuzz_atheris -max_total_time=$(FUZZ_SECONDS) out/fuzz/corpus

docs: .venv/installed-docs
	$(BIN)/python docs/site/build.py

# Hours on a quiet machine; make results QUICK=--quick takes minutes.
results: .venv/installed-parity
	$(BIN)/python -m experiments.benchmarks.results $(QUICK)

# Ten minutes on a machine with an NVIDIA GPU.
gpu: .venv/installed-demo .venv/installed-cuda12
	$(BIN)/python -m experiments.benchmarks.gpu $(QUICK)

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv out build

# uv trusts the certificates that this machine trusts, as pip does.
out/oldest/installed: export UV_SYSTEM_CERTS = 1
out/oldest/installed: setup.cfg
	rm -rf out/oldest
	$(PYTHON) -m venv out/oldest
	out/oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	out/oldest/bin/uv pip install --quiet --python out/oldest/bin/python --resolution lowest-direct \
	  --requirements setup.cfg $(OLDEST:%=--extra=%)
	out/oldest/bin/uv pip install --quiet --python out/oldest/bin/python "pytest<9.2" pytest-xdist
	@touch $@

# A stamp an extra: installed again only when setup.cfg changes.
.venv/installed-%: setup.cfg | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "probex_jax needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
