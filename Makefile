# make demo    watch an A/B test of two TensorFlow models, on this machine, through the real parts
# make test    run every test
# make build   leaves .venv/bin/tiltyard
# make lint    what CI checks before it runs anything
# make protos  the Python stubs under services/tiltyard/api/ from protos/
# make bench   the router beside nghttpx and Envoy
# make asan    unit, property and wire tests against a build with AddressSanitizer and UBSan
#
# Needs Debian or something like it. Missing packages are installed where that is allowed, else the command is printed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3

# meson finds ninja, cython and itself by PATH.
export PATH := $(abspath $(BIN)):$(PATH)

# The tutorial's models, where somebody has put them; tests that want them skip without.
TILTYARD_ALOHA_DIR ?= $(wildcard $(abspath ../shared/aloha))
export TILTYARD_ALOHA_DIR

SOURCES := $(shell find services router_ext tools/list_sources.py pyproject.toml meson.build meson_options.txt \
             -type f -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: demo test build lint protos bench asan ci sdk-versions clean help packages say

help:
	@sed -n 's/^# //p' Makefile | head -n 8

say:
	@tools/say.sh $(VENV)

packages:
	@tools/packages.sh

# The environment: everything but Tiltyard itself. TensorFlow is most of it.
$(BIN)/.environment: pyproject.toml tools/environment.sh
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
	@$(BIN)/python -m pytest tests $(TESTFLAGS)

lint: build
	@tools/lint.sh "$(VENV)"

protos: $(BIN)/.environment
	@PYTHON=$(BIN)/python tools/protos.sh

bench: build
	@$(BIN)/python benchmarks/bench_router.py $(BENCHFLAGS)

asan: build
	@tools/asan.sh "$(VENV)" $(ASANFLAGS)

# The SDK's tests with the oldest and the newest grpcio and protobuf that pyproject.toml allows.
sdk-versions: build
	@tools/sdk_versions.sh "$(PYTHON)"

clean:
	rm -rf build dist
