# Every target works from a clean clone with git, make, python3 and root; each says what it does and reuses what an
# earlier one made. All that is made lives in .venv and .mlops (both git-ignored); `make clean` removes it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-compute demo check test test-full mutation up down clean bench lock

bin := .venv/bin
packages := infra/local/setup/system_packages.sh
environments := infra/local/setup/python_environments.sh
two_processes := -n 2 --dist loadfile  # most of the time tests wait for machines; a file shares its leases

help:  ## what you can do here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup:  ## install what is missing: system packages (lists them and asks), Python environments
	@$(packages)
	@$(environments)

setup-compute: setup  ## also what `mlops local up --with compute` needs: RabbitMQ, Nova and its neighbours
	@$(packages) compute
	@$(environments) compute

demo: setup  ## the loop twice round: push, train through the loss of a worker, serve, drift, retrain, give everything back
	@echo "[demo] the loop on an embedded stack of its own"
	@$(bin)/python -m mlops_pipelines.recipes.demo $(ARGS)

check:  ## formatting, lint, types, import rules, packaging: no service is started
	@$(packages) python
	@$(environments) main base
	@echo "[check] shell scripts"
	@git ls-files -z '*.sh' .ci/run | xargs -0 -n1 bash -n
	@echo "[check] ruff"
	@$(bin)/ruff check --quiet .
	@$(bin)/ruff format --check --quiet .
	@echo "[check] pyright, strict"
	@$(bin)/pyright --warnings --pythonpath $(bin)/python
	@echo "[check] import rules"
	@$(bin)/lint-imports --no-cache
	@echo "[check] packaging: the wheel, its base without Airflow or torch, the locks, the setup scripts"
	@$(bin)/python -m pytest -q tests/packaging

test: setup  ## everything a change must pass, against the real services of the embedded stack
	@$(environments) base
	@echo "[test] all but the slow tiers, in two processes with an embedded stack each, in .mlops/stacks/test-gw*"
	@$(bin)/python -m pytest $(two_processes) -m "not slow" --durations=15 $(ARGS)

test-full: setup-compute  ## test, plus the slow tiers
	@$(environments) base
	@echo "[test-full] every tier"
	@$(bin)/python -m pytest $(two_processes) --durations=25 $(ARGS)

mutation: setup  ## change the decisions of leases, fence and reaper a little, and see whether a test notices
	@tests/mutation/run.sh $(ARGS)

up: setup  ## the embedded stack, in the foreground; Ctrl-C ends it
	@$(bin)/mlops local up $(ARGS)

down:  ## end the embedded stack of this folder, whoever started it
	@if [ -x $(bin)/mlops ]; then $(bin)/mlops local down $(ARGS); else echo "[down] nothing was ever set up here"; fi

bench: setup  ## run one benchmark: make bench NAME=stack; without NAME, list them
	@$(bin)/python -m benchmarks $(if $(NAME),$(NAME) $(ARGS),--list)

lock:  ## resolve requirements/*.txt anew; ARGS=--upgrade takes newer versions
	@$(packages) python
	@infra/local/setup/lock.sh $(ARGS)

clean:  ## end every stack of this folder, then remove .venv, .mlops and the tools' caches
	@infra/local/setup/clean.sh
