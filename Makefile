# SPDX-License-Identifier: Apache-2.0
#
# Thin: each target is one command of the tools. `make help` lists them.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Only a board that was not asked for may be replaced by `native`: see demo.
BOARD_GIVEN := $(filter-out undefined,$(origin BOARD))
BOARD ?= ast1030_evb
EXAMPLE ?= examples/split_mnist.toml
JOBS ?= 2

# The environment's own Python first: it starts faster than a wrapper on PATH.
# One that is too old is better than none: setup then says what to type.
PYTHON ?= $(shell for python in .venv/bin/python python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && exit; done; command -v python3)

VENV := .venv/bin
# Not the script `sparcl`: its first line does not work in every folder.
SPARCL := $(VENV)/python -m sparcl_mcu.host_tools.cli
export PLATFORMIO_CORE_DIR := $(CURDIR)/.venv/platformio
export PATH := $(CURDIR)/$(VENV):$(PATH)

# What names a file reaches a shell as a variable, whatever is in it.
export EXAMPLE PORT SEED

# For `make results`:
SWEEPS ?= $(basename $(notdir $(wildcard examples/sweeps/*.toml)))

# For `make fuzz`: for all programs together, on JOBS cores.
FUZZ_SECONDS ?= 600

.PHONY: help setup demo boards bench bench-check results powercut test test-slow test-all distribution coverage fuzz mutants analyze lint format wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  BOARD=name   the board of demo (default $(BOARD); make boards lists them)"
	@echo "  PORT=device  the serial port of a real board"
	@echo "  SEED=number  the seed of demo"
	@echo "  PYTHON=path  the Python (3.11 or newer) that .venv is made with"
	@echo "  ID=cut       the power cut that powercut shows step by step, the mutant that mutants shows"
	@echo "  MUTANTS=number  mutants of each language"
	@echo "  JOBS=number  tests run at a time (default $(JOBS))"
	@echo "  FUZZ_SECONDS=number  how long fuzz takes (default $(FUZZ_SECONDS))"
	@echo "  SPARCL_NO_APT=1   never install system packages"

setup: ## install what the other targets need (they call this)
	@python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
		echo 'setup: error: no Python found; type:' >&2; \
		echo '         sudo apt install python3 python3-venv' >&2; \
		echo '       or name one: make PYTHON=/path/to/python3 ...' >&2; \
		exit 1; \
	fi; \
	exec "$$python" tools/setup.py $(if $(filter setup,$(MAKECMDGOALS)),--explicit)

demo: setup ## learn five tasks on a board (emulated unless PORT is given) and verify every bit
	@board='$(BOARD)'; \
	pick() { $(VENV)/python tools/setup.py --port="$$PORT" --pick-board '$(BOARD)'; }; \
	$(if $(BOARD_GIVEN),:,board=$$(pick)) || exit 1; \
	$(SPARCL) run "$$EXAMPLE" --board "$$board" \
		$(if $(PORT),--port "$$PORT") $(if $(SEED),--seed "$$SEED"); \
	status=$$?; \
	[ "$$board" = '$(BOARD)' ] || pick >/dev/null; \
	exit $$status

boards: setup ## list the boards and how each was verified
	@$(SPARCL) boards

bench: setup ## count instructions and memory on every emulated board, and say how far the targets are
	@$(SPARCL) bench

bench-check: setup ## the quick part of bench; fails when a figure grew by more than 2 %
	@$(SPARCL) bench --quick --check

test: setup ## run the tests, without the slow ones
	@$(VENV)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

results: setup ## run the sweeps of examples/sweeps (hours) and renew docs/evidence/results.md; what is done is not done again
	@for sweep in $(SWEEPS); do $(SPARCL) sweep examples/sweeps/$$sweep.toml || exit; done
	@$(VENV)/python -m sparcl_mcu.benchmarks.sweep.page $(SWEEPS)

powercut: setup ## cut the power at every flash operation, over flash geometries; ID=... shows one cut
	@$(VENV)/python -m tests.powercut.harness $(ID)

# pytest exits with 5 when no test is selected; having no slow test is not a failure.
test-slow: setup ## run the slow tests only
	@$(VENV)/python -m pytest -n $(JOBS) --dist worksteal -m slow || [ $$? -eq 5 ]

test-all: setup ## run all tests
	@$(VENV)/python -m pytest -n $(JOBS) --dist worksteal

distribution: setup ## the demo and the tests of all boards on a fresh Debian 13 (needs root, git and apt)
	@$(VENV)/python tools/distribution.py || { status=$$?; [ $$status -eq 75 ] || exit $$status; }

coverage: setup ## lines and branches of the firmware that tests execute; fails below 95 and 85 %
	@$(VENV)/python tools/coverage.py $(JOBS)

fuzz: setup ## feed hostile bytes to frame parser, command handlers and journal (needs clang)
	@$(VENV)/python tools/setup.py --need clang libclang-rt-dev
	@$(VENV)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS) --jobs $(JOBS)

mutants: setup ## put faults into engine and host tools, count those no test notices (an hour or two); ID=... shows one
	@$(VENV)/python -m tests.mutation.harness --jobs $(JOBS) $(if $(MUTANTS),--each '$(MUTANTS)') $(if $(ID),'$(ID)')

analyze: setup ## static analysis of the firmware (needs cppcheck)
	@$(VENV)/python tools/setup.py --need cppcheck
	@$(VENV)/python -m tests.analyze

lint: setup ## check style and types
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@git ls-files -z '*.c' '*.h' | xargs -0 $(VENV)/clang-format --dry-run --Werror
	@mkdir -p build/lint && ln -sfn ../.. build/lint/sparcl_mcu
	@$(VENV)/python -m mypy
	@MYPYPATH=tools $(VENV)/python -m mypy tools

format: setup ## rewrite Python and C in the project's style
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .
	@git ls-files -z '*.c' '*.h' | xargs -0 $(VENV)/clang-format -i

wheel: setup ## pack dist/sparcl_mcu-*.whl, which works without this checkout
	@rm -rf build/wheel
	@$(VENV)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## remove what was built (.venv stays)
	@rm -rf build dist .pio .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
