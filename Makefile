# Everything a person does here is one target. `make help` lists them.
UV_VERSION := 0.13.9
UV := .tools/uv/bin/uv
UHO := .venv/bin/uho
CARGO := cargo
SIDECAR := sidecar/target/release/uho-sidecar
SIMULATOR := sidecar/target/release/archive-sim
RUST_SOURCES := $(shell find sidecar -name '*.rs' -not -path '*/target/*') $(wildcard sidecar/Cargo.* sidecar/crates/*/Cargo.toml)

.DEFAULT_GOAL := help
.PHONY: help build demo up test faults test-rust test-python crash lint format bench verify-mainnet clean prerequisites

help: ## list every target with a line each
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

prerequisites:
	@command -v python3 >/dev/null || { echo "python3 is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 is older than 3.11: install Python 3.11 or newer"; exit 1; }
	@python3 -c 'import venv, ensurepip' 2>/dev/null || { echo "python3 has no venv module: apt-get install python3-venv"; exit 1; }
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install a Rust toolchain, 1.88 or newer (https://rustup.rs)"; exit 1; }
	@command -v cc >/dev/null || { echo "cc is missing: install a C compiler (Debian: apt-get install build-essential)"; exit 1; }

$(UV): | prerequisites
	@echo "setting up uv $(UV_VERSION) in .tools/"
	@python3 -m venv .tools/uv
	@.tools/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(SIDECAR) $(SIMULATOR) &: $(RUST_SOURCES) | prerequisites
	cd sidecar && $(CARGO) build --release --locked -p uho-sidecar -p archive-sim
	@touch $(SIDECAR) $(SIMULATOR)

# The native module is a path dependency: uv builds it with maturin and rebuilds it when its sources change.
.venv/.installed: pyproject.toml uv.lock $(RUST_SOURCES) | $(UV) $(SIDECAR)
	CARGO_TARGET_DIR=$(CURDIR)/sidecar/target $(UV) sync --locked --quiet
	@touch $@

build: $(SIDECAR) $(SIMULATOR) .venv/.installed ## build the sidecar, the simulator and the virtual environment

demo: build ## run the main job end to end on a simulated archive, and compare every row with the truth
	$(UHO) demo

up: build ## start Postgres, the sidecar and Dagster; prints where the UI is; Ctrl-C stops all of it
	$(UHO) up

test: test-rust test-python ## run every test (real data is used from ../shared/data where it is present)

test-rust: | prerequisites
	cd sidecar && $(CARGO) test --locked --workspace --exclude uho-native --quiet

test-python: build
	.venv/bin/pytest -n auto --dist loadfile --no-loadscope-reorder

faults: | prerequisites ## every fault of the network at 100 random places each: the same records, or an error (minutes)
	cd sidecar && UHO_FAULT_PLACES=100 $(CARGO) test --locked -p old-faithful --test faults -- --nocapture fault

crash: build ## crash backfills 180 times and what Dagster runs 20 times (at most an hour), and compare with the truth
	cd tests && ../.venv/bin/python crash_storm.py --crashes 180 --through-dagster 20 --minutes 60

lint: build ## formatting, clippy pedantic, ruff, pyright strict
	cd sidecar && $(CARGO) fmt --all --check
	cd sidecar && $(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

format: build ## format Rust and Python in place
	cd sidecar && $(CARGO) fmt --all
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: build ## print the benchmark ratios, measured side by side in one run
	.venv/bin/python -m benchmarks

verify-mainnet: build ## read ten blocks of a recent and of an early epoch of the public archive (internet; WHOLE_EPOCH=930: 700 GB)
	.venv/bin/python tests/verify_mainnet.py $(if $(WHOLE_EPOCH),--whole-epoch $(WHOLE_EPOCH))

clean: ## remove everything that was built; data in .uho/ stays
	rm -rf .venv .tools sidecar/target dist
