# `make up` and `make test` are all that one needs to know. Nothing here needs more than line 0 of the README.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python
SEEDS ?= 0:200
JOBS ?= 2
CORPUS ?= /usr/share
TRACES ?= generated:g1 generated:g2  # to measure allocation on; beside them azure:DIR, openb:DIR, swf:FILE

unexport PYTHONDONTWRITEBYTECODE  # with it each process that a test starts compiles all of dwcp again: 0.3 s

.PHONY: help up down test check unit sim accept bench soak docs environment environment-dev

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

environment:
	@python3 scripts/bootstrap

environment-dev:
	@python3 scripts/bootstrap
	@python3 scripts/bootstrap --dev

up: environment  ## install what is missing, start the platform, run the example; CHECK=1: measure, then stop
	@$(if $(CHECK),$(PY) benchmarks/bench_up.py,$(PY) example/run.py)

down:  ## stop the platform
	@.venv/bin/dwcp down

test: environment-dev  ## everything that CI runs
	@$(MAKE) --no-print-directory check unit sim

check: environment-dev  ## format, lint, types, layers, tidy
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m pytest tests/tidy -q

unit:
	$(PY) -m pytest -q -n $(JOBS) --ignore=tests/tidy -m "not process and not accept and not soak"
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore=tests/tidy -m "process and not alone and not accept and not soak"
	$(PY) -m pytest -q --ignore=tests/tidy -m "process and alone and not accept and not soak"

sim: environment-dev  ## the simulator, SEEDS=0:200
	$(PY) -m dwcp.consensus.sim --engine probft --nodes 4 --seeds $(SEEDS) --jobs $(JOBS) --json

accept: environment-dev  ## the full fault matrix, up to an hour
	$(PY) -m pytest -q -m accept --timeout 1200

bench: environment-dev  ## all that is measured, some hours alone on two cores; CORPUS=DIR for the selector, TRACES for the allocator
	$(PY) benchmarks/bench_ledger.py --engine probft --nodes 4 --clients 64 --seconds 8 --pairs 5 --value-bytes 100 --json
	$(PY) benchmarks/bench_up.py
	$(PY) benchmarks/bench_selector.py --corpus $(CORPUS) --json
	$(PY) benchmarks/bench_transfer.py --json
	$(PY) benchmarks/bench_compression_api.py --json
	$(PY) benchmarks/bench_serving.py --json
	for trace in $(TRACES); do for stale in "" -stale; do \
	$(PY) benchmarks/bench_allocator.py --model shipped --trace $$trace --seeds 10 --few $${stale:+-}$$stale --json \
	--save $$(basename $${trace#generated:} | cut -d: -f1)$$stale || exit 1; done; done

soak: environment-dev  ## hours
	$(PY) -m pytest -q -m soak --timeout 36000

docs: environment-dev  ## write the generated pages of docs/operating anew
	$(PY) -m tests.tidy.generate
