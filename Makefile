# `make` lists the targets. CI runs these targets and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
NATIVE := sage/_C.abi3.so

.DEFAULT_GOAL := help
.PHONY: gpu gpu-rehearsal help demo test test-all test-plain test-oldest fuzz stress mutants cluster native sanitize emulate build-emulate cuda bench-check docs pictures map lint graph format clean cloud-check

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /  \1\t/' | expand -t 16

.venv: $(INSTALLED) ## create the virtual environment .venv with all dependencies

# The stamp is older than pyproject.toml where the list of packages may have changed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; give another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv \
	    || { echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	SAGE_NATIVE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

native: $(NATIVE) ## build the native extension; without it SAGE runs in pure PyTorch

# Not during pip's installation, because it needs torch's headers, which are installed only then.
$(NATIVE): $(INSTALLED) setup.py $(wildcard csrc/*.* csrc/*/*)
	$(BIN)/python setup.py --quiet build_ext --inplace

sanitize: ## run the CPU kernels under the address and undefined-behaviour sanitizers
	$(CXX) -std=c++20 -O1 -g1 -ffp-contract=off -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all \
	    tests/csrc/kernels.cpp -o build-sanitize && ./build-sanitize; status=$$?; rm -f build-sanitize; exit $$status

emulate: build-emulate ## run the CUDA kernels on the CPU, with an emulation of CUDA
	./build-emulate; status=$$?; rm -f build-emulate; exit $$status

build-emulate:
	$(CXX) -x c++ -std=c++20 -O1 -U_FORTIFY_SOURCE -ffp-contract=off -Wall -Wextra -Werror tests/csrc/emulated.cpp -o build-emulate

cuda: $(INSTALLED) ## compile and link the CUDA kernels for every architecture, and list their resources; fails if it cannot
	rm -f $(NATIVE)
	$(BIN)/python setup.py build_ext --inplace | grep "native extension: .* CUDA"
	$(BIN)/python -c 'from sage.ops.native import on; print("on CPU:", *sorted(on("CPU"))); print("on CUDA:", *sorted(on("CUDA"))); \
	    exit(not (on("CPU") and on("CUDA")))'
	$(BIN)/python benchmarks/kernel_resources.py
	if command -v cuobjdump; then cuobjdump --list-elf --list-ptx $(NATIVE); fi

gpu: ## check and measure ops, reducers and mounts on an NVIDIA GPU, in 8 minutes; needs torch and nvcc
	$(PYTHON) -m benchmarks.gpu

gpu-rehearsal: $(INSTALLED) $(NATIVE) ## run the script of `make gpu` with small inputs on the CPU
	$(BIN)/python -m benchmarks.gpu --rehearsal

bench-check: $(INSTALLED) $(NATIVE) ## measure kernels, reducers and whole steps; fails if one reaches less than half of its goal
	$(BIN)/python benchmarks/kernels.py --check --output /dev/null
	$(BIN)/python benchmarks/goals.py --check --output build/goals
	$(BIN)/python benchmarks/reduce_step.py --reducers topk sage --check --output /dev/null

# CI sets DEMO_EPOCHS and DEMO_SECONDS, because it only checks that every command succeeds.
DEMO_SECONDS ?= 5
DEMO_RUNS ?= runs/demo
demo: $(INSTALLED) ## train on the bundled digits with exact and sage, compare them, and predict other clusters
	$(BIN)/sage run digits --reducer exact --mount ddp --runs $(DEMO_RUNS) $(if $(DEMO_EPOCHS),--epochs $(DEMO_EPOCHS))
	$(BIN)/sage run digits --reducer sage --runs $(DEMO_RUNS) $(if $(DEMO_EPOCHS),--epochs $(DEMO_EPOCHS))
	$(BIN)/sage report $(DEMO_RUNS) --output $(DEMO_RUNS)
	$(BIN)/sage calibrate digits --reducers exact bf16 topk sage powersgd --seconds $(DEMO_SECONDS) --steps 5 \
		--output $(DEMO_RUNS)/calibration.json
	$(BIN)/sage predict $(DEMO_RUNS)/calibration.json --world-size 2 16 256 --ranks-per-node 1 \
		--bandwidth 1e7 1e8 1e9 1e10 1e11 --output $(DEMO_RUNS)

# Two workers more for tests/slurm, which mostly wait: see tests/side_by_side.py.
JOBS ?= 2
WORKERS = $(if $(filter-out 0,$(JOBS)),$(shell expr $(JOBS) + 2),0)
test: $(INSTALLED) $(NATIVE) ## run the tests on two processors; in one process: make test JOBS=0
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "not thorough"

test-all: $(INSTALLED) $(NATIVE) ## run the tests, and the thorough ones that repeat a test with more cases
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile
	SAGE_NATIVE=0 $(BIN)/pytest -q -n $(JOBS) -k "not gloo and 3]" tests/reducers/test_conformance.py

# No code of a reducer depends on the extension, and tests/ops/test_native.py compares the two to the bit.
PLAIN := tests/ops/test_ops.py tests/comm/test_packing.py tests/reducers/test_reducers.py
test-plain: $(INSTALLED) ## run the tests of ops and reducers again, on threads, without the native extension
	SAGE_NATIVE=0 $(BIN)/pytest -q -n $(JOBS) -k "not gloo" $(PLAIN)

# Another set: make test-oldest OLDEST_PYTHON=python3.13 PINS=/dev/null OLDEST=.venv-oldest/newest
OLDEST_PYTHON ?= python3.11
OLDEST ?= .venv-oldest/$(OLDEST_PYTHON)
PINS ?= tests/oldest.txt
# Old packages with newer ones that they need, and newer names of torch, are deprecated.
IGNORED := -W ignore::DeprecationWarning -W ignore::FutureWarning -k "not gloo"
QUICK := tests/test_versions.py tests/test_config.py tests/ops tests/comm/test_packing.py tests/comm/test_threads.py tests/comm/test_torch_names.py \
	tests/comm/test_wire.py tests/reducers/test_conformance.py tests/reducers/test_reducers.py tests/reducers/test_sidco.py tests/reduction/test_error_feedback.py \
	tests/train/test_faults.py tests/train/test_optimizers.py tests/train/test_train.py tests/mount/test_mount_ddp.py \
	tests/data/test_images.py tests/data/test_text.py tests/models/test_bert.py tests/models/test_imagenet.py \
	tests/cli/test_cli.py tests/cli/test_imports.py tests/registry/test_registry.py tests/records/test_record.py \
	tests/report/test_report.py tests/predict/test_fit.py
test-oldest: ## run the quick tests with the oldest versions that SAGE supports, in .venv-oldest; for a nightly run
	@if ! $(OLDEST_PYTHON) -c '' 2>/dev/null; then \
	    echo "skipped: there is no $(OLDEST_PYTHON); give another: make test-oldest OLDEST_PYTHON=python3.12"; exit; fi; \
	set -ex; test -x $(OLDEST)/bin/pip || $(OLDEST_PYTHON) -m venv $(OLDEST); \
	SAGE_NATIVE=0 $(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(PINS) \
	    -e '.[images,speech,text]' hypothesis pytest pytest-xdist pyyaml setuptools; \
	$(OLDEST)/bin/python -c 'import sys, numpy, torch; from sage.ops import native; \
	    print("Python", sys.version.split()[0], "torch", torch.__version__, "NumPy", numpy.__version__, "native:", native.MISSING)'; \
	$(OLDEST)/bin/pytest -q -n $(JOBS) -m "not slow and not thorough" $(IGNORED) $(QUICK); \
	rm -rf $(OLDEST)/runs; \
	$(MAKE) --no-print-directory demo BIN=$(OLDEST)/bin INSTALLED= DEMO_RUNS=$(OLDEST)/runs DEMO_EPOCHS=1 DEMO_SECONDS=1

CASES ?= 2000
fuzz: $(INSTALLED) $(NATIVE) ## run the property tests with a larger budget: make fuzz CASES=10000
	SAGE_FUZZ=$(CASES) $(BIN)/pytest -q -m fuzz

pictures: $(INSTALLED) ## make the pictures of the documentation from a sweep of short runs; needs Chromium
	$(BIN)/python benchmarks/pictures.py --output docs/pictures

map: $(INSTALLED) $(NATIVE) ## measure this machine in 3 minutes, and make the README's map of the fastest methods
	$(BIN)/python benchmarks/map.py --measure

LOAD ?= 8
TIMES ?= 3
stress: $(INSTALLED) $(NATIVE) ## run the tests of clusters, jobs and checkpoints on a busy machine: make stress TIMES=3
	$(BIN)/python tests/stress.py --load $(LOAD) --times $(TIMES) $(TESTS)

mutants: $(INSTALLED) $(NATIVE) ## insert known faults, one at a time, and check that a test fails at each: make mutants WORD=residual
	$(BIN)/python tests/mutate.py --jobs $(JOBS) $(WORD)

NODES ?= 4
cluster: $(INSTALLED) ## start a real SLURM on this machine until Ctrl-C; as root: make cluster RATE=100mbit
	@$(BIN)/python tests/slurm/cluster.py --nodes $(NODES) $(if $(RATE),--rate $(RATE))

# Their versions are those that jobs/cloud was written for. Each brings a hundred packages, hence the environments.
CLOUD := cluster=aws-parallelcluster==3.16.1 skypilot=skypilot[aws]==0.14.1
cloud-check: ## load the configurations of jobs/cloud with AWS ParallelCluster and SkyPilot; needs neither a cloud nor an account
	@for tool in $(CLOUD); do name=$${tool%%=*} && \
	    { test -x build/$$name/bin/pip || $(PYTHON) -m venv build/$$name; } && \
	    build/$$name/bin/python -m pip install --quiet --disable-pip-version-check "$${tool#*=}" && \
	    HOME="$$PWD/build/$$name" build/$$name/bin/python tests/cloud_check.py $$name || exit 1; done

docs: $(INSTALLED) ## build the documentation site into build/site; with SAGE_CHECK_LINKS=1 request every external link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(INSTALLED) ## check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sage tests
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright

graph: $(INSTALLED) ## draw the layers of sage/ and the imports between them: docs/pictures/layers.svg
	$(BIN)/python benchmarks/layers.py

format: $(INSTALLED) ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove build products and caches, but not .venv and runs
	rm -rf $(NATIVE) build dist *.egg-info .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
