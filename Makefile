# The two commands: `make image TARGET=cpu` and `make test`. Everything else is `imgbuild --help`.
TARGET ?= cpu
PYTHON ?= python3
VENV := .venv
IMGBUILD := $(VENV)/bin/imgbuild

.PHONY: image test test-slow test-gpu check lint clean

image: $(VENV)/.ready  ## Mend the machine where needed (as root on Debian and Ubuntu), then build TARGET
	$(IMGBUILD) doctor --fix
	$(IMGBUILD) build --target $(TARGET) $(ARGS)

# The image that tests are of: comfyui:cpu where this machine has it.
TESTED = IMGBUILD_IMAGE="$${IMGBUILD_IMAGE-$$(docker image inspect comfyui:cpu >/dev/null 2>&1 && echo comfyui:cpu)}"

test: $(VENV)/.ready  ## What this machine can prove in minutes; what that leaves out is said at the end
	@$(TESTED) $(VENV)/bin/python tests/all.py $(ARGS)

test-slow: $(VENV)/.ready  ## The rest: builds without cache, updates of running servers, workers and fronts, two engines of which one is killed
	@$(TESTED) $(VENV)/bin/pytest -m slow tests/e2e tests/queue $(ARGS)

test-gpu: $(VENV)/.ready  ## The kernels of TARGET's image against PyTorch, on this machine's GPU
	$(VENV)/bin/python tests/gpu/in_image.py $(or $(IMAGE),comfyui:$(TARGET)) --keep

check: $(VENV)/.ready lint  ## What has drifted, and what a linter sees
	$(IMGBUILD) lock --check
	$(IMGBUILD) render --check

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint --config .hadolint.yaml rendered/*/Dockerfile
	$(VENV)/bin/jactionlint --shellcheck $(VENV)/bin/shellcheck .github/workflows/*.yml
	$(VENV)/bin/zizmor --offline --quiet .github/workflows

$(VENV)/.ready: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'imgbuild needs Python 3.11 or newer: make PYTHON=python3.12 …' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo 'Python has no venv module: apt-get install python3-venv, then the same command again' >&2; exit 2; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
