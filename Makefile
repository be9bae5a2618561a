# `make demo` shows a pool at work, `make test` runs the tests; both set up what they need in .venv.

VENV ?= .venv
TOOLS ?= dev # or test: what the tests import
# Processes that run the tests: they wait as much as they work. Every test has ports and a runtime directory of its own.
CPUS := $(shell nproc 2>/dev/null || echo 2)
JOBS ?= $(shell echo $$(( $(CPUS) * 3 / 2 )))
PYTEST = -m pytest -n $(JOBS) --dist worksteal
BIN := $(VENV)/bin
# Tests of the source files and types, and of what is released: other interpreters do not change them.
OF_STRUCTURE := $(addprefix tests/unit/,test_floors.py test_typing.py test_sdist.py test_release.py)
# What another Python version can change: event loops, descriptors, forks, annotations, messages of the standard library.
# Not the structure of the source files, and decisions without input and output.
PORTABLE_UNIT = tests/unit $(addprefix --ignore=,$(OF_STRUCTURE) $(addprefix tests/unit/, \
	cli/test_completion.py core/test_decide_properties.py)) \
	$(shell grep -L mark.integration tests/features/gateway/test_*.py)
PORTABLE = $(PORTABLE_UNIT) $(addprefix tests/integration/,runners processes/test_starting.py test_inline_runner.py test_embedding.py)
DEMO := -c examples/microservices/pool.toml -c examples/microservices/gateway.toml

# Without bytecode each of the thousands of processes would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo features mutants test test-all test-measured test-rest test-cluster heavy applications distributions properties quick portable \
	lint types floors docs completions release bench peers matrix chaos chaos-gateway conformance venv dev clean
.DEFAULT_GOAL := help

help:
	@echo "make demo          an example pool with a live table; Ctrl-C ends it"
	@echo "make test          the tests: three to four minutes on two cores"
	@echo "make test-all      every test but those of make heavy, with coverage"
	@echo "make heavy         chaos, floods, long pauses, every benchmark once, rarer failures, and properties"
	@echo "make properties    the property tests with all of their examples, others each time"
	@echo "make applications  real applications: Django, FastAPI, Celery, gunicorn, node and others, restarted under load"
	@echo "make test-cluster  exported pools on a real Kubernetes, built once from Debian's packages; with nodes, as root"
	@echo "make distributions both commands above on new Debians (13 and sid), in chroots, as root: ARGS='SUITE…'"
	@echo "make conformance   requests of public collections, fetched from github.com and deb.debian.org"
	@echo "make quick         the quick unit tests while working: at most a minute"
	@echo "make lint          ruff: rules and format"
	@echo "make types         mypy --strict"
	@echo "make floors        imports point down only"
	@echo "make features      the rest works without each feature, in a copy of the tree: ARGS='NAME…'"
	@echo "make mutants       random mutants, each run with the tests of its package: ARGS='PATH… --seed N'"
	@echo "make docs          the site of the documentation, in site/; warnings are errors"
	@echo "make completions   regenerates completions/ and the man page"
	@echo "make release       what is published, in dist/, built twice and compared: ARGS=--test runs the tests with it"
	@echo "make bench         benchmarks, as a table"
	@echo "make peers         poolctl beside supervisord, pm2, circus, gunicorn and others, in one run: twelve minutes"
	@echo "make matrix        the tests that depend on the interpreter: every Python, lowest and newest dependencies"
	@echo "make chaos         kills, restarts and full disks under load: ARGS='--seed N --minutes 10'"
	@echo "make chaos-gateway the same around the gateway, each request counted: ARGS='--requests 1000000'"
	@echo "make clean         removes everything that make has made"

venv:
	@PYTHON="$(PYTHON)" bash .ci/venv $(VENV)

dev:
	@PYTHON="$(PYTHON)" bash .ci/venv $(VENV) $(TOOLS)

demo: venv
	@echo "poolctl $(DEMO) run …"
	@exec $(BIN)/poolctl $(DEMO) run -- $(BIN)/python examples/watch.py $(BIN)/poolctl $(DEMO)

# Fast tests, the contract, the commands of the README and of shorter pages, and for each capability one test through
# real processes. `make test-all` also runs slow tests, and pastes the tutorial and the longer guides.
IN_TEST := capability or not (slow or heavy or integration)
test: dev
	@$(BIN)/python -m tests.other_user
	@$(BIN)/python $(PYTEST) -m "$(IN_TEST)" $(ARGS)

# Each test but those of `make heavy` runs in one of the two parts. Both run, whatever the other says.
test-all: dev
	@$(MAKE) --no-print-directory --keep-going test-measured test-rest

