# Needs Python >= 3.11, make and git. `make demo` shows the library at work, `make test` checks everything.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := ray,dask,testing,dev,docs,bench
BACKENDS := serial threads process dask ray
CONFORMANCE := $(BACKENDS:%=conformance-%)
REPORTS := build/conformance
FAULTS := $(BACKENDS:%=faults-%)
FAULT_REPORTS := build/faults
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1
unexport POLYEXEC_BACKEND POLYEXEC_REQUIRE PYTHONPATH PYTHONHOME

.PHONY: demo test lint types unit suite backends benchmarks conformance $(CONFORMANCE) packaging docs bench bench-local \
	bench-events bench-primitives soak $(SOAK) soak-table table faults $(FAULTS) judges test-cluster clean

demo: $(READY)
	@$(BIN)/python examples/demo.py $(BACKENDS)

# Those that take longest come first; much of their time is spent waiting for engines.
test: $(READY)
	@$(MAKE) --no-print-directory lint types
	@$(MAKE) --no-print-directory -j2 --keep-going --output-sync=target conformance-ray backends conformance-dask suite \
		conformance-process unit conformance-serial conformance-threads packaging docs benchmarks
	@echo "make test: all passed"

lint: $(READY)
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@echo "== types"
	@$(BIN)/mypy

unit: $(READY)
	@echo "== core, command, examples and adapters"
	@$(PYTEST) tests/core tests/cli tests/examples tests/adapters

suite: $(READY)
	@echo "== the suite against faulty backends"
	@$(PYTEST) tests/suite

backends: $(READY)
	@echo "== what is particular to a backend"
	@$(PYTEST) tests/backends tests/local tests/soak tests/security

benchmarks: $(READY)
	@echo "== the benchmark, in the smallest size"
	@$(PYTEST) tests/benchmarks

packaging: $(READY)
	@echo "== packaging"
	@$(PYTEST) tests/packaging

docs: $(READY)
	@echo "== documentation"
	@$(BIN)/mkdocs build --strict --site-dir build/site
	@$(PYTEST) tests/docs

# Every backend is tried even if one fails, so that the reports are complete.
conformance: $(READY)
	@$(MAKE) --no-print-directory --keep-going $(CONFORMANCE)

$(CONFORMANCE): conformance-%: $(READY)
	@echo "== conformance of $*"
	@mkdir -p $(REPORTS)
	@POLYEXEC_REQUIRE=ray,dask $(PYTEST) --pyargs polyexec.testing --backend "$*" --backend-report "$(REPORTS)/$*.json"

table: $(READY)
	@for backend in $(BACKENDS); do test -f "$(REPORTS)/$$backend.json" || { \
		echo "make table: no report on $$backend yet: run 'make conformance' first" >&2; exit 1; }; done
	@$(BIN)/python -m polyexec.testing.table $(BACKENDS:%=$(REPORTS)/%.json) > build/conformance.md
	@mv build/conformance.md docs/reference/conformance.md

# Each fault of the matrix done to each backend, and the page that says what came of it; takes a quarter of an hour.
faults: $(READY)
	@$(MAKE) --no-print-directory -j2 --keep-going --output-sync=target faults-ray faults-dask faults-process faults-threads \
		faults-serial
	@$(BIN)/python -m polyexec.testing.faults.page $(BACKENDS:%=$(FAULT_REPORTS)/%.json) > build/faults.md
	@mv build/faults.md docs/reference/faults.md

$(FAULTS): faults-%: $(READY)
	@echo "== faults of $*"
	@mkdir -p $(FAULT_REPORTS)
	@POLYEXEC_REQUIRE=ray,dask $(PYTEST) --pyargs polyexec.testing.faults --backend "$*" --fault-report "$(FAULT_REPORTS)/$*.json"

bench: $(READY)
	@$(BIN)/python benchmarks/layer_cost.py ray dask

# Against other local executors; takes a quarter of an hour on a quiet machine.
bench-local: $(READY)
	@$(BIN)/python benchmarks/local_engine.py --json docs/benchmarks/local-engine.json --table docs/benchmarks/local-engine.md

# What recording events costs, in rounds with and without it.
bench-events: $(READY)
	@$(BIN)/python benchmarks/events_cost.py

# Actor calls and stream items, beside a bare pipe and Ray's own actors.
bench-primitives: $(READY)
	@$(BIN)/python benchmarks/primitives.py process threads dask ray

# The tests that other projects have for executors, on our adapters; takes half an hour.
judges: $(READY)
	@for backend in $(BACKENDS); do $(BIN)/python tests/adapters/judges/cpython.py $$backend \
		--json build/judges/cpython-$$backend.json; done

# Clusters of several nodes on this machine, which take minutes to start and to lose.
test-cluster: $(READY)
	@$(PYTEST) --timeout 300 tests/cluster

# Everything very often on every backend, with what grows and what is left: takes about two hours on a quiet machine.
# Sizes that are not given are those of polyexec.testing.soak.Sizes.
SOAK := $(BACKENDS:%=soak-%)
SOAKED := build/soak
SIZES_dask := tasks=100000 kills=500 executors=100 objects=2000 actors=200 streams=200 outstanding=1000
SIZES_ray := tasks=100000 kills=500 executors=10 objects=2000 actors=200 streams=200 outstanding=1000

soak: $(READY)
	@$(MAKE) --no-print-directory --keep-going $(SOAK)

$(SOAK): soak-%: $(READY)
	@echo "== soak of $*"
	@$(BIN)/python -m polyexec.testing.soak "$*" $(SIZES_$*:%=--size %) --json "$(SOAKED)/$*.json"

soak-table: $(READY)
	@$(BIN)/python -m polyexec.testing.soak.table $(BACKENDS:%=$(SOAKED)/%.json) > build/soak.md
	@mv build/soak.md docs/reference/soak.md

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache

# A half-made environment has no stamp, and is made again from scratch.
$(READY): pyproject.toml
	@python=$${PYTHON:-}; \
	for name in $$python python3 python3.14 python3.13 python3.12 python3.11 python; do \
		"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { found=$$name; break; }; \
	done; \
	if [ -z "$${found:-}" ]; then echo "make: no Python >= 3.11 found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	echo "== setting up $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV) || { \
		echo "make: $$found cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet -e ".[$(EXTRAS)]" || { \
		echo "make: pip could not install the dependencies; its message is above" >&2; exit 1; }
	@touch $@
