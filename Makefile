# `make check` runs what CI runs; .ci/run only installs what it needs first.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help check test test-oldest chaos chaos-short durability durability-short lint types docs wheel example bench bench-stores bench-cluster bench-levels format

VERSIONS = import platform, django; print("Python", platform.python_version(), "| Django", django.get_version())

# The oldest Python and Django we support, in an environment of its own.
OLDEST_DJANGO = 6.0
OLDEST_ENV = .venv312
OLDEST_UV = UV_PROJECT_ENVIRONMENT=$(OLDEST_ENV) uv
OLDEST_RUN = $(OLDEST_UV) run --python 3.12 --no-sync

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check: test test-oldest chaos-short durability-short lint types docs wheel example  ## everything that CI runs

test:  ## the tests on the newest Python and Django
	uv run python -c '$(VERSIONS)'
	uv run pytest

test-oldest:  ## the tests on Python 3.12 with Django 6.0
	$(OLDEST_UV) sync --python 3.12
	uv pip install --compile-bytecode --python $(OLDEST_ENV) 'django==$(OLDEST_DJANGO).*'
	$(OLDEST_RUN) python -c '$(VERSIONS); assert django.VERSION[:2] == tuple(map(int, "$(OLDEST_DJANGO)".split("."))), "wrong Django"'
	$(OLDEST_RUN) pytest

chaos:  ## 10,000 tasks while worker processes are killed, waiters leave, web workers go
	uv run python -m chaos

chaos-short:  ## the same for half a minute
	uv run python -m chaos --seconds 30

durability:  ## kill a whole server 100 times, whose tasks the sqlite store keeps
	uv run python -m chaos.durability

durability-short:  ## the same 10 times
	uv run python -m chaos.durability --rounds 10

lint:  ## style, formatting and the import contract
	uv run ruff check
	uv run ruff format --check
	uv run lint-imports --no-logo

format:  ## mend style and formatting
	uv run ruff check --fix
	uv run ruff format

types:  ## mypy, pyright, and the completeness of the public types
	uv run mypy
	uv run pyright
	uv run pyright --verifytypes django_tasks_local --ignoreexternal

docs:  ## build the documentation into site/; warnings are errors
	uv run --group docs zensical build --clean --strict

wheel:  ## build, and test the wheel installed alone
	rm -rf dist
	uv build
	@set -eu; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; set -x; \
	uv venv --quiet "$$scratch/venv"; \
	uv pip install --python "$$scratch/venv" dist/*.whl; \
	mkdir "$$scratch/empty"; cp .ci/wheel_check.py "$$scratch/"; cd "$$scratch/empty"; \
	"$$scratch/venv/bin/python" ../wheel_check.py

example:  ## run the example's job once, without a server
	uv run example.py --once

bench-stores:  ## the part of it that compares the stores
	uv run python -m benchmarks --stores

bench-cluster:  ## the part of it that measures a Dask cluster
	uv run python -m benchmarks --cluster

bench-levels:  ## the part of it that tells how far each way to run tasks goes
	uv run python -m benchmarks --levels

bench:  ## compare with 2.0 and the bare executors, and write the docs' table and picture
	uv run python -m benchmarks
