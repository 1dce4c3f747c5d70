# Everything starts here: `make help` lists what there is.
VENV ?= .venv
BUILD ?= build
PY = $(VENV)/bin/python
PYTEST_ARGS ?=
WORKERS ?= 2
export VENV BUILD

.DEFAULT_GOAL = help
.PHONY: help setup check test bench soak kernel qemu generate demo stack image install down lock

help: ## Show this table
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: ## Install what is missing: packages, .venv, guest program, guest kernel (Debian 12, root)
	@scripts/setup

check: ## Lint, formatting, types, import contracts, generated files
	@scripts/check

test: setup check ## Set up, check, and run all tests
	@mkdir -p $(BUILD)
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --junitxml=$(BUILD)/junit.xml $(PYTEST_ARGS) && $(PY) -m scripts.suites $(BUILD)/junit.xml

bench: setup ## Measure: starts beside podman, kernels, streams, density, what collection costs and how true it is
	@{ command -v podman && command -v runc; } >/dev/null || apt-get -q -y install --no-install-recommends podman runc
	@$(PY) -m pytest tests/bench -s $(PYTEST_ARGS)

soak: setup ## Two minutes without InfluxDB; kill hyperd 1000 times under load (an hour)
	@HYPER_OUTAGE_S=120 $(PY) -m pytest tests/contract/test_influx_outage.py -s $(PYTEST_ARGS)
	@HYPER_STORM=1000 $(PY) -m pytest tests/e2e/test_storm.py -s $(PYTEST_ARGS)

kernel: ## Build the small guest kernel (minutes; asked for only)
	@scripts/kernel

generate: ## Write the generated files again: dashboards, rules, reference pages
	@$(PY) -m scripts.generated --write

qemu: ## Build a small static QEMU (minutes; asked for only)
	@scripts/qemu

demo: setup ## Set up, start the stack, run nginx as a micro-VM, show its vital signs
	@$(PY) -m scripts.demo

stack: setup ## Start the daemons with Prometheus, Alertmanager, VictoriaMetrics, and leave them running
	@$(PY) -m scripts.stack up

image: setup ## Build the container images and try the programs in them (minutes; asked for only)
	@scripts/stack/image

install: setup ## Install the programs in /opt/hyperpulse and their systemd units; starts nothing
	@scripts/install

down: ## End the demo and the stack: their containers, the stack, taps, bridge, rules
	@$(PY) -m scripts.stack down

lock: ## Resolve the Python dependencies again into requirements.lock
	@scripts/lock
