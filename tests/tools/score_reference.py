#!/usr/bin/env python3
"""The metrics of an encoding, straight from their definition: the oracle for src/eval. Standard library only.

    python3 tests/tools/score_reference.py pairs FILE.jsonl     writes the varied pairs that the tests score
    python3 tests/tools/score_reference.py score FILE.jsonl     prints a row of scores for each pair

A pair is {id, raw_input, output, prompt}. Nothing here is shared with the Rust scorer.
"""

import json
import random
import re
import sys

NUMBER = re.compile(
    r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?"
    r"|-?\d+\.\d+[eE][+-]?\d+"
    r"|-?\d+\.\d+%"
    r"|-?\d+%"
    r"|-?\d+\.\d+"
    r"|-?\d+(?:/\d+)"
    r"|\d+"
)
PATH = re.compile(
    r"[a-zA-Z_~/][\w/~-]+\.(?:go|py|js|ts|html|css|yaml|yml|json|jsonl|toml|md|sh|sql|gguf|db|txt|log|patch|cuh|cpp|c|h)\b"
    r"|(?<!<)/(?:home|usr|etc|var|tmp|opt|api|static)[\w./~-]+"
)
VERSION = re.compile(r"v\d+\.\d+(?:\.\d+)?")
NOUNS = [
    re.compile(r"\b([A-Z][a-z]+(?:\s+[A-Z][a-z]+)+)\b"),
    re.compile(r"(?<=[a-z,;]\s)([A-Z][a-z]{2,})\b"),
    re.compile(r"@(\w+)"),
    re.compile(r"\b([A-Z][a-z]+[A-Z]\w+)\b"),
]
FIELDS = ["gist", "summary", "content", "narrative", "concepts", "structured_concepts",
          "significance", "emotional_tone", "outcome", "salience"]
LISTS = {"topics": ["label", "path"], "entities": ["name", "type", "context"],
         "actions": ["verb", "object", "details"], "causality": ["relation", "description"]}
ENUMS = {"significance": ["routine", "notable", "important", "critical"],
         "emotional_tone": ["neutral", "satisfying", "frustrating", "exciting", "concerning"],
         "outcome": ["success", "failure", "ongoing", "unknown"]}


def numbers(text):
    return {n.replace(",", "") for n in NUMBER.findall(text)}


def entities(text):
    nouns = {noun for pattern in NOUNS for noun in pattern.findall(text)}
    nouns = {n for n in nouns if len(n) >= 3 and not n.startswith("The ")}
    return numbers(text) | set(PATH.findall(text)) | set(VERSION.findall(text)) | nouns


def is_in(needle, text):
    return needle in text or needle.replace(",", "") in text.replace(",", "")


def texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def phrases(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}


def echoes(prompt, event, answer):
    at = prompt.rfind(event) if event else -1
    parts = [prompt] if at < 0 else [prompt[:at], prompt[at + len(event) :]]
    instructions = set().union(*map(phrases, parts)) - phrases(event)
    return any(phrases(text) & instructions for text in texts(answer))


def is_object(value, keys):
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def complies(a):
    if not is_object(a, FIELDS):
        return False
    if not all(isinstance(a[f], str) for f in FIELDS[:4] + FIELDS[6:9]):
        return False
    if not (isinstance(a["concepts"], list) and all(isinstance(c, str) for c in a["concepts"])):
        return False
    lists = a["structured_concepts"]
    if not is_object(lists, LISTS):
        return False
    for name, keys in LISTS.items():
        if not isinstance(lists[name], list):
            return False
        for entry in lists[name]:
            if not is_object(entry, keys) or not all(isinstance(v, str) for v in entry.values()):
                return False
    salience = a["salience"]
    if isinstance(salience, bool) or not isinstance(salience, (int, float)) or not 0 <= salience <= 1:
        return False
    if len(a["gist"]) > 60 or len(a["summary"]) > 400:
        return False
    return all(a[f] == "" or a[f] in allowed for f, allowed in ENUMS.items())


def minimal(a):
    salience, content, narrative = a.get("salience"), a.get("content"), a.get("narrative")
    return (isinstance(salience, (int, float)) and not isinstance(salience, bool) and salience < 0.4
            and isinstance(content, str) and len(content) <= 150
            and isinstance(narrative, str) and len(narrative) <= 200)


def refuse(constant):
    raise ValueError(constant)


def score(raw_input, output, prompt):
    try:
        answer = json.loads(output, parse_constant=refuse)
        if not isinstance(answer, dict):
            raise ValueError("no object")
        json.dumps(answer, ensure_ascii=False).encode()  # lone surrogates are no text
    except (ValueError, RecursionError):
        return {"epr": 0, "fr": 0, "np": 0, "ted": 0, "mih": 0, "sc": 0, "parsed": False}
    text = json.dumps(answer, ensure_ascii=False)
    wanted = entities(raw_input)
    told = [answer.get(f) for f in ["gist", "summary", "content", "narrative", "outcome"]]
    said = entities(" ".join(t if isinstance(t, str) else "" for t in told))
    figures = numbers(raw_input)
    return {
        "epr": sum(is_in(e.lower(), text.lower()) for e in wanted) / len(wanted) if wanted else 1,
        "fr": sum(not is_in(e.lower(), raw_input.lower()) for e in said) / len(said) if said else 0,
        "np": sum(is_in(n, text) for n in figures) / len(figures) if figures else 1,
        "ted": int(echoes(prompt, raw_input, answer)),
        "mih": int(len(raw_input) >= 50 or minimal(answer)),
        "sc": int(complies(answer)),
        "parsed": True,
    }


