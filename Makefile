# The tasks of this project: `make` lists them. Each one makes or refreshes .venv by itself.

PYTHON      ?= python3
PORT        ?= 8000
MLFLOW_PORT ?= 5000
ARGS        ?=
OVERLAY     ?= staging
export REGISTRY ?=

SHELL       := bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export MLFLOW_DISABLE_TELEMETRY := true
export ORT_DISABLE_TELEMETRY := 1
# Tests start hundreds of interpreters: compiled modules are kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

env   := .venv/.made
exact := preprocessing/pipeline model/inference $(addprefix serving/,answers keys guards service routes history access_log fast_path fast_batch gateway protocol server api)
# Three workers for two cores, as tests also wait; each computes with one thread. What shares something stays together.
parallel  = -n $(shell $(PYTHON) -c 'import os; n = os.cpu_count() or 1; print(min(8, n + n // 2))') --dist loadscope
alone    := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1

.DEFAULT_GOAL := help
# `make up` uses whichever compose there is.
compose := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) $(COMPOSE_OPTIONS)
SERVICE ?= api
running := {{if and .State.Running (eq (index .Config.Labels "com.docker.compose.oneoff") "False")}}{{.Id}}{{end}}

# What images are named by. A tree with changes in it is not its last commit, and is not called so.
VERSION  := $(shell sed -n 's/^version = //p' settings.ini)
REVISION  = $(shell git describe --always --dirty --abbrev=64 --exclude='*' 2>/dev/null || echo unknown)

.PHONY: help serve train retrain report check test coverage notebooks bench limits growth soak lint export readme docs lab lock clean env up down logs ps exec upgrade rotate images test-stack push deploy dev hooks release card pictures

help: ## print these tasks
	@printf 'usage: make TASK [PORT=8000] [MLFLOW_PORT=5000] [ARGS="..."] [PYTHON=python3]\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

serve: $(env) ## train if there is no champion yet, then serve the API (PORT) and the MLflow UI (MLFLOW_PORT)
	@exec housing-mlops up --port $(PORT) --mlflow-port $(MLFLOW_PORT)

train: $(env) ## run the training notebook, e.g. ARGS="-p models '[\"Ridge\"]' -p folds 3"
	@exec housing-mlops train $(ARGS)

retrain: $(env) ## look at the evidence, and train anew when it says so; ARGS=--dry-run only tells
	@exec housing-mlops retrain $(ARGS)

report: $(env) ## write what the prediction log holds as a page under runs/, e.g. ARGS="--window 5000"
	@exec housing-mlops report $(ARGS)

check: $(env) ## in a minute: format, lint, types, what is generated, and the tests that start no process
	@$(MAKE) -s lint
	@$(alone) pytest -q $(parallel) -m "not (process or database or browser or train or scale or nightly)" $(ARGS)

ifeq ($(ARGS),)
test: $(env) ## every notebook's examples against the package, and tests/. ARGS="-k drift": only these
	@$(alone) pytest -q $(parallel) -m "not nightly"
else
test: $(env)
	@pytest -q $(ARGS)
endif

coverage: $(env) ## the same, a third longer, and how much of the code it runs; below what is held, it fails
	@set -e; rm -f .coverage .coverage.*; \
	$(alone) coverage run -m pytest -q $(parallel) -m "not nightly"; \
	coverage combine -q; \
	echo "== coverage: 95 % of all, 100 % of $(exact)"; \
	coverage report; \
	for module in $(exact); do \
	  test ! -f housing_mlops/$$module.py || \
	  coverage report --include=housing_mlops/$$module.py --fail-under=100 >/dev/null || \
	  { echo "housing_mlops/$$module.py is not covered in full."; exit 2; }; \
	done

notebooks: $(env) ## run the notebooks that changed, and save the outputs of the stories; ARGS="--fresh nbs/7_monitoring"
	@python docs/execute.py $(ARGS)

bench: $(env) ## measure serving, inference, start-up and reasons (wrk from Debian); ARGS=--quick takes a minute
	@command -v wrk >/dev/null || { echo "wrk is needed: sudo apt-get install wrk"; exit 2; }
	@python benchmarks/serving.py $(ARGS)
	@test -n "$(ARGS)" || { python benchmarks/inference.py; python benchmarks/startup.py; python benchmarks/explain.py; python benchmarks/trial.py; }

