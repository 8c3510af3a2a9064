#!/usr/bin/env bash
# Runs llama-server's own tests against bespoke: run.sh FOLDER_OF_TESTS [PYTEST_ARGUMENT ...]
#
# FOLDER_OF_TESTS is tools/server/tests of a tree of llama.cpp (its templates in models/ are read too). cases.txt lists
# the cases that llama-server passes with a model of random weights; differences.txt those that are not meant to pass here,
# with the reason. BESPOKE_BIN names the program (default: the release build), WORK a folder for what is made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
tests=$(cd "${1:?usage: run.sh FOLDER_OF_TESTS [PYTEST_ARGUMENT ...]}" && pwd)
shift
export BESPOKE_BIN=${BESPOKE_BIN:-$root/target/release/bespoke}
export WORK=${WORK:-$root/target/llama_server_suite}
mkdir -p "$WORK"
if [ ! -x "$WORK/venv/bin/pytest" ]; then
    python3 -m venv "$WORK/venv"
    "$WORK/venv/bin/pip" install -q pytest pytest-timeout filelock aiohttp requests openai prometheus-client wget numpy gguf
fi
export TEST_MODEL=$WORK/random.gguf
[ -f "$TEST_MODEL" ] || "$WORK/venv/bin/python" "$here/random_model.py" "$TEST_MODEL"
export LLAMA_SERVER_BIN_PATH=$here/bespoke_as_llama_server.py
exec "$WORK/venv/bin/python" "$here/run.py" "$tests" "$@"