# ---- varied pairs -------------------------------------------------------------------------------------------------

HEAD = ("Write the event as one JSON object. Keep every number and every name as it stands. "
        "Do not add what the event does not say. gist: at most 60 characters.\n"
        "SOURCE: git\nTYPE: commit\nCONTENT:\n")

NASTY = [
    "", " ", "ok", "The", "it works now", "1,234,567.89 rows, 12,34 and 1,2345", "-1,234 -5 --5 -0.5% -80% 80% 94.2%",
    "2.3e-4 2.3E+10 2e5 1.5e 3.e4 .5 5. 1.2.3 10.0.0.1", "12/21 12.8/16 -3/4 1/2/3 2026-11-23 12:30:45",
    "v1.2 v1.2.3 v10.20.30.40 xv2.0 v2 V3.1 v1.2-rc1.", "Upgraded to v1.4.0. Then v1.5, v1.6; done",
    "٣٤ is Arabic for 34, १,२३४ too; Ⅷ ² ½ stay words", "see main.go, cmd/x.py:12 and a/b-c_d/e.jsonl!",
    "x.py a.c aa.c /x.h ~/n.md ~x.md 1a.md é.md aé.md a.md5 b.mdé c.tomlx foo.json5 d.h.c",
    "foo.tar.gz foo.py/bar.go ./run.sh ../up/run.sh https://h.example/static/app.js?x=1 file:///etc/hosts",
    "</api/v1> </var> < /usr/bin <a href=\"/opt/x\"> x/home/u /homes/u /etc. /tmp /tmp/ /usr/~x-y/é",
    "<//home/u/a <x/home/u/b.md </home/u/c.md", "/api/v2/users/42/items.json and /static/logo.v3.svg",
    "Maria Chen and Bob Lee met Ana. The Board agreed; The End, said Zoe", "Foo Bar Bazé Qux Quux", "Foo Bar BazX",
    "Anna  Bell\tCarla\nDina", "Foo\u00a0Bar\u2003Baz\u0085Qux", "Foo\u001cBar and\u001fLee", "Foo\u200bBar with\u200bLee",
    "A Bc De, Fgh; Ijk. Lmn: Opq", "GradStore getUser GetUserById XMLHttp HttpX IPv6 iOS MacOS_11 Foo_Bar FooB",
    "@bob, @al @a_1 mail me@example.com @Éva @नमस्ते @é", "éFoo Bar Fooé Bar नमFoo Barन्", "IamFoo Ab AbC AbCd AbCdÉ AbÉd",
    "İstanbul ΣΑΣ Straße @İstanbul @ΟΔΟΣ", "emoji 🎉Foo Bar🎉 中文Foo Bar 中文 Foo Bar中文", "Order 66: 1,000 != 1000; 1,0,0,0",
    "日本語のログ: 接続に失敗しました (タイムアウト 30秒) server/日本.log", "a\x00b \x07 Foo \x1b[31mRed Text\x1b[0m",
    "\"quoted Foo\" back\\slash C:\\Users\\Ana\\x.txt", "1e5 -1 -12 --1,000 1,000-2,000 (3,000) $4,000.50 5,000%",
    "#1234 (#56) 0x1F 007 1_000 99bottles 3rd x86_64 utf8 h264", "key=value PORT=8080 RATIO=0.25 NAME=Ana LEVEL=Warn Level",
    "panic: index out of range [5] with length 3\n\tmain.go:42 +0x1d\nsrc/pool/worker.cpp:118", "😀" * 20, "é" * 49, "é" * 50,
    "Keep every number and every name as it stands, wrote Ana Bell", "SOURCE: git TYPE: commit CONTENT: 5",
]
WORDS = ("the of with after deploy cache failed Fixed Merged Postgres server Kubernetes retry queue Then said Ana Bob "
         "Maria Chen Lee Foo GradStore parseInt HttpClient snake_case v1.2.3 v2.0 main.go src/io/read.cpp /etc/hosts.d/x "
         "config/app.yaml notes.md 12 -3 4.5 1,200 12,345.67 99% 0.5% 7/8 1.5e-3 #812 @dana @x_y (42) [7] \"q\" é ñandú "
         "日本 ½ ٣٤ → — , ; . : -- \n \t < > / ~ _ - The A I").split(" ")


def encoding(**changes):
    answer = {"gist": "", "summary": "", "content": "", "narrative": "", "concepts": [],
              "structured_concepts": {name: [] for name in LISTS}, "significance": "routine",
              "emotional_tone": "neutral", "outcome": "unknown", "salience": 0.5}
    answer.update(changes)
    return answer


