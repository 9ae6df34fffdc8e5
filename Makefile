# make demo    environment, install, build, and the main job: tune a frozen T5 on dialogues
# make test    the same set-up, then lint, the site of the docs and the whole suite
# Both work from a clean clone, in any order, and a second time without rebuilding.
# make gpu     on a machine with a GPU, whose Python has torch and triton: build, check, time, test, most evidence first,
#              within nine minutes; one JSON, written after each step and copied to $OUT (docs/gpu.md)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml constraints.txt

# what `make gpu` builds into and runs: nothing is installed or downloaded there
ANY_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: setup demo demo-short cuda dist test test-extras test-adapters test-oldest check-fast docs lint format \
	benchmark fuzz interpret-banks interpret-layers emulate-cuda gpu gpu-dry-run tune record-launches \
	compile-launches clean tables matrix-torch findings matrix canary

setup: $(STAMP)

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[t5,test,docs]"
	$(BIN)/python -m mop_kernels.env_report
	touch $@

# Waiting OpenMP threads sleep: those that spin take the cores from each other on a machine with other work
demo demo-short: export OMP_WAIT_POLICY := passive

# make demo CORPUS=DIR runs the demo on your own corpus; each run replaces runs/demo
demo: setup
	$(BIN)/mop-t5 demo --overwrite $(if $(CORPUS),--corpus $(CORPUS))

demo-short: setup
	$(BIN)/mop-t5 demo --short --overwrite --output runs/demo-short

# The CUDA kernels, which an installation beside a torch without CUDA leaves out: tests/cuda reads what nvcc makes of
# them. Where no nvcc is found there is nothing to do.
NVCC := $(if $(CUDA_HOME),$(wildcard $(CUDA_HOME)/bin/nvcc),$(or $(shell command -v nvcc),\
	$(wildcard /usr/local/cuda/bin/nvcc)))

cuda: build/.cuda

build/.cuda: $(STAMP)
	$(if $(NVCC),MOP_KERNELS_WITH_CUDA=1 TORCH_CUDA_ARCH_LIST= $(BIN)/python setup.py --quiet build_ext --inplace)
	mkdir -p build
	touch $@

# one thread per process: the two workers share the cores. Bytecode is kept, where a variable forbids it, too: the
# processes that tests start would compile all sources anew
test: lint docs cuda
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	$(MAKE) -j2 --output-sync test-extras interpret-banks interpret-layers emulate-cuda gpu-dry-run

# Packages that transformers imports, slowly, as soon as they are installed: in a folder of their own
EXTRAS := build/extras

test-extras: export PYTHONPATH := $(EXTRAS)
test-extras: export OMP_NUM_THREADS := 1
test-extras: setup $(EXTRAS)/.installed
	$(BIN)/python -m pytest tests/extras

$(EXTRAS)/.installed: tests/extras/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(EXTRAS) -r $<
	touch $@

# More versions of the libraries that mop_kernels.accelerate takes, each in a folder of its own. Not part of `make test`:
# run them before a release, or nightly. adapters needs transformers 4.
test-adapters: TESTS := tests/extras/test_accelerate_compacter.py
test-oldest: TESTS := tests/extras/test_accelerate_peft.py tests/extras/test_accelerate_lycoris.py
test-adapters test-oldest: export OMP_NUM_THREADS := 1
test-adapters test-oldest: test-%: setup build/%/.installed
	PYTHONPATH=build/$* $(BIN)/python -m pytest $(TESTS)

# The first, a middle and the newest release of transformers, each with the other libraries of its month, and a table of
# what passed. A release is a file in tests/extras/matrix. TRANSFORMERS="5.15.1 5.24.0" takes these, TESTS= other tests.
TRANSFORMERS := $(patsubst transformers-%.txt,%,$(notdir $(wildcard tests/extras/matrix/transformers-*.txt)))
MATRIX := $(TRANSFORMERS:%=build/matrix/transformers-%)
matrix canary: TESTS := tests/t5
matrix canary: export OMP_NUM_THREADS := 1
matrix: setup
	-$(MAKE) --keep-going $(MATRIX:%=%/.installed)
	$(BIN)/python tests/matrix.py $(MATRIX) --tests $(TESTS)

build/adapters/.installed build/oldest/.installed $(MATRIX:%=%/.installed): build/%/.installed: tests/extras/%.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/$* -r $<
	touch $@

# The kernel tests on several releases of torch (docs/versions.md). Needs 10 GB of disk; TESTS= takes other tests.
matrix-torch: TORCH := 2.10.0 2.13.0 2.15.0
matrix-torch: setup
	PYTHON=$(abspath $(BIN)/python) tests/matrix_torch.sh $(TORCH)

# The files of a release in dist/, and their tests: contents, sizes, and each installed into a fresh environment
dist: export OMP_NUM_THREADS := 1
dist: setup build/release-tools/.installed
	$(BIN)/python tests/release/make_dist.py
	MOP_RELEASE=1 $(BIN)/python -m pytest -s tests/release

build/release-tools/.installed: tests/release/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

