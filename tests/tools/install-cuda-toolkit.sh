#!/usr/bin/env bash
# Makes a CUDA toolkit in DIR from wheels of the Python index: no GPU, no driver, no root. For `make cuda`.
#
#   tests/tools/install-cuda-toolkit.sh DIR        then: . DIR/env.sh
#
# With CUDA_HOME set, DIR/env.sh points to that toolkit, and nothing is installed.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
version=13.0.2
mkdir -p "$1"
folder=$(cd "$1" && pwd)
home=${CUDA_HOME:-}

if [ -z "$home" ]; then
  home=$folder/toolkit
  if [ ! -e "$folder/$version" ]; then
    [ -x "$folder/venv/bin/pip" ] || python3 -m venv "$folder/venv"
    # The compiler and its parts, the headers, and the libraries that Candle links.
    "$folder/venv/bin/pip" install -q "cuda-toolkit[nvcc,crt,nvvm,cccl,culibos,profiler,cudart,cublas,curand,nvrtc]==$version"
    ln -sfn "$(echo "$folder"/venv/lib/python3*/site-packages/nvidia/cu13)" "$home"
    # Wheels have libraries under the names that programs load, and none under those that linkers look for.
    for library in "$home"/lib/lib*.so.*; do
      name=$(basename "$library")
      case $name in *builtins* | *.alt.*) ;; *) ln -sfn "$name" "$home/lib/${name%%.so*}.so" ;; esac
    done
    ln -sfn lib "$home/lib64"
    # The driver's library comes with the driver. Linking needs its names alone: functions that fail, in a file that is
    # never shipped and on no path where programs look.
    mkdir -p "$home/lib/stubs"
    grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u |
      sed 's/.*/int &(void) { return 999; }/' >"$folder/driver.c"
    cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$home/lib/stubs/libcuda.so" "$folder/driver.c"
    touch "$folder/$version"
  fi
fi

[ -x "$home/bin/nvcc" ] || { echo "error: no nvcc in $home/bin: CUDA_HOME must be a CUDA toolkit" >&2; exit 1; }
cat >"$folder/env.sh" <<EOF
export CUDA_HOME="$home" CUDA_PATH="$home" CUDAToolkit_ROOT="$home" CUDACXX="$home/bin/nvcc"
export PATH="$home/bin:\$PATH" LD_LIBRARY_PATH="$home/lib64\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
EOF
"$home/bin/nvcc" --version | sed -n 's/^Cuda/CUDA/p' >&2
