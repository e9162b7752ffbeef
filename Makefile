.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

install: .venv/installed ## make the environment with the pinned versions

# its parser of docstrings and jsonargparse's have one name: an environment of its own
.venv/pydoclint: constraints.txt | .venv/installed
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet -c constraints.txt pydoclint
	@touch $@

quickstart: install ## train a teacher and distil it on the built-in corpus (1 to 3 minutes)
	$(BIN)/python train.py fit --config configs/quickstart.yaml

test: install ## the tests: offline, on the CPU, in minutes
	$(BIN)/python -m pytest -n 2

test-all: install ## the tests and the slow ones: real training, several processes
	$(BIN)/python -m pytest -n 2 -m ""

test-faults: install ## what kills, full disks, broken files and hostile input do (README's table)
	$(BIN)/python -m pytest -n 2 -m fault

benchmark: install ## speed beside a Trainer and raw PyTorch, 15 minutes on 2 quiet cores
	$(BIN)/python -m tests.benchmarks.speed

lint: install .venv/pydoclint ## ruff, codespell, pydoclint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell kd configs README.md CHANGELOG.md CONTRIBUTING.md
	.venv/pydoclint/bin/pydoclint --quiet --config=pyproject.toml kd train.py

types: install ## mypy in its strict mode
	$(BIN)/mypy

# of its own, for what it needs itself is not what it audits
.venv/pip-audit: constraints.txt | .venv/installed
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet -c constraints.txt pip-audit
	@touch $@

AUDIT = .venv/pip-audit/bin/pip-audit --path $(BIN)/../lib/python3*/site-packages --skip-editable
FOUND = import json; [print(one["name"], one["version"], bad["id"], "fixed in", *bad["fix_versions"]) \
	for one in json.load(open(".venv/audit.json"))["dependencies"] for bad in one.get("vulns", ())]

audit: install .venv/pip-audit ## known vulnerabilities of what is installed; asks a service
	@rm -f .venv/audit.json
	@$(AUDIT) --format json --output .venv/audit.json 2> .venv/audit.log; code=$$?; \
	if grep -qs '"vulns"' .venv/audit.json; then \
		$(BIN)/python -c '$(FOUND)'; tail -n 1 .venv/audit.log; exit $$code; \
	elif grep -qsE 'could not be audited|Connection|timed out' .venv/audit.json .venv/audit.log; then \
		echo "not audited: no network"; \
	else cat .venv/audit.log; exit 1; fi

check: lint types test ## all that a change must pass

.PHONY: help install quickstart test test-all test-faults benchmark lint types audit check
