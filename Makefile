# `make serve` and `make test` do everything on a Debian machine that has only a Rust toolchain.
.PHONY: serve test build build-tools lint

LISTEN ?= 127.0.0.1:8899

serve: build
	./target/release/bespoke serve --listen $(LISTEN)

build: build-tools
	cargo build --release --locked

test: build-tools
	cargo test --locked

lint: build-tools
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

# llama.cpp is compiled from source: cmake, a C++ compiler, and libclang for the bindings.
build-tools:
	@./tests/tools/install-build-tools.sh
