#!/usr/bin/env python3
"""Stands in for llama-server in its own tests: turns its flags into a configuration, and becomes bespoke.

BESPOKE_BIN is the program, TEST_MODEL the model that is served whatever the flags name.
"""

import json
import os
import sys
import tempfile

# llama-server knows these templates by name; here a template is a file.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
COMMAND_R = (
    "{% set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}{% for m in messages %}"
    "<|START_OF_TURN_TOKEN|><|{{ names[m.role] }}_TOKEN|>{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "command-r": COMMAND_R}

SWITCHES = {
    "--metrics", "--slots", "--no-slots", "--jinja", "--no-jinja", "--offline", "--cont-batching", "--embedding",
    "--reranking", "--kv-unified", "--swa-full", "--verbose", "--context-shift", "--no-ui", "--no-models-autoload",
    "--no-mmproj", "--no-cache-idle-slots", "--ui-mcp-proxy", "--backend_sampling",
}


def flags(arguments):
    """Flags with their values; of those that are given several times all of them."""
    found, rest = {}, list(arguments)
    while rest:
        flag = rest.pop(0)
        value = None if flag in SWITCHES or not rest else rest.pop(0)
        found.setdefault(flag, []).append(value)
    return found


def main():
    given = flags(sys.argv[1:])

    def last(*names):
        return next((given[name][-1] for name in names if name in given), None)

    def write(name, text):
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o600)
        return path

    folder = tempfile.mkdtemp(prefix="bespoke-")
    spokes = os.path.join(folder, "spokes")
    os.mkdir(spokes)
    for number, path in enumerate(given.get("--lora", [])):
        os.symlink(os.path.abspath(path), os.path.join(spokes, f"lora{number}.gguf"))

    lanes = int(last("--parallel", "-np") or 4)
    model = {"lanes": lanes, "threads": int(last("--threads", "-t") or 2)}
    # All lanes share llama-server's context; here each has its own.
    if context := last("--ctx-size", "-c"):
        # Texts to embed may have the whole: they are read one after the other. So may a request of a unified cache.
        parts = 1 if "--embedding" in given or "--kv-unified" in given else lanes
        model["context"] = max(16, int(context) // parts)
    if alias := last("--alias", "-a"):
        aliases = sorted(set(alias.split(",")))
        model["id"], model["aliases"] = aliases[0], aliases if len(aliases) > 1 else []
    if tags := last("--tags"):
        model["tags"] = sorted(set(tags.split(",")))
    if path := last("--chat-template-file"):
        model["chat_template"] = os.path.abspath(path)
    elif name := last("--chat-template"):
        model["chat_template"] = write("template.jinja", TEMPLATES.get(name, name))

    # Its pages may come from anywhere, unless it runs tools.
    origins = "localhost" if "--tools" in given else "*"
    server = {
        "slots": "--no-slots" not in given,
        "metrics": "--metrics" in given,
        "cors_origins": (last("--cors-origins") or origins).split(","),
    }
    if keys := last("--api-key"):
        server["keys_file"] = write("keys", "".join(f"admin:{key}\n" for key in keys.split(",")))
    sampling = {
        "temperature": float(last("--temp") or 0.8),
        "seed": int(last("--seed") or -1),
        "thinking": last("--reasoning") != "off",
    }

    tables = {"server": server, "model": model, "sampling": sampling, "spokes": {"unknown_model": "post"}}
    lines = []
    for name, table in tables.items():
        # What JSON has of these values, TOML writes in the same way.
        lines += [f"[{name}]"] + [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    config = write("bespoke.toml", "\n".join(lines) + "\n")

    host, port = last("--host") or "127.0.0.1", last("--port") or "8080"
    program = os.path.abspath(os.environ["BESPOKE_BIN"])
    command = [
        program, "serve", "--config", config, "--listen", f"{host.split(',')[0]}:{port}",
        "--model", os.environ["TEST_MODEL"], "--state", os.path.join(folder, "state"), "--spokes", spokes,
    ]
    os.chdir(folder)
    os.execv(program, command)


if __name__ == "__main__":
    main()
