# Everything a developer runs. `make` lists it. The same targets run in CI through .ci/run.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
MACHINE := $(shell uname -m)
# The agent runs on machines of any Linux: a static binary. Simulated machines are this one, hence its own kind.
AGENT_TRIPLE := $(MACHINE)-unknown-linux-musl
export CARGO_TARGET_DIR := $(TARGET)
export TRADEWIND_BIN := $(TARGET)/release
export TRADEWIND_AGENT_BIN := $(TARGET)/$(AGENT_TRIPLE)/agent/tradewind-agent

# ring has a little C in it, and expects a cross compiler's name for musl; the machine's own compiler does.
agent_env := CC_$(subst -,_,$(AGENT_TRIPLE))=cc
cargo := cargo --locked
tools := deploy/dev/build-tools.sh
# Worlds under a seed that `make bench` simulates; BENCH="losses --losses 20" measures only a part.
WORLD_RUNS ?= 1000

# $(call part,WHAT,COMMAND): runs a part and says how long it took, also if it fails.
part = @start=$$SECONDS; status=0; { $(2); } || status=$$?; \
	echo "== $(1): $$((SECONDS - start)) s$$([ $$status = 0 ] || echo ', FAILED')"; exit $$status

# Written down for `make bench`: how long a whole target took, and whether the project was built when it began.
started := $(shell date +%s)
cold := $(if $(wildcard $(TARGET)/release/tradewind-operator),false,true)
remember = @mkdir -p $(TARGET)/bench && echo "{\"what\":\"make $@\",\"cold\":$(cold),\"seconds\":$$(($$(date +%s) - $(started)))}" \
	>>$(TARGET)/bench/times.jsonl

.PHONY: help
help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: prerequisites
prerequisites:
	@deploy/dev/prerequisites.sh rust cc agent

.PHONY: tools
tools: prerequisites ## builds control plane, S3 server and Python environments, once, into the user's cache
	$(call part,tools,$(tools) --test)

.PHONY: build
build: prerequisites ## builds operator, kubectl plug-in, simulator and demo (release) into target/release
	$(call part,build,$(cargo) build --release --bins --workspace --exclude tradewind-agent --exclude tradewind-bench)

.PHONY: agent
agent: prerequisites ## builds the agent, a static binary
	$(call part,agent,$(agent_env) $(cargo) build --profile agent --target $(AGENT_TRIPLE) -p tradewind-agent)

.PHONY: fmt
fmt: prerequisites ## formats the code
	cargo fmt --all

.PHONY: lint
lint: prerequisites ## checks format and lints
	$(call part,format,cargo fmt --all -- --check)
	$(call part,lints,$(cargo) clippy --workspace --all-targets --quiet -- -D warnings)

.PHONY: docs
docs: prerequisites ## builds the code's documentation; a warning is an error
	$(call part,docs,RUSTDOCFLAGS='-D warnings' $(cargo) doc --workspace --no-deps --quiet)

.PHONY: generate
generate: prerequisites ## writes the files that are generated from the code
	$(cargo) run --quiet --bin tradewind-operator -- crds crds
	$(cargo) run --quiet --bin tradewind-operator -- reference docs/reference

.PHONY: test
test: tools lint build agent docs ## runs every check and every test that needs no root
	$(call part,tests,TRADEWIND_TOOLS=$$($(tools) --test) $(cargo) test --workspace --no-fail-fast)
	$(call part,demo program,$$($(tools))/python-demo/bin/python -m unittest discover -s deploy/demo/program)
	$(call part,sample programs,$$($(tools) --test)/python-samples/bin/python -m unittest discover -s deploy/samples/programs)
	$(remember)

.PHONY: demo
demo: prerequisites ## shows the main path with everything on this machine; KEEP=1 leaves it running
	$(call part,tools,$(tools))
	@$(MAKE) build agent
	@TRADEWIND_TOOLS=$$($(tools)) KEEP=$(KEEP) $(TARGET)/release/tradewind-demo
	$(if $(KEEP),,$(remember))

.PHONY: bench
bench: prerequisites ## measures; prints a table and writes JSON below target/bench
	$(call part,tools,$(tools) --bench)
	$(call part,build,$(cargo) build --release --bins --workspace --exclude tradewind-agent)
	@$(MAKE) agent
	@mkdir -p $(TARGET)/bench
	$(call part,worlds,WORLD_RUNS=$(WORLD_RUNS) $(cargo) test --release --test world -- --test-threads=1 --nocapture rough_worlds every_kind \
		>$(TARGET)/bench/worlds.log 2>&1 || tail -5 $(TARGET)/bench/worlds.log)
	$(call part,planner,$(cargo) bench -p tradewind-planner --bench planner-bench >$(TARGET)/bench/planner.log 2>&1 || tail -5 $(TARGET)/bench/planner.log)
	@TRADEWIND_TOOLS=$$($(tools) --bench) $(TARGET)/release/tradewind-bench $(BENCH)
