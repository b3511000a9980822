# `make` lists what can be done. Everything runs from .venv, which the first target makes.

PYTHON ?= python3
SERVICE = {{cookiecutter.project_slug}}
BIN = .venv/bin
# uv trusts whom the system trusts, as pip does.
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test quick variants check docs pictures audit bench soak setup lock

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-9s %s\n", $$1, $$2 }'

demo: .venv/.demo ## Scaffold a service with the default answers, run it, and walk through it
	@$(BIN)/python scripts/demo.py

PYTEST = $(BIN)/pytest --numprocesses auto

test: setup ## Run all tests: the template's, and every variant
	@$(PYTEST)

quick: setup ## Run the tests of the template but for the variants
	@$(PYTEST) --ignore tests/test_variants.py

variants: setup ## Prove the variants, or some: make variants ONLY='cache_backend=file'; ALL=1 tests more
	@$(PYTEST) tests/test_variants.py --only '$(ONLY)' $(if $(ALL),--all)

check: setup ## Lint and type-check the template; `make test` includes it
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: setup ## Build the documentation into build/docs; a broken link fails
	@$(BIN)/python -m scripts.tables $(if $(CI),--check)
	@$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html docs build/docs
	@echo "The documentation is in build/docs; index.html is its first page."

pictures: setup ## Make the README's pictures again
	@$(BIN)/python -m scripts.pictures

audit: setup ## Look up known vulnerabilities of all pins
	@$(BIN)/uv tool run --quiet --python $(BIN)/python pip-audit --strict --disable-pip --no-deps \
		--requirement requirements.txt --requirement '$(SERVICE)/requirements-dev.txt'

bench: setup ## Compare what reads, the cache and tasks cost with the least that could do the same
	@$(BIN)/python benchmarks/reads.py
	@$(BIN)/python benchmarks/cache.py
	@$(BIN)/python benchmarks/tasks.py

soak: setup ## Show that no task is lost, whatever is killed: make soak BROKER=rabbitmq
	@$(BIN)/python benchmarks/soak.py $(or $(BROKER),redis)

setup: .venv/.installed ## Make .venv with all that the tests need

lock: setup ## Pin the newest releases, the template's and the service's
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--custom-compile-command "make lock" requirements.in --output-file requirements.txt
	$(BIN)/python scripts/lock_service.py

.venv/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.13")'
	@echo "Making .venv"
	@"$(PYTHON)" -m venv .venv
	@touch $@

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt

.venv/.demo: requirements.txt | .venv/.made
	@echo "Installing cookiecutter into .venv"
	@$(PIP_INSTALL) cookiecutter
	@touch $@

# uv needs a quarter of pip's time; the tests start hundreds of processes, faster from bytecode.
.venv/.installed: requirements.txt $(SERVICE)/requirements-dev.txt | .venv/.made
	@echo "Installing what the tests need into .venv"
	@$(PIP_INSTALL) uv
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python \
		--requirement requirements.txt --requirement '$(SERVICE)/requirements-dev.txt'
	@touch $@ .venv/.demo
