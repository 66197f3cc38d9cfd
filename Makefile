# `make bench` and `make test` set everything up themselves; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := @$(PY) -m benchmarks
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
# the preset, a file of conf/experiment; empty: gpu with CUDA, else cpu
PRESET ?=
# what else a command is to be told; for bench, study, probe and reconstruct these are Hydra overrides
ARGS ?=

# a setting that is no variable of this file would be dropped without a word
KNOWN := PYTHON PRESET ARGS IMAGES REFERENCE A B WHERE_A WHERE_B MINUTES ONLY DATA OUT UNPACK LIST REHEARSE
given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $(v))),$(v)))
unknown := $(filter-out $(KNOWN),$(given))
# what people call their folders reaches the shell as it is, a variable of its own, whatever signs it has
WORDS := IMAGES REFERENCE A B DATA OUT UNPACK
$(foreach word,$(WORDS),$(eval override $(word) := $$(value $(word))))
export $(WORDS)
$(if $(unknown),$(error $(unknown): not a variable of this Makefile; settings go into ARGS, as in ARGS="seed=1"))

.DEFAULT_GOAL := help
.PHONY: help setup bench run test test-faults test-long agreement lint report score compare doctor cost perf reference publish \
	study reconstruct probe train-frozen commit-file clean

help: ## this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo 'presets, as in `make bench PRESET=smoke`:'
	@awk 'FNR == 1 {told = 0} /^# / && !/^# @/ && !told {name = FILENAME; sub(".*/", "", name); \
		sub(".yaml", "", name); printf "  %-16s %s\n", name, substr($$0, 3); told = 1}' conf/experiment/*.yaml

setup: $(READY) ## virtual environment .venv with pinned dependencies, editable install

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 needed, this is {v[0]}.{v[1]}; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[hub,judge,frozen,joblib,slurm,dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/test-only torch-fidelity
	@touch $@

bench: run ## train, sample, score and report: results/<preset>/ (PRESET=smoke ARGS="seed=0,1")

run: $(READY)
	$(RUN) run $(if $(PRESET),experiment=$(PRESET)) $(ARGS)

report: $(READY) ## rebuild tables and plots from the records in results/ (ARGS=<folders>)
	$(RUN) report $(ARGS)

score: $(READY) ## score images made elsewhere: IMAGES=<folder|npz|parquet> REFERENCE=<the same, or a data config>
	@test -n "$$IMAGES" -a -n "$$REFERENCE" || { echo "give IMAGES=<folder|npz|parquet> and REFERENCE=<the same, or one of conf/data>"; exit 2; }
	$(RUN) score "$$IMAGES" "$$REFERENCE" $(ARGS)

compare: $(READY) ## two results folders, or two settings of one: A=results/x B=results/y (WHERE_A="guidance=1" WHERE_B="guidance=4")
	@test -n "$$A" -a -n "$$B$(WHERE_A)$(WHERE_B)" || { echo 'give A=<results folder> B=<another>, or A=<results folder> WHERE_A="guidance=1" WHERE_B="guidance=4"'; exit 2; }
	$(RUN) compare "$$A" $${B:+"$$B"} $(if $(WHERE_A),--where-a $(WHERE_A)) $(if $(WHERE_B),--where-b $(WHERE_B)) $(ARGS)

doctor: $(READY) ## what a bench will make of this machine and of your images (ARGS="data=imagefolder data.path=/images")
	$(RUN) doctor $(ARGS)

cost: $(READY) ## count what every model and size costs, untrained: results/cost/
	$(RUN) cost $(ARGS)

perf: $(READY) ## every stage against the machine's ceiling and common baselines: results/perf/ (ARGS=--quick)
	$(RUN) perf $(ARGS)

reference: $(READY) ## make the studies of results/reference: MINUTES=9 ONLY=gpu DATA=<images> OUT=<folder>; LIST=1, REHEARSE=1, UNPACK=<folder>
	$(RUN) reference $(if $(MINUTES),--minutes '$(MINUTES)') $(if $(ONLY),--only '$(ONLY)') $${DATA:+--data "$$DATA"} \
		$${OUT:+--out "$$OUT"} $${UNPACK:+--unpack "$$UNPACK"} $(if $(LIST),--list) $(if $(REHEARSE),--rehearse) $(ARGS)

publish: $(READY) ## a small copy of a results folder, to commit: ARGS="results/cpu results/reference/cpu-procedural"
	$(RUN) publish $(ARGS)

study: $(READY) ## do the distances rise as real images are degraded? results/judge/ (ARGS="data=...")
	$(RUN) study $(ARGS)

reconstruct: $(READY) ## what the latents lose: results/reconstruct/ (ARGS="data=...")
	$(RUN) reconstruct $(ARGS)

probe: $(READY) ## speed and linear-probe accuracy of feature extractors (ARGS="data=... features=...")
	$(RUN) probe $(ARGS)

train-frozen: $(READY) ## retrain the shared autoencoder, codebook and judge: ARGS="<image folder> --unseen <another>"
	$(RUN) train-frozen $(ARGS)

test: $(READY) ## the tests, a process a core, four at most; then those that measure time, alone
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS) -m "not alone" || test $$? -eq 5
	$(PY) -m pytest $(ARGS) -m alone || test $$? -eq 5

test-faults: $(READY) ## kills, full disks, damage, nonsense and broken files, at length: the tally is results/faults.md
	@mkdir -p results
	TESTS=all TALLY=results/faults.md $(PY) -m pytest --timeout 3600 tests/test_faults.py tests/test_fuzz.py $(ARGS)

test-long: $(READY) ## what is too long for every day: sixty kills, all damage, two thousand broken inputs, launchers, processes, rehearsals
	$(MAKE) test-faults
	TESTS=all $(PY) -m pytest --timeout 3600 tests/test_launchers.py tests/test_team.py tests/test_team_cells.py tests/test_reference_rehearsal.py $(ARGS)
	TESTS=all $(PY) -m pytest --timeout 3600 -m long --ignore tests/test_faults.py --ignore tests/test_fuzz.py --ignore tests/test_launchers.py \
		--ignore tests/test_team.py --ignore tests/test_team_cells.py --ignore tests/test_reference_rehearsal.py $(ARGS)

agreement: $(READY) ## the distances against pytorch-fid, torch-fidelity, torchmetrics and prdc: results/agreement.json
	$(PIP) --no-deps --upgrade --target $(VENV)/agreement prdc pytorch-fid torch-fidelity efficientnet-lite-pytorch scikit-learn joblib cloudpickle narwhals threadpoolctl
	AGREEMENT=results/agreement.json $(PY) -m pytest tests/test_agreement.py

lint: $(READY) ## ruff's checks and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

commit-file: ## write .commit, so that records name the code where it is carried without its repository
	@echo "$$(git rev-parse --short=12 HEAD)$$(test -z "$$(git status --porcelain -- . ':!results')" || echo -dirty)" > .commit && cat .commit

clean: ## remove caches and results (never results/reference nor .venv)
	rm -rf .cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	find results -mindepth 1 -maxdepth 1 -not -name reference -exec rm -rf {} + 2>/dev/null || true
