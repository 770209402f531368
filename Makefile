# The commands of daily work, for an active environment; CONTRIBUTING.md explains them.
FAST = -m "not slow and not model and not gpu"

.PHONY: help dev check fast test docs coverage golden minimum bench-help

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

dev:             ## editable install, and the link that pyright follows
	pip install --editable '.[test,dev]'
	mkdir -p .dev && ln -sfn .. .dev/spikebrain

check:           ## ruff, formatting, types
	ruff check .
	ruff format --check .
	pyright

fast:            ## the tests to run after every change, in two processes
	pytest -q -n 2 $(FAST)

test:            ## all tests that this machine can run
	pytest --durations=10

docs:            ## the documentation, in build/docs; any warning is an error
	python -P -m sphinx --fail-on-warning --nitpicky --quiet docs build/docs
	@echo build/docs/index.html

# -P: the folder of the repository is no place to import from, since the root is the package.
coverage:        ## all tests but those that need a model or a GPU, with coverage: a table, and pages in htmlcov/
	python -P -m coverage erase
	python -P -m coverage run -m pytest -q -m "not model and not gpu"
	python -P -m coverage combine --quiet
	python -P -m coverage report
	python -P -m coverage html --quiet

golden:          ## make the vectors in tests/golden/ again
	python tests/golden/make.py

minimum:         ## the fast tests with the oldest versions that pyproject.toml allows, in .venv-minimum (8 GB)
	python -m venv .venv-minimum
	.venv-minimum/bin/pip install --constraint tests/minimum.txt . pytest hypothesis beartype
	.venv-minimum/bin/pytest -q $(FAST)

bench-help:      ## what each benchmark measures
	@for file in $$(grep -l __main__ benchmarks/*.py); do printf '%-34s' $$file; head -1 $$file | sed 's/"""//g'; done
