# make demo      the main job on the bundled organism; prints where the report is, and what to run next
# make test      the offline test suite
# make test-tl4  the suite again in a second environment with TransformerLens 4
# make lint      ruff, mypy and the import contract
# make organism  trains the bundled models again
# make clean     removes environments, caches and the demo's run
#
# make demo PYTHON=python3.12 takes another interpreter. Environments are made when they are missing
# and brought up to date when setup.cfg, pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV ?= .venv
VENV4 ?= .venv-tl4
TL4 := 4.3.0
RUN ?= runs/demo
PYTEST_ARGS ?= -q -n auto --maxprocesses 4
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK = 1

SETTINGS := setup.cfg pyproject.toml constraints.txt
READY := $(VENV)/.ready
READY4 := $(VENV4)/.ready

.PHONY: demo test test-tl4 lint organism clean

demo: $(READY)
	@$(VENV)/bin/refusal-lens run organism --out $(RUN)
	@echo
	@echo "next:"
	@echo "  $(VENV)/bin/refusal-lens chat $(RUN)"
	@echo "  $(VENV)/bin/refusal-lens suffix $(RUN)"
	@echo "  $(VENV)/bin/refusal-lens export $(RUN) --to lora --out adapter"
	@echo "  $(VENV)/bin/refusal-lens run MODEL --harmful FILE --harmless FILE --out runs/NAME"

test: $(READY)
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-tl4: $(READY4)
	@$(VENV4)/bin/python -m pytest $(PYTEST_ARGS) -m "not tl3 and not browser"

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

organism: $(READY)
	PYTHONPATH=experiments/00_patients $(VENV)/bin/python -m organism.training --out refusal_lens/organism/data

clean:
	rm -rf $(VENV) $(VENV4) $(RUN) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find refusal_lens tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): $(SETTINGS)
	@$(call supported)
	@$(call environment,$(VENV))
	@echo "installing the pinned packages into $(VENV) (a few minutes the first time)"
	@$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# The same packages but for TransformerLens: seen through a .pth file, since a second copy of torch
# would cost minutes and gigabytes; pip check says whether the other version is content with them.
$(READY4): $(READY)
	@echo "installing TransformerLens $(TL4) into $(VENV4), over the packages of $(VENV)"
	@$(VENV)/bin/python -m venv --clear --without-pip $(VENV4)
	@$(VENV)/bin/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	> "$$($(VENV4)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	@$(VENV)/bin/python -m pip --quiet --python $(VENV4)/bin/python install --no-deps --ignore-installed transformer-lens==$(TL4)
	@$(VENV4)/bin/python -m pip check
	@touch $@

define supported
$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
|| { echo "error: Python 3.10 to 3.13 is needed: $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1); try make PYTHON=python3.12" >&2; exit 1; }
endef

# An environment whose interpreter has gone is made again; where ensurepip is missing (Debian without
# python3-venv), the outer pip fills it.
define environment
$(1)/bin/python -c 'import pip' 2>/dev/null \
|| $(PYTHON) -m venv --clear $(1) >/dev/null 2>&1 \
|| { $(PYTHON) -m venv --clear --without-pip $(1) && $(PYTHON) -m pip --quiet --python $(1)/bin/python install pip; } \
|| { echo "error: no virtual environment in $(1): $(PYTHON) has neither ensurepip nor pip; install python3-venv" >&2; exit 1; }
endef
