# `make demo` and `make test` need nothing but Python 3.11+ and make; both build .venv first.
PYTHON ?= python3
BIN := .venv/bin
RAY := test_ray.py test_training_on_ray.py test_s3.py test_serve.py
LONG := tests/recipes/test_smoke.py tests/stories/test_hosts.py tests/stories/test_slurm.py

.PHONY: demo test suite test-more quick check docs screenshots bench clean

demo: .venv/installed
	$(BIN)/femtobooth demo

test: .venv/installed
	$(MAKE) --no-print-directory --jobs 2 check suite

suite: .venv/installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(addprefix --ignore ,$(LONG))

quick: .venv/installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not slow" -q

# What `make test` leaves out: Ray and an S3 server take half a minute to install, and Ray starts many processes; the
# recipe and trainings on several hosts take as long.
test-more: .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test-more]'
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix tests/workflows/,$(RAY)) $(LONG)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/documented
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build
	@echo docs/_build/index.html

screenshots: .venv/installed
	$(BIN)/femtobooth personalize examples/mascot --class-noun robot --steps 200 --name femto --runs build/screenshots/runs --overwrite
	$(BIN)/femtobooth generate build/screenshots/runs/femto "a [V] robot on the moon" "a [V] robot in the snow" -n 4
	FEMTOBOOTH_SCREENSHOTS=build/screenshots FEMTOBOOTH_SCREENSHOTS_OF=build/screenshots/runs/femto $(BIN)/python -m pytest -q tests/studio/test_pages.py::test_pages
	cp build/screenshots/subject.png build/screenshots/run.png build/screenshots/draw.png docs/studio/

.venv/documented: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "femtobooth needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	@# Python compiles what it imports when it first does; all that lies there would take a minute and a half.
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist docs/_build src/*.egg-info
