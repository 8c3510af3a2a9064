#!/bin/bash
# Memory and start of servers: the time until each is ready, and the memory that it has after three short chats.
#
#   benches/memory.sh [-n ROUNDS] COMMAND...
#
# Each COMMAND starts a server; {port} in it becomes a free port, {folder} an empty folder. They alternate, so that other
# load affects all of them alike. For example:
#
#   benches/memory.sh -n 5 \
#     'target/release/bespoke serve --model M.gguf --listen 127.0.0.1:{port} --state {folder} --spokes {folder}/spokes' \
#     'llama-server -m M.gguf --port {port}'
#
# A server is ready when /health answers 200. Memory is what /proc says of the process (RSS, and of it the anonymous part
# and the pages of files) a second after the last chat. A line has the median and in brackets the minimum and maximum.
# QUIET=SECONDS waits longer than a second; LOGS=FOLDER keeps what the servers print.
set -eu

rounds=5
while getopts n: option; do
  case $option in
    n) rounds=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

now() { date +%s%N; }

# A free port.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  echo "no free port was found" >&2
  return 1
}

chat() {
  curl -sS --fail-with-body -o "$work/answer" "http://127.0.0.1:$1/v1/chat/completions" \
    -H 'Content-Type: application/json' \
    -d '{"max_tokens": 16, "temperature": 0, "messages": [{"role": "user", "content": "'"$2"'"}]}' || {
    echo "the chat failed: $(cat "$work/answer")" >&2
    return 1
  }
}

# Runs one server once; writes milliseconds, and kilobytes of RSS, anonymous memory and pages of files.
once() {
  local number=$1 command=$2 port began ready
  port=$(free_port)
  mkdir -p "$work/folder-$number"
  rm -rf "$work/folder-$number"/*
  command=${command//\{port\}/$port}
  command=${command//\{folder\}/$work/folder-$number}
  local log=${LOGS:-$work}/server-$number.log
  began=$(now)
  bash -c "exec $command" >"$log" 2>&1 &
  server=$!
  until curl -sf -o /dev/null --max-time 2 "http://127.0.0.1:$port/health"; do
    kill -0 "$server" 2>/dev/null || { echo "the server ended; it said:" >&2; tail -n 20 "$log" >&2; return 1; }
    sleep 0.01
  done
  ready=$((($(now) - began) / 1000000))
  chat "$port" 'Name a colour.'
  chat "$port" 'What is two plus two?'
  chat "$port" 'Say hello.'
  sleep "${QUIET:-1}"
  awk -v ms="$ready" '
    /^Rss:/ { rss = $2 } /^Anonymous:/ { anonymous = $2 }
    END { print ms, rss, anonymous, rss - anonymous }' "/proc/$server/smaps_rollup" >>"$work/found-$number"
  kill "$server"
  wait "$server" 2>/dev/null || true
  server=
}

for round in $(seq "$rounds"); do
  number=0
  for command in "$@"; do
    number=$((number + 1))
    once "$number" "$command"
  done
done

# Median, minimum and maximum of a column, divided.
spread() {
  sort -n -k "$2,$2" "$1" | awk -v column="$2" -v by="$3" -v unit="$4" '
    { value[NR] = $column / by }
    END {
      middle = NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2
      printf "%.*f%s [%.*f %.*f]", places(middle), middle, unit, places(value[1]), value[1], places(value[NR]), value[NR]
    }
    function places(x) { return x < 10 ? 2 : x < 100 ? 1 : 0 }'
}

number=0
for command in "$@"; do
  number=$((number + 1))
  file=$work/found-$number
  echo "$command"
  echo "  ready after $(spread "$file" 1 1000 ' s')"
  echo "  RSS $(spread "$file" 2 976.5625 ' MB')," \
    "anonymous $(spread "$file" 3 976.5625 ' MB'), files $(spread "$file" 4 976.5625 ' MB')"
done