def spoil(rng, text):
    words = re.split(r"(\s+)", text)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(words))
        words[at] = rng.choice([words[at].swapcase(), words[at].replace(",", ""), "", rng.choice(WORDS), words[at][::-1]])
    return "".join(words)


def outputs(rng, text):
    told = encoding(gist=text[:60], summary=text[:400], content=text, narrative="A note: " + text[:60],
                    concepts=text.split()[:3], salience=rng.choice([0, 0.1, 0.39, 0.4, 1]))
    entry = {"name": text[:20], "type": "term", "context": ""}
    yield json.dumps(told, ensure_ascii=False)
    yield json.dumps(told, indent=2)
    yield json.dumps(encoding(content=spoil(rng, text), salience=0.2), ensure_ascii=False, separators=(",", ":"))
    yield json.dumps(encoding(gist=spoil(rng, text), narrative=spoil(rng, text), outcome="success"))
    yield json.dumps(encoding(content=text.lower(), structured_concepts={**told["structured_concepts"], "entities": [entry]}))
    yield json.dumps(encoding(content=text.replace(",", ""), summary=text.upper()))


WRONG = [
    "", " ", "null", "[]", "\"text\"", "12", "{", "{}", " {} \n", "{} x", "```json\n{}\n```", "{\"gist\": NaN}", "{'gist': 1}",
    "{\"content\": \"\\ud800\"}", "{\"content\": \"line\nbreak 12\"}", "{\"gist\": \"a\",}", "\ufeff{}", "{\"content\": \"12\", \"content\": \"13\"}",
    json.dumps({"content": 12, "salience": 12}), json.dumps({"concepts": [1, 2, 12]}), json.dumps({"12": {"Ana Bell": 1}}),
]
BROKEN = [
    {"salience": True}, {"salience": "0.5"}, {"salience": -0.1}, {"salience": 1.1}, {"salience": None}, {"salience": 0},
    {"salience": 1}, {"gist": "é" * 60}, {"gist": "é" * 61}, {"summary": "x" * 400}, {"summary": "x" * 401}, {"gist": None},
    {"concepts": "a"}, {"concepts": [1]}, {"concepts": [None]}, {"significance": ""}, {"significance": "high"},
    {"emotional_tone": ""}, {"emotional_tone": "happy"}, {"outcome": ""}, {"outcome": "done"}, {"outcome": "Success"},
    {"structured_concepts": None}, {"structured_concepts": []}, {"structured_concepts": [[], [], [], []]},
    {"structured_concepts": {}}, {"structured_concepts": {n: [] for n in list(LISTS)[:3]}},
    {"structured_concepts": {**{n: [] for n in LISTS}, "more": []}}, {"structured_concepts": {**{n: [] for n in LISTS}, "topics": ["x"]}},
    {"structured_concepts": {**{n: [] for n in LISTS}, "topics": [{"label": "x"}]}},
    {"structured_concepts": {**{n: [] for n in LISTS}, "topics": [{"label": "x", "path": 1}]}},
    {"structured_concepts": {**{n: [] for n in LISTS}, "topics": [{"label": "x", "path": "y", "z": ""}]}},
    {"structured_concepts": {**{n: {} for n in LISTS}}}, {"extra": 1}, {"content": ["Ana 12"]}, {"content": "x" * 150},
    {"content": "x" * 151}, {"narrative": "x" * 200}, {"narrative": "x" * 201}, {"salience": 0.39999}, {"salience": 0.4},
    {"content": "Keep every number and every name"}, {"content": "keep EVERY\nnumber, and"}, {"concepts": ["Keep every", "number and"]},
    {"narrative": "it is a 60 characters source git type"}, {"content": "the event does not say"},
]


def pairs():
    rng = random.Random(20)
    rows = []

    def add(raw_input, output, prompt=None):
        prompt = HEAD + raw_input if prompt is None else prompt
        rows.append({"id": len(rows), "raw_input": raw_input, "output": output, "prompt": prompt})

    for text in NASTY:
        for output in outputs(rng, text):
            add(text, output)
    for _ in range(60):
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 25)))
        for output in rng.sample(list(outputs(rng, text)), 2):
            add(text, output)
    for output in WRONG:
        add("Ana Bell saw 12 errors in v1.2", output)
    for change in BROKEN:
        add("12 errors", json.dumps(encoding(content="12 errors", salience=0.1) | change, ensure_ascii=False))
    for field in FIELDS:
        add("12 errors", json.dumps({k: v for k, v in encoding().items() if k != field}))
    full = encoding(content="Do not add what the event does not say")
    add("Do not add what the event does not say", json.dumps(full))
    add("on", json.dumps(full), HEAD + "on")
    add("Rows moved", json.dumps(full), "No instruction of this kind: Rows moved. Do not add what follows")
    return rows


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("pairs", "score"):
        sys.exit(__doc__)
    if sys.argv[1] == "pairs":
        with open(sys.argv[2], "w", encoding="utf-8") as file:
            for row in pairs():
                file.write(json.dumps(row) + "\n")
        return
    with open(sys.argv[2], encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            scores = score(row["raw_input"], row["output"], row["prompt"])
            print(json.dumps({"id": row["id"], **scores}))


main()