limits: $(env) ## do intervals hold what they say, are strange houses found; ARGS="--only flags --table houses.toml"
	@python benchmarks/limits.py $(ARGS)

growth: $(env) ## how training and a price grow with rows and columns: a law and a plot in runs/growth; ARGS="--rows 20000"
	@python benchmarks/growth.py $(ARGS)

soak: $(env) ## faults at random under load, and nothing may be lost; ARGS="--minutes 1 --database postgresql"
	@python benchmarks/soak.py $(ARGS)

lint: $(env) ## ruff, mypy, workflows, and whether the package, the notebooks and README.md are in step
	@ruff check --quiet .
	@ruff format --check . || { echo "Run \`make export\`, which formats."; exit 1; }
	@python docs/generate.py --check
	@check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@check-jsonschema -q --builtin-schema vendor.compose-spec docker-compose.yml
	@zizmor --quiet --offline --persona pedantic .github/workflows
	@! command -v actionlint >/dev/null || actionlint
	@mypy

export: $(env) ## write the package and README.md from the notebooks, which are formatted and cleaned
	@ruff format --quiet .
	@python docs/generate.py

readme: $(env) ## write README.md from nbs/index.ipynb
	@python docs/generate.py --readme

docs: $(env) ## execute the notebooks that changed and render all as a site in _docs/; ARGS="--jobs 1"
	@python docs/build.py $(ARGS)

card: $(env) ## the model card from a home that make train was run in: ARGS=HOME
	@python docs/model_card.py $(ARGS)

pictures: $(env) ## the pictures of README.md from the stories; ARGS=HOME, a folder with a champion: the dashboard's too
	@python docs/pictures.py $(ARGS)

lab: $(env) ## JupyterLab on this folder; what is saved is clean; it keeps to this folder (_proc/lab has what it remembers)
	@echo "JupyterLab of .venv; its settings and history are in _proc/lab, and nothing is written outside this folder."
	@mkdir -p _proc/lab; export JUPYTER_CONFIG_PATH=$(CURDIR)/docs/lab \
	  $(foreach dir,CONFIG DATA RUNTIME,JUPYTER_$(dir)_DIR=$(CURDIR)/_proc/lab/$(dir)) \
	  $(foreach dir,SETTINGS WORKSPACES,JUPYTERLAB_$(dir)_DIR=$(CURDIR)/_proc/lab/$(dir)) \
	  IPYTHONDIR=$(CURDIR)/_proc/lab/ipython MPLCONFIGDIR=$(CURDIR)/_proc/lab/matplotlib \
	  XDG_CACHE_HOME=$(CURDIR)/_proc/lab/cache npm_config_cache=$(CURDIR)/_proc/lab/npm; \
	exec jupyter lab $(ARGS)

dev: $(env) ## serve the API (PORT) from the notebooks: one that is saved is exported, and the server starts anew
	@exec python docs/dev.py $(PORT)

hooks: $(env) ## check what is committed in this clone, and merge notebooks cell by cell
	@pre-commit install
	@git config --local merge.nbdev-merge.name "notebooks, cell by cell"
	@git config --local merge.nbdev-merge.driver "$(CURDIR)/.venv/bin/nbdev_merge %O %A %B %P"

release: $(env) ## build the wheel and the sdist of settings.ini's version, check both, and give the changelog its heading
	@python docs/release.py

