# daycap: `make run` shows the main job, `make test` runs every check.
# Needs Python >= 3.11, pip and make; uv is fetched with pip where it is missing.

PYTHON ?= python3
TOOLS  := .run/tools
UV     := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)

# uv brings certificates of its own; where this machine has a store, with a company's own authority perhaps, use that.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

# Many tests wait for servers and deadlines: more of them than there are cores.
JOBS   ?= 4
PYTEST  = $(UV) run --no-sync pytest -n $(JOBS)

.PHONY: help setup run test failed check lint soak chaos mutants bench docs clean

help:            ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(TOOLS)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "daycap needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3.12"; exit 2; }
	@echo "installing uv into $(TOOLS)"
	@$(PYTHON) -m venv $(TOOLS) || { echo "python3 -m venv failed; install your system's python3-venv package"; exit 2; }
	@$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv

# Show uv's own progress on a terminal, else a line.
define sync
	@$(UV) sync --locked --quiet --check $(1) 2> /dev/null || { \
		echo "installing $(2) into .venv"; \
		if [ -t 2 ]; then $(UV) sync --locked $(1); else $(UV) sync --locked --quiet $(1); fi; }
endef

setup: $(UV)     ## make the environment in .venv, with every tool
	$(call sync,--compile-bytecode,what development needs)

run: $(UV)       ## show the main job: every server, runners, a live table, an audit
	$(call sync,--inexact --no-default-groups --group tools,what the demo needs (90 MB))
	@$(UV) run --no-sync daycap run $(ARGS)

lint: setup      ## style and types
	@$(UV) run --no-sync ruff check .
	@$(UV) run --no-sync ruff format --check .
	@$(UV) run --no-sync mypy
	@$(UV) run --no-sync lint-imports --no-logo

test: lint       ## style, types and every test, several at a time: make test JOBS=4
	@$(PYTEST) $(ARGS)

failed: setup    ## what failed the last time, one test after the other
	@$(UV) run --no-sync pytest --last-failed --last-failed-no-failures=none $(ARGS)

check: JOBS = 3
check: lint      ## style, types and the quick tests, without PostgreSQL
	@$(PYTEST) tests/unit tests/contract -k "not postgresql and not pgbouncer and not lock_order" $(ARGS)

soak: setup      ## simulate seeds for as long as you like: make soak ARGS="--seeds 100000"
	@$(UV) run --no-sync python -m tests.simulation $(ARGS)

mutants: setup   ## break the code in small ways, see what tests notice: make mutants ARGS="--file daycap/wallet/lease_book.py"
	@$(UV) run --no-sync python -m tests.mutation $(ARGS)

chaos: setup     ## a fault campaign over real processes: make chaos ARGS="--rounds 200 --plot chaos.png"
	@$(UV) run --locked --quiet --group plot python -m tests.chaos $(ARGS)

bench: setup     ## measure against floors in the same run: make bench ARGS="--only settle --plot bench.png"
	@$(UV) run --locked --quiet --group plot python -m tests.benchmarks $(ARGS)

docs: setup      ## build the documentation into .run/site, strictly and without a network; open index.html there
	@NO_MKDOCS_2_WARNING=1 $(UV) run --locked --quiet --group docs mkdocs build --strict --quiet $(ARGS)
	@echo "built .run/site/index.html"

clean:           ## remove what was made here
	@rm -rf .venv .run dist
