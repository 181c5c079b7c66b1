# daycap: `make run` starts the demo, `make test` runs every check.
# Needs Python >= 3.11, pip and make. Installs uv with pip if it is missing.

PYTHON ?= python3
TOOLS  := .run/tools
UV     := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)

# uv bundles its own certificates. Prefer this machine's store if it has one: a company's CA may be in it.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

# More jobs than cores: many tests wait for servers and deadlines.
JOBS   ?= 4
PYTEST  = $(UV) run --no-sync pytest -n $(JOBS)

.PHONY: help setup run test failed check lint soak chaos mutants bench docs clean

help:            ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(TOOLS)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "daycap needs Python 3.11 or newer; choose one with: make PYTHON=/path/to/python3.12"; exit 2; }
	@echo "installing uv into $(TOOLS)"
	@$(PYTHON) -m venv $(TOOLS) || { echo "python3 -m venv failed; install your system's python3-venv package"; exit 2; }
	@$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv

# On a terminal show uv's progress, otherwise one line.
define sync
	@$(UV) sync --locked --quiet --check $(1) 2> /dev/null || { \
		echo "installing $(2) in .venv"; \
		if [ -t 2 ]; then $(UV) sync --locked $(1); else $(UV) sync --locked --quiet $(1); fi; }
endef

setup: $(UV)     ## create .venv with every development tool
	$(call sync,--compile-bytecode,the development dependencies)

run: $(UV)       ## run the demo: all servers, runners, a live table, an audit
	$(call sync,--inexact --no-default-groups --group tools,the demo's dependencies (90 MB))
	@$(UV) run --no-sync daycap run $(ARGS)

lint: setup      ## style and types
	@$(UV) run --no-sync ruff check .
	@$(UV) run --no-sync ruff format --check .
	@$(UV) run --no-sync mypy
	@$(UV) run --no-sync lint-imports --no-logo

test: lint       ## style, types and all tests, in parallel: make test JOBS=4
	@$(PYTEST) $(ARGS)

failed: setup    ## rerun the tests that failed last time, one by one
	@$(UV) run --no-sync pytest --last-failed --last-failed-no-failures=none $(ARGS)

check: JOBS = 3
check: lint      ## style, types and the fast tests, without PostgreSQL
	@$(PYTEST) tests/unit tests/contract -k "not postgresql and not pgbouncer and not lock_order" $(ARGS)

soak: setup      ## explore the model completely, run many simulation seeds: make soak ARGS="--seeds 100000"
	@$(UV) run --no-sync python -m tests.model
	@$(UV) run --no-sync python -m tests.simulation $(ARGS)

mutants: setup   ## mutation testing: make mutants ARGS="--file daycap/wallet/holds.py"
	@$(UV) run --no-sync python -m tests.mutation $(ARGS)

chaos: setup     ## run a fault campaign on real processes: make chaos ARGS="--rounds 200 --plot chaos.png"
	@$(UV) run --locked --quiet --group plot python -m tests.chaos $(ARGS)

bench: setup     ## benchmarks, with their floors in the same run: make bench ARGS="--only settle --plot bench.png"
	@$(UV) run --locked --quiet --group plot python -m tests.benchmarks $(ARGS)

docs: setup      ## build the documentation in .run/site, strictly and offline; open index.html there
	@NO_MKDOCS_2_WARNING=1 $(UV) run --locked --quiet --group docs mkdocs build --strict --quiet $(ARGS)
	@echo "built .run/site/index.html"

clean:           ## remove .venv, .run and dist
	@rm -rf .venv .run dist