lock: $(env) ## pin the requirements anew; ARGS=--upgrade takes the newest versions allowed
	@set -e; compile() { uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate $(ARGS) "$$@"; }; \
	compile setup.py -o requirements/serve.lock; \
	compile setup.py --extra otel -o requirements/otel.lock; \
	compile setup.py --extra train -o requirements/train.lock; \
	compile setup.py --extra train --extra scale -o requirements/scale.lock; \
	compile setup.py --extra train --extra scale --extra otel --extra dev --extra docs -o requirements/dev.lock; \
	compile - <<<$$'uv\nsetuptools>=77' --constraint requirements/dev.lock -o requirements/uv.lock; \
	compile - <<<'feast>=0.67,<0.68' -o requirements/feast.lock
	@wc -l requirements/*.lock

env: ## make .env from .env.example, to choose ports, passwords and the like; the stack starts without it too
	@test -e .env && echo ".env is there" || { umask 077; cp .env.example .env; echo ".env is made"; }

up: ## build and start the container stack and wait until it serves; ARGS="--profile observability": with Grafana
	@VERSION=$(VERSION) REVISION=$(REVISION) $(compose) $(ARGS) up -d --build
	@$(PYTHON) deploy/wait_ready.py

down: ## stop the container stack; ARGS=-v removes its data too
	@$(compose) --profile observability --profile scale --profile feast down $(ARGS)

logs: ## follow the logs of the container stack, e.g. ARGS=api
	@$(compose) logs -f --tail 100 $(ARGS)

ps: ## list the services of the container stack and how they are
	@$(compose) ps $(ARGS)

exec: ## a command in a running container, whatever its number: ARGS="housing-mlops rollback"; SERVICE=monitor for another
	@id=$$($(compose) ps -q $(SERVICE) | xargs -r docker inspect -f '$(running)' | grep -m 1 .) || \
	  { echo "No $(SERVICE) runs: docker-compose up -d starts the stack." >&2; exit 1; }; \
	docker exec -i $$id $(ARGS)

upgrade: ## go over to the images of TAG, an API after the other: no request fails. TAG=the former one: and back
	@$(PYTHON) deploy/upgrade.py

rotate: ## new passwords in the running stack; no request fails. ARGS="housing mlflow": of these alone
	@$(compose) run --rm --no-deps secrets rotate $(ARGS)

images: ## build the images api, train and proxy, named by TAG, version and commit; print what they add to their base
	@set -e; for target in train api proxy; do \
	  echo "building $$target"; name=housing-mlops-$$target; \
	  docker build -q --target $$target -t $$name:$${TAG:-latest} \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(ARGS) . >/dev/null; \
	  case $(REVISION) in *-dirty|unknown) ;; *) for tag in $(VERSION) $(REVISION); do \
	    docker tag $$name:$${TAG:-latest} $$name:$$tag; done;; esac; \
	done
	@$(PYTHON) deploy/image_size.py

test-stack: $(env) ## build the images, start the stack, break each part of it, and check that nothing is lost
	@pytest -q -p no:cacheprovider tests/stack $(ARGS)

push: ## push the images to REGISTRY, named by the commit, e.g. REGISTRY=ghcr.io/me
	@: $${REGISTRY:?Name a registry: make push REGISTRY=ghcr.io/me}
	@case $(REVISION) in *-dirty|unknown) echo "Commit first: these images are of no commit."; exit 1;; esac
	@set -e; for target in api train proxy; do \
	  name=$$REGISTRY/housing-mlops-$$target:$(REVISION); \
	  docker tag housing-mlops-$$target:$${TAG:-latest} $$name; docker push -q $$name; \
	done

deploy: ## put a release on Kubernetes: OVERLAY=staging, production or try; REGISTRY and TAG for other images than its own
	@deploy/kubernetes/apply.sh "$(OVERLAY)" "$(REGISTRY)" "$(TAG)"

clean: ## remove caches, the site and .venv; data, models and databases stay
	@rm -rf .venv _docs _proc build *.egg-info .coverage .coverage.* .hypothesis
	@find . -name .git -prune -o -type d \( -name '.*_cache' -o -name __pycache__ \
	    -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# pip brings uv, which installs the rest in seconds; every file is checked against its hash.
$(env): requirements/dev.lock requirements/uv.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed; '$(PYTHON) --version' says: $$($(PYTHON) --version 2>&1)"; \
	    echo "Install one, or name one: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment. Install what it lacks:"; \
	    echo "  sudo apt-get install python3-venv"; exit 1; } >&2
	@echo "making .venv"
	@test "$$(.venv/bin/python -V 2>&1)" = "$$($(PYTHON) -V 2>&1)" || $(PYTHON) -m venv --clear .venv
	@pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@uv pip sync -q --python .venv/bin/python --require-hashes requirements/dev.lock
	@uv pip install -q --python .venv/bin/python --no-deps -e .
	@touch $@
