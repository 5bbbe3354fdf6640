.PHONY: check lint types imports test format wheel

check: lint types imports test

lint:
	uv run ruff check
	uv run ruff format --check

types:
	uv run pyright

imports:
	uv run lint-imports

test:
	uv run pytest

format:
	uv run ruff check --fix
	uv run ruff format

wheel:
	uv build --wheel
