# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
#
# make demo    builds Apus and shows it on the example in Examples/digits
# make battery tries every CPU tactic around its edges, on each instruction set, and shows what it found
# make test    every check and test; needs Swift 6.3, Python 3.11 or newer, and the network once
# make format  rewrites Swift sources in the house style
# make clean   removes what the other targets made

PYTHON ?= python3
SWIFT ?= swift
VENV := .venv

.PHONY: all demo test check swift-test battery python-test operators format clean

all:
	$(SWIFT) build -c release

demo:
	$(SWIFT) build -c release --product apus
	$(PYTHON) Utilities/demo --apus "$$($(SWIFT) build -c release --show-bin-path)/apus"

test: check swift-test python-test

# Cheap checks of the sources themselves.
check:
	$(PYTHON) Utilities/check-architecture
	$(PYTHON) Utilities/check-sources

swift-test:
	$(SWIFT) build -c release --build-tests
	$(SWIFT) test -c release --skip-build
	APUS_CPU_ISA=avx2-vnni $(SWIFT) test -c release --skip-build
	APUS_CPU_ISA=avx2 $(SWIFT) test -c release --skip-build

# Every tactic of the CPU backend against the reference: a table for each instruction set.
battery:
	$(SWIFT) build -c release --build-tests
	$(SWIFT) test -c release --skip-build --filter TacticBattery
	APUS_CPU_ISA=avx2-vnni $(SWIFT) test -c release --skip-build --filter TacticBattery
	APUS_CPU_ISA=avx2 $(SWIFT) test -c release --skip-build --filter TacticBattery

python-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall ./Python
	$(VENV)/bin/pytest -q Python/tests
	APUS_TACTIC_SOURCES=portable $(VENV)/bin/pytest -q Python/tests/test_onnx_backend.py

$(VENV)/installed: Python/requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The list of operators in the documentation; a test compares it with the command's.
operators:
	$(SWIFT) build -c release --product apus
	"$$($(SWIFT) build -c release --show-bin-path)/apus" ops --markdown > Documentation/operators.md

format:
	$(SWIFT) format --in-place --parallel --recursive Package.swift Sources Tests

clean:
	rm -rf .build $(VENV) demo-out Python/build Python/apus.egg-info Python/apus/_lib .pytest_cache
