# `make bench` and `make test` set everything up themselves; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# PRESET: one of conf/experiment; empty picks gpu with CUDA, else cpu. ARGS: Hydra overrides.
PRESET ?=
ARGS ?=
# of `make reference`; see the head of benchmarks/reference/__main__.py
MINUTES ?=
ONLY ?=
DATA ?=
OUT ?=
UNPACK ?=
LIST ?=
REHEARSE ?=
WEIGHTS_DATA ?=
UNSEEN_DATA ?=

space := $(subst ,, )
.DEFAULT_GOAL := help
.PHONY: help setup bench test agreement lint cost perf reference commit-file report score compare weights judge-study clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  PRESET=$(subst $(space),|,$(basename $(notdir $(wildcard conf/experiment/*.yaml))))'
	@echo '  ARGS="steps=[4,8] data=imagefolder data.path=/images"'

setup: $(READY) ## virtual environment .venv with pinned dependencies, editable install

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 needed, this is {v[0]}.{v[1]}; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hub,dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(VENV)/test-only torch-fidelity
	@touch $@

bench: $(READY) ## train, sample and report the three families: results/<preset>/
	$(PY) -m benchmarks.run $(if $(PRESET),experiment=$(PRESET)) $(ARGS)

test: $(READY) ## the test suite, a process a core, four at most; then what measures time, alone (exit 5: ARGS leaves a part empty)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not alone" $(ARGS) || test $$? -eq 5
	$(PY) -m pytest -m alone $(ARGS) || test $$? -eq 5

agreement: $(READY) ## the distances against pytorch-fid, torch-fidelity, torchmetrics and prdc, installed beside the suite: results/agreement.json
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(VENV)/agreement prdc pytorch-fid torch-fidelity scikit-learn joblib cloudpickle narwhals threadpoolctl
	AGREEMENT=results/agreement.json $(PY) -m pytest tests/test_agreement.py

lint: $(READY) ## ruff's checks and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

cost: $(READY) ## counted cost of every model and size: results/cost/cost.csv
	$(PY) -m benchmarks.cost

perf: $(READY) ## every stage against the machine's ceiling and what users run today: results/perf/perf.csv; PERF=quick is shorter
	$(PY) -m benchmarks.perf $(if $(filter quick,$(PERF)),--quick) $(ARGS)

reference: $(READY) ## make what is missing or out of date of results/reference: MINUTES=9 ONLY=gpu DATA=<images> OUT=<folder>; LIST=1, REHEARSE=1, UNPACK=<folder>
	@$(PY) -m benchmarks.reference $(if $(MINUTES),--minutes '$(MINUTES)') $(if $(ONLY),--only '$(ONLY)') $(if $(DATA),--data '$(DATA)') \
		$(if $(OUT),--out '$(OUT)') $(if $(UNPACK),--unpack '$(UNPACK)') $(if $(LIST),--list) $(if $(REHEARSE),--rehearse)

commit-file: ## write .commit, so that records name the code where it is carried without its repository
	@echo "$$(git rev-parse --short=12 HEAD)$$(test -z "$$(git status --porcelain -- . ':!results')" || echo -dirty)" > .commit && cat .commit

report: $(READY) ## rebuild tables and plots from the records in results/
	$(PY) -m benchmarks.report

score: $(READY) ## score pictures from anywhere: IMAGES=<folder|npz|parquet> REFERENCE=<the same, or a data config>
	@test -n "$(IMAGES)" -a -n "$(REFERENCE)" || { echo "IMAGES=<folder|npz|parquet> REFERENCE=<the same, or one of conf/data> are needed"; exit 2; }
	@$(PY) -m benchmarks.evaluate "$(IMAGES)" "$(REFERENCE)" $(ARGS)

compare: $(READY) ## two results folders, row by row: A=results/x B=results/y; or two settings of one: A=results/x WHERE_A="guidance=1" WHERE_B="guidance=4"
	@test -n "$(A)" -a -n "$(B)$(WHERE_A)$(WHERE_B)" || { echo "A=<results folder> B=<results folder> are needed, or A=<results folder> WHERE_A=\"guidance=1\" WHERE_B=\"guidance=4\""; exit 2; }
	@$(PY) -m benchmarks.compare "$(A)" $(if $(B),"$(B)") --where-a '$(WHERE_A)' --where-b '$(WHERE_B)'

weights: $(READY) ## retrain the shipped autoencoder, codebook and judge: WEIGHTS_DATA=<image folder> UNSEEN_DATA=<another, to score>
	@test -n "$(WEIGHTS_DATA)" || { echo "WEIGHTS_DATA=<folder with train/<class>/* and val/<class>/*> is needed"; exit 2; }
	$(PY) -m benchmarks.weights "$(WEIGHTS_DATA)" $(if $(UNSEEN_DATA),--unseen "$(UNSEEN_DATA)") $(ARGS)

judge-study: $(READY) ## is the judge worth listening to: real pictures spoiled step by step: results/reference/judge/
	$(PY) -m benchmarks.study results_dir=results/reference $(ARGS)

clean: ## remove caches and results (never results/reference nor .venv)
	rm -rf .cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	find results -mindepth 1 -maxdepth 1 -not -name reference -exec rm -rf {} + 2>/dev/null || true
