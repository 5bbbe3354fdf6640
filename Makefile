.PHONY: check lint types imports test format wheel docs

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

# The pages as their links expect them: README beside docs/, with the tables and figures of sweeps/reference.
docs:
	rm -rf build/pages && mkdir -p build/pages/sweeps/bases build/pages/benchmarks
	cp -r README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff LICENSE docs build/pages
	cp -r sweeps/reference build/pages/sweeps
	cp sweeps/bases/README.md build/pages/sweeps/bases
	cp benchmarks/README.md build/pages/benchmarks
	uv run --group docs zensical build --strict
