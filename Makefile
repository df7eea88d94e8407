# Everything a person or CI needs, from a clean clone on Debian with Node >= 20.20 and make:
#   make demo     train a small language model with 8 agent processes        (ARGS="--rounds 4" is passed on)
#   make test     every test; the last line reads "N passed, N failed"       (ARGS="graph domain" runs only these rooms)
#   make verify   build, lint, room rules, contracts, generated code, coverage of the pure rooms
#   make bench    the benchmarks                                             (ARGS="shakespeare --data DIR")
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build demo test verify bench prepare prepare-test clean

# Debian puts nats-server into /usr/sbin, which is not on everybody's PATH.
export PATH := $(CURDIR)/node_modules/.bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin

prepare:
	@deploy/prepare.sh run

prepare-test:
	@deploy/prepare.sh test

# From nothing, so that no compiled test survives its source.
build: prepare
	@rm -rf dist
	@npm run --silent build

demo: build
	@node dist/services/cli/main.js demo $(ARGS)

test: prepare-test build
	@node dist/test/tooling/run-tests.js $(ARGS)

verify: prepare-test build
	@node dist/test/tooling/verify.js $(ARGS)

bench: build
	@node dist/test/bench/main.js $(ARGS)

clean:
	@rm -rf dist coverage