# Coverage shows which lines no fast unit test runs. Without it, in the other part, run the property tests, which hardly
# run other lines, and tests through real processes, whose time coverage doubles.
# From Python 3.12 on coverage is measured by sys.monitoring, which costs a fifth as much.
MEASURED := not (slow or heavy or integration or unmeasured or capability or hypothesis)
test-measured: dev
	@# Other users write into it too; not directly below a directory of code that root runs, which a check warns of.
	@rm -rf .coverage.d && mkdir .coverage.d && mkdir -m 1777 .coverage.d/all
	@$(BIN)/coverage run --source=poolctl -m compileall -q poolctl # names every file: what no test imports counts too
	@$(BIN)/python -m tests.other_user
	@export COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info > (3, 12) else "ctrace")'); \
	status=0; \
	$(BIN)/coverage run --include='$(CURDIR)/poolctl/*' $(PYTEST) -m "$(MEASURED)" tests/unit tests/features $(ARGS) || status=1; \
	$(BIN)/python .ci/drop-cut-off .coverage.d/all; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$status

test-rest: JOBS := $(shell echo $$(( $(CPUS) * 2 ))) # they wait more than the others, and take longest
test-rest: RUN_ALREADY := $(MEASURED)
test-rest: dev
	@$(BIN)/python -m tests.other_user
	@$(BIN)/python $(PYTEST) -m "not (heavy or ($(RUN_ALREADY)))" $(ARGS)

# One test at a time: each loads the machine by itself, and has deadlines, the longest of them half an hour.
heavy: dev
	@bash .ci/flood-programs || echo "slowhttptest is missing, and cannot be installed: floods by it are skipped"
	@status=0; $(BIN)/python -m pytest -o faulthandler_timeout=2000 -m heavy $(ARGS) || status=1; \
	$(MAKE) --no-print-directory properties ARGS= || status=1; exit $$status

properties: export POOLCTL_EXAMPLES := all
properties: dev
	@$(BIN)/python $(PYTEST) -m hypothesis tests/unit tests/features $(ARGS)

applications: dev
	@PYTHON="$(PYTHON)" bash .ci/venv .venv-applications applications
	@$(BIN)/python $(PYTEST) tests/applications $(ARGS)

distributions:
	@bash .ci/distributions $(ARGS)

conformance: export POOLCTL_CONFORMANCE ?= $(CURDIR)/.conformance
conformance: dev
	@$(BIN)/python -m pytest -m conformance tests/features/gateway $(ARGS)

# The first time it builds Kubernetes, at the lowest priority: minutes of both cores. Nodes need root.
test-cluster: export POOLCTL_NODES := 1
test-cluster: dev
	@bash tests/features/kubernetes/cluster/build
	@$(BIN)/python -m pytest -o faulthandler_timeout=900 \
		$(addprefix tests/features/kubernetes/,test_real_cluster.py test_nodes.py test_examples_on_nodes.py) $(ARGS)

# More processes than elsewhere: unit tests wait for deadlines more than they compute.
quick: JOBS := $(shell echo $$(( $(CPUS) * 2 )))
quick: dev
	@$(BIN)/python $(PYTEST) -m "not (slow or heavy or integration)" tests/unit tests/features $(ARGS)

portable:
	@PYTHON="$(PYTHON)" bash .ci/venv $(VENV) test
	@$(BIN)/python $(PYTEST) -m "not heavy" -p no:cacheprovider $(PORTABLE) $(ARGS)

lint: dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: dev
	@$(BIN)/mypy

floors: dev
	@$(BIN)/python -m pytest -q tests/unit/test_floors.py

features: dev
	@$(BIN)/python -m tests.without_features $(ARGS)

mutants: dev
	@$(BIN)/python -m tests.mutants $(ARGS)

docs: TOOLS := docs
docs: export NO_MKDOCS_2_WARNING := 1 # the theme advertises its successor
docs: dev
	@$(BIN)/python -m mkdocs --quiet build
	@echo "site/index.html"

completions: dev
	@mkdir -p completions
	@_POOLCTL_COMPLETE=source_bash $(BIN)/poolctl >completions/poolctl.bash
	@_POOLCTL_COMPLETE=source_zsh $(BIN)/poolctl >completions/_poolctl
	@_POOLCTL_COMPLETE=source_fish $(BIN)/poolctl >completions/poolctl.fish
	@$(BIN)/python docs/site/manual.py >docs/poolctl.1

release:
	@bash .ci/release $(ARGS)

peers: dev
	@$(BIN)/python -m benchmarks.peers $(ARGS)

bench: dev
	@$(BIN)/python -m benchmarks $(ARGS)

matrix:
	@bash .ci/matrix $(ARGS)

chaos: dev
	@$(BIN)/python -m tests.chaos $(ARGS)

# A million requests take ten to twelve minutes on two cores: the clients are Python, and use most of them.
chaos-gateway: dev
	@$(BIN)/python -m tests.chaos.gateway $(ARGS)

clean:
	rm -rf .venv .venv-* .venv*.lock .coverage* .conformance .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
