# `make serve` and `make test` do everything on a Debian machine that has only a Rust toolchain.
.PHONY: serve test build build-tools lint cuda

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

# A second program that also trains on an NVIDIA GPU: target/cuda/release/bespoke (docs/training.md says what it needs to run).
# CUDA_HOME names a toolkit; without it one is made from the Python index. CUDA_COMPUTE_CAP is the GPU's: 90 for H100 and H200.
CUDA_COMPUTE_CAP ?= 90

cuda: build-tools
	./tests/tools/install-cuda-toolkit.sh target/cuda-toolkit
	. target/cuda-toolkit/env.sh && CUDA_COMPUTE_CAP=$(CUDA_COMPUTE_CAP) \
		cargo build --release --locked --features cuda --target-dir target/cuda
