# make run      set up .venv and run the pipeline (params.yaml says which profile) to report/index.html
# make test     set up .venv with the development tools and run every check but those that take longest
# make test-all  run those, too
# make smoke    the same pipeline with everything tiny, to see that all of it works here
# make profile  write params.yaml from a profile: make profile PROFILE=coco
# make bench    measure: ours against the papers' way, both sides in turns, into benchmarks/results
# make seeds    the whole run with two more seeds, each in a clone of its own: mean and deviation in metrics/seeds.json
# make compare-generators  the image generator with and without the adversarial game, in comparison/ (after make run)
# make compare-stages      stage 2 against stage 1 over three seeds, in metrics/ (after make run)
# make table1   the paper's table 1 in miniature, every row over five seeds: ablations/table1/index.html (docs/ablations.md)
# make table2   its table 2, every system that captions or paints, with what each costs: ablations/table2/index.html (docs/choose.md)
# make study-table2  a human study of these paintings, in study.db (docs/human-study.md)
# make x-lxmert  X-LXMERT: pretraining, fine-tuning on VQA, GQA and NLVR2: ablations/x_lxmert/index.html (docs/x-lxmert.md)
# make l-verse  L-Verse, trained from pixels: ablations/l_verse/index.html (docs/l-verse.md)
# make table-x-lxmert  X-LXMERT's tables in miniature, and X-UNITER: ablations/table_x_lxmert/index.html (docs/x-lxmert.md)
# make compare-attentions  masked against prefix captions over three seeds, in benchmarks/results (after make run)
# make doctor   what this machine and clone lack to run, and what to do
# make team-cache  share outputs and features with other clones: make team-cache DIRECTORY=/srv/diptych (docs/team-cache.md)
# make clean    remove .venv, outputs and unfinished work; the DVC cache, extracted features and what you put into data/ stay

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := run

PYTHON ?= python3
PROFILE ?= toybox
VENV := .venv
# stages start as `python -m pipelines.<stage>`, so python has to be the one of .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

PACKAGES := -e 'packages/features[pipeline,remote]' -e 'packages/eval[study]' -e 'packages/model[use,serve]'
PIPELINE := dvc dvc-ssh hydra-core ruamel.yaml psutil
TOOLS := ruff mypy import-linter pytest pytest-xdist h5py selenium httpx2 torch-fidelity vector-quantize-pytorch 'moto[server]' s3fs dvc-s3
# what Ray Train needs besides Ray, in a folder that trainings on a cluster alone read: where there is pandas, Arrow imports it, and
# every process would start a quarter of a second later
RAY_TRAIN := pandas tensorboardX
PIP_INSTALL := python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test test-all smoke profile bench seeds table1 study-table2 compare-generators compare-stages x-lxmert l-verse compare-attentions doctor team-cache clean lint setup

run: $(VENV)/.complete
	@python -m pipelines.runner.check
	dvc repro
	@echo "Report: $(CURDIR)/report/index.html"

smoke: $(VENV)/.complete
	python -m pipelines.runner.profile smoke
	dvc repro
	@echo "Report: $(CURDIR)/report/index.html (params.yaml is the smoke profile; back: git checkout params.yaml metrics)"

profile: $(VENV)/.complete
	python -m pipelines.runner.profile $(PROFILE)

bench: $(VENV)/.complete-tools
	python -m benchmarks.features
	python -m benchmarks.model
	python -m benchmarks.single_stream
	python -m benchmarks.answering
	python -m benchmarks.scst
	python -m benchmarks.pretraining
	python -m benchmarks.image_generator
	python -m benchmarks.l_verse
	python -m benchmarks.eval
	python -m benchmarks.cluster
	python -m benchmarks.memory
	python -m benchmarks.scale

seeds: $(VENV)/.complete
	@python -m pipelines.runner.check
	@python -m pipelines.commands.seeds $(if $(SEEDS),--seeds $(SEEDS))

compare-generators: $(VENV)/.complete
	python -m pipelines.commands.compare_image_generators

compare-stages: $(VENV)/.complete
	python -m pipelines.commands.compare_training_stages

# each folder of pipelines/tables with data is a table and a target
TABLES := $(subst _,-,$(patsubst pipelines/tables/%/table.py,%,$(wildcard pipelines/tables/*/table.py)))
.PHONY: $(TABLES)
table1:
table2:
table-x-lxmert:
$(TABLES): $(VENV)/.complete
	@python -m pipelines.runner.check
	@python -m pipelines.tables $(subst -,_,$@) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS))

# a human study of the paintings that table2 has kept (docs/human-study.md)
study-table2: $(VENV)/.complete
	@python -m pipelines.tables.study table2 "$(or $(STUDY),study.db)"

x-lxmert: $(VENV)/.complete
	@python -m pipelines.runner.check
	dvc repro pipelines/x_lxmert/dvc.yaml
	@echo "Page: $(CURDIR)/ablations/x_lxmert/index.html"

l-verse: $(VENV)/.complete
	@python -m pipelines.runner.check
	dvc repro pipelines/l_verse/dvc.yaml
	@echo "Page: $(CURDIR)/ablations/l_verse/index.html"

compare-attentions: $(VENV)/.complete
	python -m benchmarks.attention

# also where nothing is set up yet, to say why that fails
doctor:
	@$(if $(wildcard $(VENV)/bin/python),python,$(PYTHON)) -m pipelines.commands.doctor

team-cache: $(VENV)/.complete
	@python -m pipelines.commands.team_cache "$(or $(DIRECTORY),$(error say where: make team-cache DIRECTORY=/srv/diptych))" \
		$(if $(GROUP),--group "$(GROUP)") $(if $(REMOTE),--remote "$(REMOTE)")

lint: $(VENV)/.complete-tools
	ruff check .
	mypy
	lint-imports

# two processes: most tests wait for something that they started or killed; files in the order of tests/conftest.py
PYTEST := pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

# an empty selection in the place of pyproject.toml's
test-all: lint
	$(PYTEST) -m ""

setup: $(VENV)/.complete

# A stamp stands only while its installation is whole: what was interrupted is made anew (pip's cache makes that quick).
$(VENV)/.complete: constraints.txt packages/features/pyproject.toml packages/eval/pyproject.toml packages/model/pyproject.toml Makefile
	@command -v git >/dev/null || { echo "git is missing: DVC needs it (apt-get install git)"; exit 1; }
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "this folder is no git clone: DVC needs one (git clone, not an archive)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make run PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "venv is missing: apt-get install python3-venv"; exit 1; }
	@if [ ! -e $@ ]; then echo "Setting up $(VENV): some minutes and 6 GB the first time"; $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(VENV)/.complete $(VENV)/.complete-tools
	$(PIP_INSTALL) $(PACKAGES) $(PIPELINE)
	$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/ray_train $(RAY_TRAIN)
	@touch $@

$(VENV)/.complete-tools: $(VENV)/.complete
	@rm -f $(VENV)/.complete
	$(PIP_INSTALL) $(PACKAGES) $(PIPELINE) $(TOOLS)
	@touch $(VENV)/.complete $@

clean:
	rm -rf $(VENV) .partial-* {data,metrics}/.partial-* code data/{dataset,features,codebook,shards,generated,evaluation.parquet,evaluation_answers.parquet,evaluation_figures.json,x_lxmert,l_verse} models plots report ablations comparison metrics/stages .cache/training .cache/unfinished .cache/seeds .mypy_cache .pytest_cache .ruff_cache