# Search for files at which a reader breaks (SECURITY.md): make fuzz SECONDS=600. Not part of `make test`. Guided by
# coverage where atheris is installed. FOLDER may hold it: pip install --target FOLDER atheris; PYTHONPATH=FOLDER make fuzz
SECONDS := 600

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/search.py $(SECONDS)

# Which test breaks on what is not released yet: the newest versions that fit each other, pre-releases included. They are
# resolved against .venv, so that torch stays as it is. CANARY="transformers torch" tries a torch, too.
CANARY := transformers tokenizers huggingface_hub accelerate safetensors
RESOLVED := import json; print(*("{name}=={version}".format(**package["metadata"]) for package in \
	json.load(open("build/canary/report.json"))["install"]), sep="\n")
canary: setup
	rm -rf build/canary
	mkdir -p build/canary
	$(BIN)/python -m pip install --quiet --dry-run --pre --upgrade --report build/canary/report.json $(CANARY)
	$(BIN)/python -c '$(RESOLVED)' > build/canary/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --target build/canary -r build/canary/requirements.txt
	touch build/canary/.installed
	$(BIN)/python tests/matrix.py build/canary --tests $(TESTS)

# Before each commit, in less than a minute on two cores
FAST_TESTS := tests/test_imports.py tests/test_readme.py tests/kernels/test_reference.py tests/kernels/test_mop_ffn.py \
	$(wildcard tests/kernels/test_phm_*.py) $(addprefix tests/t5/test_,methods.py adapter.py data_corpus.py metrics.py)

check-fast: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(FAST_TESTS)

# The site of README.md, docs/ and the API reference, in build/site; warnings are errors
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# The Triton kernels without a GPU: its interpreter is chosen when triton is imported, so in processes of its own
BANK_TESTS := $(addprefix tests/kernels/test_,mop_ffn.py mop_ffn_experts.py gradients.py)
interpret-banks interpret-layers: export TRITON_INTERPRET := 1
interpret-banks interpret-layers emulate-cuda: export OMP_NUM_THREADS := 1

interpret-banks: setup
	$(BIN)/python -m pytest $(BANK_TESTS) -k triton

interpret-layers: setup
	$(BIN)/python -m pytest tests/kernels -k triton $(addprefix --ignore=,$(BANK_TESTS))

# The CUDA kernels without a GPU, with one host thread per CUDA thread. SANITIZE=address finds an access out of range,
# SANITIZE=thread a missing barrier; TESTS= takes other tests.
emulate-cuda: TESTS := tests/kernels
emulate-cuda: RUNTIME := $(if $(SANITIZE),$(shell c++ -print-file-name=lib$(if $(filter thread,$(SANITIZE)),t,a)san.so))
emulate-cuda: setup
	library=$$($(BIN)/python tests/cuda/emulation.py $(if $(SANITIZE),--sanitize $(SANITIZE))) && \
	MOP_KERNELS_EMULATE_CUDA=$$library $(if $(SANITIZE),LD_PRELOAD=$(RUNTIME) ASAN_OPTIONS=detect_leaks=0) \
	$(BIN)/python -m pytest $(TESTS) -k cuda

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -type f)

benchmark: setup
	$(BIN)/python -m pytest --benchmark

# The tables of docs/comparison.md and docs/rouge.md: installs the libraries that they compare, measures, and renders the
# pages, in about ten minutes. `git diff` then shows what has changed. TABLES="rouge kronecker" measures these alone.
TABLE_FOLDERS := $(patsubst benchmarks/tables/environments/%.txt,build/tables/%/.installed,\
	$(wildcard benchmarks/tables/environments/*.txt))

tables: setup build/adapters/.installed $(TABLE_FOLDERS)
	$(BIN)/python -m benchmarks.tables.run $(TABLES)

$(TABLE_FOLDERS): build/tables/%/.installed: benchmarks/tables/environments/%.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/tables/$* -r $<
	touch $@

# What other libraries do (findings/README.md): runs each script, prints a table, fails if a behaviour has changed.
# FINDINGS="NAME NAME" runs some.
findings:
	$(PYTHON) findings/run.py $(FINDINGS)

# make gpu TUNE=1 tunes the launch configurations before the bank is timed: eight minutes more
gpu:
	$(ANY_PYTHON) -m benchmarks.gpu_run $(if $(TUNE),--tune)

gpu-dry-run:
	$(ANY_PYTHON) -m benchmarks.gpu_run --dry-run

tune:
	$(ANY_PYTHON) -m benchmarks.tune

# After a change of Triton's kernels, their launchers or their tests: writes tests/triton/launches.json, in two minutes
record-launches: setup
	OMP_NUM_THREADS=1 $(BIN)/python -O -m benchmarks.record_launches

# Compiles all of them: ARCH="90 80" for these GPUs, TRITON=FOLDER by the triton there (pip install --target FOLDER
# triton==3.6.0). Resumes where it stopped.
compile-launches: ARCH := 90
compile-launches: setup
	PYTHONPATH=$(TRITON) $(BIN)/python -m benchmarks.compile_table --summary --arch $(ARCH) \
	--results build/compiled_launches.jsonl

clean:
	rm -rf build dist *.egg-info $(STAMP) mop_kernels/_C*.so
