# `make report` and `make test` set up what they need, once: .venv holds TransformerLens 3.9 and
# .venv-tl4 TransformerLens 4, at the versions in constraints/. They need Python 3.11 or newer with
# pip and venv, and the network the first time only.
#
# On Linux PyPI's torch brings gigabytes of CUDA libraries. Without an NVIDIA card, set up with
#     make report TORCH_INDEX=https://download.pytorch.org/whl/cpu
# which takes torch, and nothing else, from PyTorch's own index of CPU builds.

PYTHON ?= python3
TORCH_INDEX ?=
PYTEST_ARGS ?=
# Stories for `make models` besides those that the teacher writes: the file that the bundled model's
# card names, where it lies beside the repository.
TEXT ?= $(wildcard ../shared/data/text/tinystories_sample_2MiB.txt)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
export HF_HUB_OFFLINE ?= 1
# Threads that wait do not spin: on a shared machine everything is far quicker.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Else pyright asks the network for a newer version.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help report test test-tl3 test-tl4 test-tl4-quietly check format models toys dictionaries unlearning unlearning-arithmetic unlearning-stories demos accelerate conversion bench circuits parity faults clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

report: .venv/.package ## write report.html: a bundled model, taken apart
	.venv/bin/tl-bilinear report -o report.html

# Both environments at once; the second one's output waits for the first to be done.
test: .venv/.test .venv-tl4/.test ## run the tests on TransformerLens 3.9 and on 4
	@mkdir -p .cache; rm -f .cache/test-*.log; status=0; \
	OMP_NUM_THREADS=1 $(MAKE) --keep-going --jobs=2 test-tl3 test-tl4-quietly || status=$$?; \
	cat .cache/test-tl4.log; \
	for n in 3 4; do echo "TransformerLens $$n:"; tail -n 1 .cache/test-tl$$n.log; done; \
	exit $$status

test-tl3: .venv/.test ## the tests on TransformerLens 3.9 alone; PYTEST_ARGS="-k tensor" to pick
	@mkdir -p .cache
	@set -o pipefail; .venv/bin/python -m pytest $(PYTEST_ARGS) 2>&1 | tee .cache/test-tl3.log

test-tl4: .venv-tl4/.test ## the tests on TransformerLens 4 alone
	@mkdir -p .cache
	@set -o pipefail; .venv-tl4/bin/python -m pytest $(PYTEST_ARGS) 2>&1 | tee .cache/test-tl4.log

test-tl4-quietly:
	@$(MAKE) test-tl4 > /dev/null

check: .venv/.lint .venv/.test ## formatting, lint, types, and who may import whom
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
	.venv/bin/python -m pytest tests/test_imports.py

format: .venv/.lint ## let ruff format and mend
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

models: toys stories ## train stories-5l again (three and a half hours), on TEXT and the teacher's stories, and all others
	.venv/bin/python -m tl_bilinear.conversion.stories --work-dir .cache/models $(if $(TEXT),--text "$(TEXT)")

stories: .venv/.package ## train stories-1l, stories-2l and their twins again (an hour and a half), on TEXT as well
	.venv/bin/python -m tl_bilinear.recipes.small_stories --work-dir .cache/stories --threads 1 --page benchmarks/twins.md $(if $(TEXT),--text "$(TEXT)")

toys: .venv/.package ## train the toy models (digits, mod-p) again (ten minutes)
	.venv/bin/python -m tl_bilinear.recipes.digits --work-dir .cache/toys --threads 1
	.venv/bin/python -m tl_bilinear.recipes.modular --work-dir .cache/toys --threads 1

conversion: .venv/.package ## ways to convert, compared; writes benchmarks/conversion.md (50 minutes)
	.venv/bin/python -m tl_bilinear.recipes.conversion_table --work-dir .cache/models --threads 1 -o benchmarks/conversion.md $(if $(TEXT),--text "$(TEXT)")

unlearning-arithmetic: .venv/.package ## one of two operations cut out of small networks; writes benchmarks/unlearning_arithmetic.md (two hours; goes on after a kill)
	.venv/bin/python -m tl_bilinear.recipes.unlearning_arithmetic --work-dir .cache/unlearning --threads 1 -o benchmarks/unlearning_arithmetic.md

dictionaries: .venv/.package ## train the pair of dictionaries of stories-5l again (ten minutes)
	.venv/bin/python -m tl_bilinear.recipes.story_dictionaries --work-dir .cache/dictionaries --threads 1 $(if $(TEXT),--text "$(TEXT)")

# All of it goes on where it was stopped. Two at a time: what a cell computes uses one core.
unlearning: .venv/.package ## forget arithmetic, planted facts and a planted concept (three and a half hours on two cores; goes on after a kill)
	$(MAKE) --jobs=2 unlearning-arithmetic unlearning-cells-stories-5l \
	    unlearning-cells-stories-5l-swiglu unlearning-cells-stories-2l
	$(MAKE) unlearning-stories

FORGET := .venv/bin/python -m tl_bilinear.recipes.unlearning_stories --work-dir .cache/unlearning --threads 1 $(if $(TEXT),--text "$(TEXT)")

