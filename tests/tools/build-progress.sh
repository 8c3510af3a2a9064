#!/usr/bin/env bash
# Runs a build and says every 20 seconds how much of llama.cpp is compiled, the longest step of a first build, of which
# Cargo shows nothing. Usage: build-progress.sh TARGET_FOLDER COMMAND...
set -euo pipefail
target=$1
shift
# The build folder of llama.cpp that was touched since we began, if it is being built at all.
marker=$(mktemp)
watch_llama_cpp() {
  local last="" folder total done line
  while sleep 20; do
    folder=$(find "$target" -maxdepth 5 -path '*/llama-cpp-sys-2-*/out/build' -newer "$marker" 2>/dev/null | head -n 1)
    [ -n "$folder" ] || continue
    total=$(grep -rhoE '^[^ ]+\.o:' --include=build.make "$folder" 2>/dev/null | sort -u | wc -l)
    done=$(find "$folder" -name '*.o' 2>/dev/null | wc -l)
    [ "$total" -gt 0 ] || continue
    line="llama.cpp: $done of $total files compiled"
    [ "$line" = "$last" ] || echo "    $line" >&2
    last=$line
    [ "$done" -lt "$total" ] || return 0
  done
}
watch_llama_cpp &
watcher=$!
trap 'kill "$watcher" 2>/dev/null || true; rm -f "$marker"' EXIT
"$@"
