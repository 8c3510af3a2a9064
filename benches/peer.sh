#!/bin/sh
# Builds llama-server and llama-bench of llama.cpp in DIR, the peer that `bespoke bench serve --against` is measured with.
#
#   benches/peer.sh DIR        then DIR/build/bin/llama-server
#
# The source comes from the Python index: the source distribution of llama-cpp-python carries the whole llama.cpp tree.
# Both sides must be built for the machine they run on (GGML_NATIVE), or the comparison says nothing. DIR stays outside
# the repository: nothing of the peer is committed.
set -eu

[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
version=0.3.36
mkdir -p "$1"
cd "$1"

if [ ! -d "llama_cpp_python-$version" ]; then
  # The build system in a wheel (only this package from source): pip asks it for the package's name.
  pip download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version"
  tar xzf "llama_cpp_python-$version.tar.gz"
fi

# LLAMA_BUILD_UI and LLAMA_USE_PREBUILT_UI: without npm and without a download there is no web page; the API needs none.
cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B build \
  -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
cmake --build build --target llama-server llama-bench -j "${JOBS:-2}"
echo "built: $PWD/build/bin/llama-server" >&2
