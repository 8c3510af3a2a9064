# `make serve` and `make test` do everything on a Debian machine that has only a Rust toolchain.
.PHONY: serve test test-real build portable build-tools lint cuda

LISTEN ?= 127.0.0.1:8899
REAL ?=

serve: build
	./target/release/bespoke serve --listen $(LISTEN)

build: build-tools
	@./tests/tools/build-progress.sh target/release cargo build --release --locked

# One binary for every x86-64 processor since 2009, in target/portable/release: our own kernels are chosen at run time.
# llama.cpp's are those of the baseline (SSE 4.2); the sys crate would switch on AVX2 of its own accord.
portable: build-tools
	@GGML_AVX=OFF GGML_AVX2=OFF GGML_FMA=OFF GGML_F16C=OFF GGML_BMI2=OFF RUSTFLAGS="-C target-cpu=x86-64-v2" \
		./tests/tools/build-progress.sh target/portable \
		cargo build --release --locked --target-dir target/portable

test: build-tools
	@./tests/tools/build-progress.sh target/debug cargo test --locked

# Published models and tokenizers, fetched by hash into target/real: served, imported, compared. REAL=all adds Gemma 3.
test-real: build-tools
	REAL=$(REAL) ./tests/real/fetch.sh target/real
	REAL=$(REAL) BESPOKE_REAL=$(CURDIR)/target/real cargo test --locked --test it real_bases:: -- --ignored --nocapture \
		$(if $(filter all,$(REAL)),,--skip real_bases::gemma3::)

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
