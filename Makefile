# make demo          watch an A/B test of two TensorFlow models, on this machine, through the real parts
# make test          run every test (TESTS=tests/unit TESTFLAGS="-k name" for some of them)
# make build         leaves .venv/bin/tiltyard
# make lint          what CI checks before it runs anything
# make protos        the Python stubs under services/tiltyard/api/ from protos/
# make bench         the router beside nghttpx and Envoy
# make asan          unit, property and wire tests against a build with AddressSanitizer and UBSan
# make sdk-versions  the SDK's tests with the oldest and the newest grpcio and protobuf
# make clean         removes what was built; .venv stays
#
# Needs Debian or something like it. Missing packages are installed where that is allowed, else the command is printed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TESTS ?= tests

# meson finds ninja, cython and itself by PATH. What is tested is the installed package, not what PYTHONPATH names.
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONPATH

# The tutorial's models, where somebody has put them; tests that want them say that they skip without.
ifeq ($(TILTYARD_ALOHA_DIR),)
  ifneq ($(wildcard ../shared/aloha),)
    export TILTYARD_ALOHA_DIR := $(abspath ../shared/aloha)
  else
    unexport TILTYARD_ALOHA_DIR
  endif
endif

# Folders too: their times change when a file goes away.
SOURCES := $(shell find services router_ext tools/list_sources.py tools/install.sh meson.build meson_options.txt \
             pyproject.toml README.md LICENSE -not -name __pycache__ -not -name '*.pyc' 2>/dev/null)

.PHONY: demo test build lint protos bench asan sdk-versions clean help say

help:
	@sed -n '/^#$$/q; s/^# //p' Makefile

say:
	@tools/say.sh "$(VENV)"

# The environment: everything but Tiltyard itself. TensorFlow is most of it.
$(BIN)/.environment: pyproject.toml tools/environment.sh tools/packages.sh
	@tools/packages.sh
	@tools/environment.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# Tiltyard as anybody would install it: a wheel, built here, not the source tree.
$(BIN)/.installed: $(BIN)/.environment $(SOURCES)
	@tools/install.sh "$(VENV)"
	@touch $@

build: say $(BIN)/.installed
	@echo "built: $(BIN)/tiltyard"

demo: build
	@$(BIN)/tiltyard demo

test: build
	@TILTYARD_INSTALLED=1 $(BIN)/python -m pytest $(TESTS) $(TESTFLAGS)

lint: build
	@tools/lint.sh "$(VENV)"

protos: say $(BIN)/.environment
	@PYTHON=$(BIN)/python tools/protos.sh

bench: build
	@$(BIN)/python benchmarks/bench_router.py $(BENCHFLAGS)

asan: build
	@tools/asan.sh "$(VENV)" $(ASANFLAGS)

sdk-versions: build
	@tools/sdk_versions.sh "$(PYTHON)" "$(VENV)"

clean:
	rm -rf build dist
