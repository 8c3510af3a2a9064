#!/usr/bin/env bash
# cpu-levels.sh BINARY: does the program serve on processors of every level? At each it starts a daemon, encodes an
# event, drops a spoke and has it answer, and prints a line. BINARY has to be a portable build (`make portable`).
#
# Nehalem (no AVX) and Haswell (AVX2, no AVX-512) are emulated by Debian's qemu-user, which knows no AVX-512. For that,
# features are hidden from the program's own detection, on a processor that has them. Processes that an emulated daemon
# starts are not emulated by qemu-user; BESPOKE_CPU, which they inherit, has them use the same kernels.
set -euo pipefail

if [ $# -ne 1 ] || [ ! -x "$1" ]; then
  echo "usage: cpu-levels.sh BINARY" >&2
  exit 2
fi
binary=$(realpath "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
event='nginx 1.24 restarted at 09:12 after the certificate of example.org expired'
daemon=
work=
stop() {
  if [ -n "$daemon" ]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
  fi
  if [ -n "$work" ]; then rm -rf "$work"; work=; fi
}
trap stop EXIT

fail() {
  echo "$1: FAILED: $2"
  [ -f "$work/log" ] && tail -n 20 "$work/log" | sed 's/^/    /'
  failed=1
  stop
}

# check NAME BESPOKE_CPU [EMULATOR ...]
check() {
  local name=$1 hidden=$2 began url= answer form
  shift 2
  work=$(mktemp -d)
  mkdir "$work/spokes"
  began=$(date +%s.%N)
  BESPOKE_CPU=$hidden "$@" "$binary" serve --listen 127.0.0.1:0 --model "$root/models/bespoke-tiny.gguf" \
    --spokes "$work/spokes" --state "$work/state" 2>"$work/log" &
  daemon=$!
  for _ in $(seq 1200); do
    if grep -q ' is ready: ' "$work/log"; then break; fi
    if ! kill -0 "$daemon" 2>/dev/null; then fail "$name" 'the daemon ended'; return; fi
    sleep 0.1
  done
  url=$(sed -n 's/^listening on //p' "$work/log")
  if ! grep -q ' is ready: ' "$work/log"; then fail "$name" 'not ready after 2 minutes'; return; fi
  local ready
  ready=$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $began }")
  if ! answer=$(echo "$event" | timeout 600 "$binary" encode --endpoint "$url" --json --spoke post); then
    fail "$name" 'no encoding'; return
  fi
  case $answer in '{"gist":"'*) ;; *) fail "$name" "no encoding, but $answer"; return ;; esac
  cp "$root/spokes/encoding.gguf" "$work/spokes/.incoming.tmp"
  mv "$work/spokes/.incoming.tmp" "$work/spokes/encoding.gguf"
  for _ in $(seq 1200); do
    if "$binary" spokes --endpoint "$url" --json | grep -q '"state":"serving"'; then break; fi
    sleep 0.1
  done
  if ! answer=$(echo "$event" | timeout 600 "$binary" encode --endpoint "$url" --json --spoke encoding); then
    fail "$name" 'the spoke gives no encoding'; return
  fi
  form=$(sed -n 's/.*kernels=\(.*\) rows=.*/\1/p' "$work/log" | head -n 1)
  if grep -q 'one of our kernels is disabled' "$work/log"; then fail "$name" 'a kernel is disabled'; return; fi
  echo "$name: ready after $ready s, encodes, serves a dropped spoke; ${form:-self-test: not in the log}"
  stop
}

failed=0
if command -v qemu-x86_64 >/dev/null; then
  check 'Nehalem (qemu-user)' x86-64-v2 qemu-x86_64 -cpu Nehalem
  check 'Haswell (qemu-user)' x86-64-v3 qemu-x86_64 -cpu Haswell
else
  echo 'Nehalem, Haswell: skipped, there is no qemu-x86_64 (Debian: qemu-user)'
fi
check 'x86-64-v2 (masked)' x86-64-v2
check 'x86-64-v3: AVX2 (masked)' x86-64-v3
check 'x86-64-v4: AVX-512 without VNNI (masked)' x86-64-v4
check 'all that this processor has' ''
exit "$failed"
