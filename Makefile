# Every target works as the first command in a fresh clone: it makes .venv and installs what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-kills test-mutations test-browser test-full gpu-check lint format bench

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(INSTALLED)  ## Make .venv with the tested versions of everything

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)"
	touch $@

demo: install  ## Train first stage and diffusion model on embedded data, generate and measure (ten minutes)
	$(BIN)/python -m ldm_lightning.pipeline experiment=ldm_shapes name=demo data.num_train_images=16000 samples.num_samples=400 "first_stage.overrides=['discriminator=none','max_steps=700','validation.every_steps=350']"

test: install  ## Run the tests that take minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=25 -m "not slow and not kills and not gpu and not browser"

test-slow: install  ## Run the tests that take longer, many processes of them
	$(BIN)/python -m pytest -n 2 --durations=25 -m "slow and not kills and not gpu and not browser"

test-kills: install  ## Kill trainings sixty times, continue them, compare the ends (half an hour)
	$(BIN)/python -m pytest -s -m kills

test-mutations: install  ## Plant a hundred mistakes; a test of seconds must notice each (some minutes)
	$(BIN)/python -m tests.mutations

test-browser: install  ## Open a report in headless Chromium, which must be installed
	$(BIN)/python -m pytest -m browser

test-full: install  ## Run every test this machine can run
	$(BIN)/python -m pytest -n 2 $(if $(shell sh -c 'command -v chromium'),,-m "not browser")

gpu-check: install  ## Test, train, profile and time on one GPU, meant for ten minutes; writes outputs/gpu_check
	$(BIN)/python -m benchmarks.gpu_check

lint: install  ## Check style, prose, types, the direction of imports and known weaknesses
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.lint_prose
	$(BIN)/bandit --quiet -ll --recursive ldm_lightning hydra_plugins experiments benchmarks

format: install  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Time our updates beside others' (45 minutes on two cores; QUICK=1: ten)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)
