# `make demo` and `make test` do all the set-up themselves; see CONTRIBUTING.md.
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# pip writes a start script of its own, which imports more than pyvirt does.
LAUNCHER = $(BIN)/python cli/launcher.py >$(BIN)/pyvirt && chmod 755 $(BIN)/pyvirt
MODULES := $(wildcard $(foreach room,cli devices native qmp vmm,$(room)/*.py $(room)/*/*.py) *.py)
NATIVE := $(filter-out native/tests/% native/fuzz/% native/proofs/% native/_%,\
  $(wildcard native/*.[ch] native/*/*.[ch] native/*.cdef native/build.py))

.PHONY: demo test quick check prove coverage mutants fuzz soak bench bench-report setup packages clean

demo: setup
	@$(BIN)/pyvirt demo

test: setup
	@$(BIN)/python -m tests

# What needs no stock kernel, and so no lab.
quick: setup
	@$(BIN)/python -m tests --quick

check: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@MYPYPATH=build $(BIN)/mypy -p pyvirt
	@$(BIN)/python -m pyvirt.native.check
	@$(BIN)/python -m pytest -qq -p no:cacheprovider tests/unit/test_rooms.py tests/unit/native/test_rooms.py
	@echo "check: clean"

# Needs Debian's frama-c-base, cvc4 and spin, which nothing else does; minutes.
prove: setup
	@$(BIN)/python -m pyvirt.native.prove

# What of the C code the tests run. Needs Debian's llvm.
coverage: setup
	@$(BIN)/python -m tests.coverage

# Whether the tests find small bugs; goes on where it was interrupted.
mutants: setup
	@$(BIN)/python -m tests.mutants

# So many seconds of processor time for each target, or for TARGET alone.
SECONDS ?= 60
fuzz: setup $(VENV)/.fuzz
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(TARGET)

VMS ?= 300
AT_ONCE ?= 20
# Some minutes; draws with what the benchmarks draw with.
soak: setup $(VENV)/.bench
	@$(BIN)/python benches/soak.py $(VMS) $(AT_ONCE)

# All parts, or those that PART names, with RUNS rounds of each instead of as many as they have.
bench: setup $(VENV)/.bench
	@$(BIN)/python -m pyvirt.benches --part="$(PART)" --runs="$(RUNS)"

# docs/performance.md, its plots and README.md's table, of the rounds that are kept.
bench-report: setup $(VENV)/.bench
	@$(BIN)/python -m pyvirt.benches --report

setup: packages $(VENV)/.ready build/bundle

# The list is compared with what dpkg knows; only a difference costs more than 0.1 s.
packages:
	@missing=$$(sed 's/#.*//' packages.debian | xargs dpkg-query -W -f '$${Package} $${db:Status-Status}\n' 2>&1 \
	  | sed -n 's/.*no packages found matching //p; s/ not-installed$$//p; s/ config-files$$//p' | xargs); \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "pyvirt needs packages that are not installed; run: sudo apt-get install -y --no-install-recommends $$missing" >&2; exit 1; fi; \
	echo "installing $$missing"; \
	mkdir -p build; \
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; } \
	  >build/apt.log 2>&1 || { tail -n 5 build/apt.log >&2; exit 1; }

$(VENV)/.ready: pyproject.toml setup.py cli/launcher.py $(NATIVE) | build/pyvirt
	@echo "setting up $(VENV)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(LAUNCHER)
	@touch $@

# What the benchmarks draw with, and nothing else needs.
$(VENV)/.bench: $(VENV)/.ready
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@$(LAUNCHER)
	@touch $@

# What the targets in Python are run by, and nothing else needs.
$(VENV)/.fuzz: $(VENV)/.ready
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@$(LAUNCHER)
	@touch $@

# What the launcher has the modules from; one that is changed later is read by itself.
build/bundle: $(VENV)/.ready $(MODULES)
	@$(BIN)/python cli/bundle.py $@

# The checkout as a package, for the launcher and for type checkers.
build/pyvirt:
	@mkdir -p build && ln -sfn .. $@

clean:
	rm -rf build dist $(VENV) *.egg-info native/_native.*[co]
