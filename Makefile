# `make demo` and `make test` set up .venv on first use, and again when pyproject.toml or
# constraints.txt changes. Everything else here assumes nothing but python3 (3.11 or newer) and make.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
say = @printf '\n==> %s\n' "$(1)"

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs unit coverage constraints clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
	while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done

demo: $(VENV)/.installed-demo ## train a small ViT, dense and widened, and report (recipes/digits-vit.yaml)
	$(call say,fpe-hf run digits-vit)
	@rm -rf build/demo
	@HF_HUB_OFFLINE=1 $(BIN)/fpe-hf run digits-vit output.folder=build/demo

test: lint types docs unit ## everything that CI checks

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	$(call say,ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy, strict
	$(call say,mypy)
	@$(BIN)/mypy

docs: $(VENV)/.installed-dev ## build the documentation into build/site; warnings are errors
	$(call say,mkdocs)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

unit: $(VENV)/.installed-dev ## pytest alone
	$(call say,pytest)
	@$(PYTEST)

coverage: $(VENV)/.installed-dev ## pytest with line and branch coverage
	$(call say,pytest with coverage)
	@$(PYTEST) --cov --cov-report=term --cov-report=html:build/coverage

constraints: $(VENV)/.installed-dev ## print the versions installed in .venv, for constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'

clean: ## remove what was built
	rm -rf build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fpe_hf tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment as well
	rm -rf $(VENV)

$(BIN)/python:
	$(call say,creating $(VENV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "fpe_hf needs Python 3.11 or newer; set PYTHON, as in: make test PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call say,installing fpe_hf and its development tools into $(VENV) (a few minutes the first time))
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(call say,installing fpe_hf and what the demo needs into $(VENV) (a few minutes the first time))
	@$(PIP) -e '.[recipes]'
	@touch $@
