# Two commands are enough on a new machine with Rust, make and a C compiler: `make demo` and `make test`.
#
# Everything uses the release profile and the same features: RocksDB takes about 20 minutes to compile on two cores, and
# a second profile, or another set of features, would compile it again. For the same reason the build lies outside the
# checkout, where a new clone finds it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(HOME)/.cache/hapax-target
BUILD := --release --locked --features testing
PORT ?= 9092

.PHONY: help setup build test chaos chaos-breaks demo guards bench lint fmt doc kafka kafka-stop clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target does; do printf '%-18s %s\n' "$$target" "$$does"; done
	@echo
	@echo "  The build is in $(CARGO_TARGET_DIR); CARGO_TARGET_DIR moves it."

setup: ## Install what a build needs, where that is possible; otherwise name it
	@scripts/setup.sh build

build: setup ## Compile library and binary (the first time: about 25 minutes on two cores)
	cargo build $(BUILD)

demo: setup ## The main job, with kills and restarts, on an embedded broker
	cargo run $(BUILD) --bin hapax -- demo

test: ## Every test, those on a real Kafka included (ARGS=name runs some of them)
	@scripts/setup.sh test
	@scripts/kafka.sh fetch >/dev/null || { [ "$${CI:-}" != true ] && \
		echo "make: NO REAL KAFKA: the tests that need one WILL BE SKIPPED" >&2; }
	cargo test $(BUILD) $(ARGS)

chaos: ## Kill, freeze, cut off and restart a fleet (CHAOS_SECONDS=n, CHAOS_SEED=n, CHAOS_BROKERS=1 or 3)
	@scripts/setup.sh test
	@scripts/kafka.sh fetch >/dev/null
	@scripts/chaos.sh

chaos-breaks: ## See the chaos campaign find what is wrong with a rule switched off (about 8 minutes)
	@scripts/setup.sh test
	@scripts/kafka.sh fetch >/dev/null
	@scripts/chaos.sh breaks

guards: setup ## See each guarding test fail without the line that it guards (docs/guards)
	@scripts/guards.sh

bench: ## Measure, beside a bare loop and Kafka Streams, in one run
	@scripts/setup.sh bench
	@scripts/kafka.sh fetch >/dev/null
	scripts/bench.sh

lint: setup ## Format, clippy, docs, feature combinations, licences
	@scripts/lint.sh

fmt: ## Format the code
	cargo fmt

doc: setup ## The library's documentation
	cargo doc $(BUILD) --no-deps

kafka: ## Start a real Kafka on 127.0.0.1:9092 (PORT=n for another port); its data stays
	@scripts/setup.sh test
	@scripts/kafka.sh start --port $(PORT)

kafka-stop: ## Stop it
	@scripts/kafka.sh stop

clean: ## Delete what was built of hapax itself; RocksDB and the other dependencies stay
	cargo clean --release --package hapax
