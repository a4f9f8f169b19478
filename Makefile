# make setup          the virtual environment, from pins
# make demo           the main job on real images, and a check of its figures
# make test           lint, types, tests (needs nothing but Python 3.11 and pip)
# make test-wheel     types, and tests of every part against the built wheel, from another directory
# make test-services  tests on data and servers from Debian and Python packages; installs them with apt-get (root) and pip
# make check-long     checks of minutes rather than seconds: the demo's weights trained anew, every class of the world asked for

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
READY := .venv/.ready
DEBIAN_PACKAGES := dataset-fashion-mnist chromium postgresql iproute2
MILVUS := milvus==2.3.5 'setuptools<81'  # a server, in an environment of its own: it needs older packages than ours
SERVICE_PACKAGES := s3fs==2026.9.0 "moto[server]==5.2.5" nudenet==3.4.2
WHEEL := $(CURDIR)/build/installed
IN_WHEEL := imports docs cli claim_cli contract collection digits_stage fashion_world eval eval_models generate remote pages \
  service_settings engines  # tests that reach every package, command and file that the wheel carries
PYTEST := $(BIN)/pytest -n 2 --dist loadfile  # two processes of one thread each, a file's tests in one
export OMP_WAIT_POLICY := PASSIVE
test test-wheel: export OMP_NUM_THREADS := 1

.PHONY: setup demo lint test test-wheel test-services check-long clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "negindex needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@echo "installing pinned packages into .venv: about 6 GB, one to several minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/negindex demo --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(PYTEST) -m "not long and not services"

test-wheel: setup
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(WHEEL) build/wheel/*.whl
	cd $(WHEEL) && MYPYPATH=$(WHEEL) $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p negindex
	cp -r tests README.md CHANGELOG.md docs pyproject.toml $(WHEEL)/..
	cd build && PYTHONPATH=$(WHEEL) $(PYTEST) -m "not long and not services" $(IN_WHEEL:%=tests/test_%.py)

test-services: setup
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES)
	test -x build/milvus/bin/milvus-server || { $(BIN)/python -m venv build/milvus && \
	  build/milvus/bin/pip install --quiet --disable-pip-version-check $(MILVUS); }
	$(BIN)/pip install --quiet --disable-pip-version-check $(SERVICE_PACKAGES)
	tests/confined.sh $(BIN)/pytest -m services tests

check-long: setup
	$(BIN)/pytest -m long tests

clean:
	rm -rf .venv build demo *.egg-info
