#!/usr/bin/env bash
# miri.sh [TEST ...]: has Miri look for undefined behaviour (aliasing, data races, uninitialised and foreign memory) in
# the scratch memory and the work queue that llama.cpp's threads share, and in the kernels; or in the tests whose names
# contain TEST. It needs rustup, and fetches a nightly toolchain with Miri where there is none.
#
# Miri can't call C, so tests that need llama.cpp are no part of this, and llama.cpp isn't compiled: a stand-in for cmake
# gives the sys crate an empty library, and nothing is linked. Kernels run in their portable forms: Miri doesn't know F16C
# and AVX-512, without which no other form runs. Tests of a kernel that has no portable form try nothing here.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
  rustup toolchain install nightly --profile minimal --component miri,rust-src
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/cmake" <<'CMAKE'
#!/bin/sh
mkdir -p "$OUT_DIR/lib"
printf '!<arch>\n' >"$OUT_DIR/lib/libllama.a"
CMAKE
chmod +x "$work/cmake"

if [ $# -eq 0 ]; then
  set -- engine::ffi::custom_ops::scratch:: engine::ffi::custom_ops::work_queue:: engine::kernels::
fi

# Not target-cpu=native, as elsewhere: the processor has more than Miri knows.
export RUSTFLAGS='-C target-cpu=x86-64'
export CMAKE="$work/cmake"
cargo +nightly miri test --locked --lib -- "$@"