unlearning-cells-%: .venv/.package
	$(FORGET) --model $* --output .cache/unlearning/$*.md

unlearning-stories: .venv/.package ## plant and forget, and how long that takes; writes benchmarks/unlearning_stories.md and fit_edit.md
	$(FORGET)
	# Alone and with two threads, as a user would: threads that wait briefly had better spin.
	env -u OMP_WAIT_POLICY .venv/bin/python benchmarks/fit_edit.py $(if $(TEXT),--text "$(TEXT)") \
	    --model stories-5l stories-2l stories-5l-swiglu --output benchmarks/fit_edit.md

demos: .venv/.package ## run every demo
	@for demo in demos/*.py; do echo "== $$demo"; .venv/bin/python "$$demo" || exit 1; done

# `accelerate launch --cpu` alone starts one process (without MPI); --multi_gpu starts two, and the
# variable keeps them on the CPU, where they talk through gloo.
accelerate: .venv/.package ## your own Trainer script converts a model, on two CPU processes
	ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 .venv/bin/accelerate launch --multi_gpu --num_processes 2 \
	    --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 \
	    demos/convert_with_trainer.py

bench: .venv/.bench ## run the benchmarks, and write their tables
	.venv/bin/python benchmarks/run.py
	.venv/bin/python benchmarks/boot.py
	.venv/bin/python benchmarks/decompositions.py --output benchmarks/decompositions.md
	.venv/bin/python benchmarks/ablation.py --output benchmarks/ablation.md
	.venv/bin/python benchmarks/training.py

circuits: .venv/.bench ## what tracing costs, and which basis makes small circuits (20 minutes; goes on after a kill)
	.venv/bin/python benchmarks/circuits.py --output benchmarks/circuits.md
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/circuit_bases.py --output benchmarks/circuit_bases.md

# The page is made anew, then shown; a cell above 1e-4 fails.
parity: .venv/.test .venv-tl4/.test ## every family and host beside Hugging Face, in both environments
	@mkdir -p .cache; sed '/^## /,$$d' benchmarks/parity.md > .cache/parity.md
	@for env in .venv .venv-tl4; do \
	    OMP_NUM_THREADS=1 $$env/bin/python benchmarks/parity.py > .cache/parity-part.md \
	        || { cat .cache/parity-part.md; exit 1; }; \
	    cat .cache/parity-part.md >> .cache/parity.md; echo >> .cache/parity.md; \
	done
	@mv .cache/parity.md benchmarks/parity.md; cat benchmarks/parity.md

faults: .venv/.test ## every damaged input and its error; writes benchmarks/faults.md
	@mkdir -p .cache; sed '/^## /,$$d' benchmarks/faults.md > .cache/faults.md
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/fault_table.py 2> .cache/faults.log >> .cache/faults.md \
	    || { tail -n 20 .cache/faults.log; exit 1; }
	@mv .cache/faults.md benchmarks/faults.md; cat benchmarks/faults.md

clean: ## remove caches and builds; environments and trained models stay
	rm -rf build dist report.html .pytest_cache .ruff_cache .hypothesis .cache/test-*.log
	find tl_bilinear tests demos benchmarks -name __pycache__ -prune -exec rm -rf {} + 2> /dev/null || true

# Set-up. $(1) is the environment, $(2) its constraints.
#
# .package, .test, .lint and .bench in an environment say that a step is done. While a step is at work
# .package is called .unfinished, and an environment where that is found is made anew. One with
# neither was made by hand and is brought up to date.
#
# torch comes alone, so that TORCH_INDEX is asked for nothing else and no looser requirement picks
# another build; what torch itself needs comes with the package.
define environment
$(1)/.package: pyproject.toml $(2)
	@if [ -e $(1)/.unfinished ] || ! $(1)/bin/python -m pip --version > /dev/null 2>&1; then \
	    $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("The tested versions need Python 3.11 or newer: make PYTHON=python3.11 ...")'; \
	    rm -rf $(1); mkdir $(1); touch $(1)/.unfinished; \
	    $(PYTHON) -m venv $(1); \
	fi
	@echo "Setting up $(1) from $(2): once, some minutes"
	@rm -f $$@; touch $(1)/.unfinished
	@$(1)/bin/python -m pip install --quiet --constraint $(2) pip
	@$(1)/bin/python -m pip install --quiet --constraint $(2) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(1)/bin/python -m pip install --quiet --constraint $(2) --build-constraint $(2) --editable '.[views]'
	@mv $(1)/.unfinished $$@; touch $$@

$(1)/.lint: $(1)/.test
$(1)/.test $(1)/.lint $(1)/.bench: $(1)/.%: $(1)/.package
	@echo "Adding the $$* tools to $(1)"
	@mv $(1)/.package $(1)/.unfinished
	@$(1)/bin/python -m pip install --quiet --constraint $(2) --group $$*
	@mv $(1)/.unfinished $(1)/.package; touch $$@
endef

$(eval $(call environment,.venv,constraints/tl3.txt))
$(eval $(call environment,.venv-tl4,constraints/tl4.txt))
