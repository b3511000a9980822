# `make` lists the targets. Everything runs from .venv, which the first target creates.

PYTHON ?= python3
SERVICE = {{cookiecutter.project_slug}}
BIN = .venv/bin
# uv uses the system's certificates, as pip does.
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test quick variants check docs pictures audit bench faults setup lock

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-9s %s\n", $$1, $$2 }'

demo: .venv/.demo ## Create a service with the default answers, start it, call it and stop it
	@$(BIN)/python scripts/demo.py

PYTEST = $(BIN)/pytest --numprocesses auto

test: setup ## Run all tests, including every variant
	@$(PYTEST)

quick: setup ## Run all tests except the variants
	@$(PYTEST) --ignore tests/test_variants.py

variants: setup ## Test the variants, or some of them: make variants ONLY='cache_backend=file'; ALL=1 runs more
	@$(PYTEST) tests/test_variants.py --only '$(ONLY)' $(if $(ALL),--all)

check: setup ## Lint and type-check the template, and search its text for hard words
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python scripts/plain_words.py

docs: setup ## Build the documentation in build/docs; a broken link is an error
	@$(BIN)/python -m scripts.tables $(if $(CI),--check)
	@$(BIN)/python -m scripts.copier
	@$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html docs build/docs
	@echo "The documentation is in build/docs; index.html is its first page."

pictures: setup ## Update the README's pictures
	@$(BIN)/python -m scripts.pictures

audit: setup ## Check all pins for known vulnerabilities
	@$(BIN)/uv tool run --quiet --python $(BIN)/python pip-audit --strict --disable-pip --no-deps \
		--requirement requirements.txt --requirement '$(SERVICE)/requirements-dev.txt'

bench: setup ## Compare the service with other implementations; ONLY=health,keys, BASE=v0.5 and WRITE=1 as in CONTRIBUTING.md
	@$(BIN)/python benchmarks/run.py $(if $(ONLY),--only '$(ONLY)') $(if $(BASE),--base '$(BASE)') \
		$(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(SECONDS),--seconds '$(SECONDS)') \
		$(if $(WRITE),--write docs/performance.md)

faults: setup ## Let servers and processes of the service fail under load, and print a table; WRITE=1 updates its page
	@$(MAKE) --no-print-directory --directory '$(SERVICE)' faults BIN=../.venv/bin $(if $(WRITE),WRITE=1) --assume-old=setup

setup: .venv/.installed ## Create .venv with the packages for all targets

lock: setup ## Pin new dependencies of the template and the service; upgrade=1 pins the newest releases
	$(BIN)/uv pip compile --quiet $(if $(upgrade),--upgrade) --universal --python-version 3.11 \
		--custom-compile-command "make lock" requirements.in --output-file requirements.txt
	$(BIN)/python scripts/lock_service.py $(if $(upgrade),upgrade=1)

.venv/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This needs Python 3.11 or newer. Name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.13")'
	@echo "Creating .venv"
	@"$(PYTHON)" -m venv .venv
	@touch $@

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt

.venv/.demo: requirements.txt | .venv/.made
	@echo "Installing cookiecutter into .venv"
	@$(PIP_INSTALL) cookiecutter
	@touch $@

# uv is four times as fast as pip. Tests start hundreds of processes, which is faster with bytecode.
.venv/.installed: requirements.txt $(SERVICE)/requirements-dev.txt | .venv/.made
	@echo "Installing packages into .venv"
	@$(PIP_INSTALL) uv
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python \
		--requirement requirements.txt --requirement '$(SERVICE)/requirements-dev.txt'
	@touch $@ .venv/.demo
