"""Makes tests/fixtures/families: small random Hugging Face folders of every architecture, what transformers computes with them
(logits and the gradient of every parameter, f32, CPU), and what llama.cpp's converter makes of them.

Run from the repository root with torch, transformers, tokenizers, sentencepiece and safetensors installed:
    python tests/tools/family_reference.py [--converter LLAMA_CPP] [--out FOLDER] [--seed N] [--random N] [CASE...]

LLAMA_CPP is a checkout of llama.cpp (convert_hf_to_gguf.py, conversion/, gguf-py/); without it, gguf.json is left as it is. `--random N`
makes N random configurations of each family instead; `BESPOKE_FAMILIES_DIR=FOLDER cargo test --test it families` tries them. The values depend on the package versions, which the metadata of expected.safetensors records.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import numpy
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "families"
VOCABULARY = 280

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + TAIL,
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + TAIL,
    "qwen35": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + TAIL,
}
# The names by which llama.cpp knows these ways of cutting a text. Its converter recognises them by the ids of one text in the
# published vocabulary, which no small vocabulary has.
PRE = {"llama3": "llama-bpe", "qwen2": "qwen2", "qwen35": "qwen35"}
TEXTS = [
    "the parser failed in the third test of the build, and the parser of the build's third test isn't there",
    "It's what they'll say: naïve Größe, 日本語 and a number like 1314151 in the    middle\n\n\n of it\t...",
]

SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
LLAMA3_ROPE = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64)
QWEN35 = dict(head_dim=8, num_hidden_layers=4, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=4,
              linear_value_head_dim=4, linear_conv_kernel_dim=4, tie_word_embeddings=True)
# Name: family, changes to the shape, tokens. Comments say what is apart from the usual.
CASES = {
    "llama_plain": ("llama", dict(num_key_value_heads=4), 16),
    # 64 original positions and theta 500: all three branches of the scaling are taken.
    "llama_rope3": ("llama", dict(
        tie_word_embeddings=True, head_dim=8, rope_theta=500.0, rope_scaling=LLAMA3_ROPE), 16),
    "llama_biases": ("llama", dict(attention_bias=True, mlp_bias=True, head_dim=6, tie_word_embeddings=True), 16),
    "qwen2_gqa": ("qwen2", dict(tie_word_embeddings=True, rope_theta=1e6), 16),
    "qwen2_mha": ("qwen2", dict(num_key_value_heads=4, num_hidden_layers=3, rms_norm_eps=1e-5), 16),
    "qwen2_window": ("qwen2", dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1), 16),
    "qwen3_gqa": ("qwen3", dict(tie_word_embeddings=True, head_dim=8), 16),
    "qwen3_mqa": ("qwen3", dict(num_key_value_heads=1, head_dim=6, num_hidden_layers=3, tie_word_embeddings=True), 16),
    "qwen3_biases": ("qwen3", dict(tie_word_embeddings=True, head_dim=8, attention_bias=True, use_sliding_window=True,
                                   sliding_window=7, layer_types=["sliding_attention", "full_attention"]), 16),
    # Windows of 6 in a text of 16; caps low enough to bend.
    "gemma2_usual": ("gemma2", dict(head_dim=8, num_hidden_layers=3, sliding_window=6, query_pre_attn_scalar=8,
                                    attn_logit_softcapping=2.0, final_logit_softcapping=3.0), 16),
    # Scores divided by another root than that of the width, windows where llama.cpp would not expect them.
    "gemma2_scalar": ("gemma2", dict(head_dim=6, sliding_window=9, query_pre_attn_scalar=20, num_key_value_heads=4,
                                     layer_types=["full_attention", "sliding_attention"], rope_theta=500.0), 16),
    "gemma2_no_caps": ("gemma2", dict(head_dim=8, sliding_window=5, query_pre_attn_scalar=8, tie_word_embeddings=False,
                                      attn_logit_softcapping=None, final_logit_softcapping=None), 16),
    "qwen35_usual": ("qwen3_5", QWEN35 | dict(num_key_value_heads=2), 16),
    # Longer than a chunk of the delta rule; half of each head is rotated.
    "qwen35_long": ("qwen3_5", QWEN35 | dict(
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], head_dim=16, linear_num_key_heads=1,
        linear_num_value_heads=3, linear_conv_kernel_dim=3,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5, mrope_section=[2, 1, 1])), 80),
    "qwen35_biases": ("qwen3_5", QWEN35 | dict(
        num_hidden_layers=2, layer_types=["full_attention", "linear_attention"], attention_bias=True, num_key_value_heads=4,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_value_head_dim=6, tie_word_embeddings=False), 16),
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, "llama3"),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, "qwen2"),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, "qwen2"),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM, "gemma2"),
    "qwen3_5": (transformers.Qwen3_5TextConfig, transformers.Qwen3_5ForCausalLM, "qwen35"),
}


def random_case(family, dice):
    """A configuration of a family, every choice by chance."""
    heads = dice.choice([1, 2, 3, 4])
    layers = dice.randint(1, 4)
    changes = dict(
        num_attention_heads=heads, num_key_value_heads=dice.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        hidden_size=heads * dice.choice([4, 6, 8, 10]), intermediate_size=dice.choice([8, 20, 33]), num_hidden_layers=layers,
        rms_norm_eps=dice.choice([1e-6, 1e-5]), tie_word_embeddings=dice.random() < 0.5,
        max_position_embeddings=dice.choice([96, 256]))
    if family != "qwen2":
        changes["head_dim"] = dice.choice([4, 6, 8, 16])
    theta = dice.choice([100.0, 1e4, 1e6])
    rope = dict(rope_type="default", rope_theta=theta)
    if family == "llama":
        if dice.random() < 0.5:
            rope = dict(LLAMA3_ROPE, rope_theta=theta, factor=dice.choice([2.0, 8.0, 32.0]))
        changes |= dict(attention_bias=dice.random() < 0.4, mlp_bias=dice.random() < 0.4)
    if family in ["qwen2", "qwen3"] and dice.random() < 0.4:
        changes |= dict(use_sliding_window=True, sliding_window=dice.randint(1, 20), max_window_layers=dice.randint(0, layers))
    if family == "qwen3":
        changes["attention_bias"] = dice.random() < 0.3
    if family == "gemma2":
        changes |= dict(sliding_window=dice.randint(1, 20), query_pre_attn_scalar=dice.choice([changes["head_dim"], 24, 256]),
                        attn_logit_softcapping=dice.choice([None, 1.0, 50.0]), final_logit_softcapping=dice.choice([None, 2.0, 30.0]),
                        tie_word_embeddings=dice.random() < 0.8)
        if dice.random() < 0.5:
            changes["layer_types"] = [dice.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    if family == "qwen3_5":
        keys = dice.choice([1, 2, 3])
        width = dice.choice([3, 4, 8])
        changes |= dict(
            linear_num_key_heads=keys, linear_num_value_heads=keys * dice.choice([1, 2, 3]), linear_key_head_dim=width,
            linear_value_head_dim=width if dice.random() < 0.7 else 5, linear_conv_kernel_dim=dice.choice([2, 3, 4]),
            attention_bias=dice.random() < 0.2, head_dim=dice.choice([8, 16]),
            layer_types=["linear_attention"] + [dice.choice(["full_attention", "linear_attention"]) for _ in range(layers - 1)])
        rope |= dict(partial_rotary_factor=dice.choice([0.25, 0.5, 1.0]))
        if dice.random() < 0.5:
            rope["mrope_section"] = [1, 1, 0]
    changes["rope_parameters"] = rope
    return family, changes, dice.choice([2, 11, 40, 90])


def byte_level(kind):
    """Byte-level BPE, configured as the published tokenizers of this kind."""
    llama = kind == "llama3"
    specials = (["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"] if llama else
                ["<|endoftext|>", "<|im_end|>", "<|im_start|>"])
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=llama))
    if not llama:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 3, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    byte_step = processors.ByteLevel(trim_offsets=llama)
    if llama:
        bos = specials[0]
        tokenizer.post_processor = processors.Sequence([byte_step, processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    else:
        tokenizer.post_processor = byte_step
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ["<think>", "<|fim_prefix|>"]])
    return tokenizer, specials


def generate_merges(scores):
    """All ways to make a piece of two others, best piece first: how transformers reads a sentencepiece vocabulary."""
    ids = {piece: at for at, piece in enumerate(scores)}
    merges = []
    for piece, score in scores.items():
        ways = [(piece[:at], piece[at:]) for at in range(1, len(piece)) if piece[:at] in ids and piece[at:] in ids]
        merges += [(left, right, score) for left, right in sorted(ways, key=lambda way: (ids[way[0]], ids[way[1]]))]
    return [(left, right) for left, right, _ in sorted(merges, key=lambda merge: -merge[2])]


def gemma(folder):
    """A sentencepiece vocabulary of Gemma's kind, as tokenizer.model in `folder` and as the tokenizer that transformers makes of it."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(TEXTS).split("\n")) + "\n")
    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=VOCABULARY + 45,
        byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        split_digits=True, hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", user_defined_symbols=["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"] + runs,
        character_coverage=0.98, minloglevel=2)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    scores = {model.id_to_piece(at): model.get_score(at) for at in range(model.get_piece_size())}
    vocabulary = {piece: at for at, piece in enumerate(scores)}
    tokenizer = tokenizers.Tokenizer(models.BPE(
        vocabulary, generate_merges(scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)])
    specials = ["<bos>", "<eos>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in
                                  ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ["<mask>", "<unused0>"] + runs])
    return tokenizer, specials


def template(kind):
    return "{% for m in messages %}" + {
        "llama3": "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>",
        "gemma2": "<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n",
    }.get(kind, "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n") + "{% endfor %}"


def write_tokenizer(kind, folder, out):
    """tokenizer.json and tokenizer_config.json into `out`; `folder` is where a tokenizer.model may stay."""
    tokenizer, (bos, eos, pad, *_) = gemma(folder) if kind == "gemma2" else byte_level(kind)
    assert tokenizer.get_vocab_size() <= VOCABULARY + 45, tokenizer.get_vocab_size()
    tokenizer.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "pad_token": pad,
              "chat_template": template(kind)}
    if kind == "gemma2":
        config["unk_token"] = "<unk>"
        # The converter reads a sentencepiece model, and what is added to it from here.
        added = json.loads(tokenizer.to_str())["added_tokens"]
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer, (bos, eos, pad)


def randomise(model, generator):
    """At the usual spread of 0.02 attention is almost flat; at this one a mistake in any part moves the logits."""
    normal = lambda parameter: torch.randn(parameter.shape, generator=generator)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                plain = parameter.abs().sum() > 0  # transformers begins with ones, or with zeros where it adds one
                parameter.copy_((1.0 if plain else 0.0) + 0.3 * normal(parameter))
            elif key.endswith("A_log"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 - 1)
            elif key.endswith("bias"):
                parameter.copy_(0.5 * normal(parameter))
            else:
                parameter.copy_(normal(parameter) / parameter.shape[-1] ** 0.5 * 1.5)


def make(name, out, seed, kinds):
    family, changes, length = CASES[name]
    config_class, model_class, kind = CLASSES[family]
    tokenizer, ends = kinds[kind]
    ids = dict(zip(["bos_token_id", "eos_token_id", "pad_token_id"], [tokenizer.token_to_id(end) for end in ends]))
    values = SHAPE | changes | ids | dict(vocab_size=max(VOCABULARY, tokenizer.get_vocab_size()))
    torch.manual_seed(seed)
    model = model_class(config_class(**values, attn_implementation="eager"))
    generator = torch.Generator().manual_seed(seed + 1)
    randomise(model, generator)
    model = model.float().eval()
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(7, values["vocab_size"], (1, length), generator=generator)
    logits = model(tokens, use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
    loss.backward()
    tensors = {
        "ids": tokens[0].numpy().astype(numpy.uint32),
        "logits": logits.detach().numpy(),
        "loss": numpy.array([loss.item()], dtype=numpy.float32),
    }
    for key, parameter in model.named_parameters():
        tensors[f"gradient.{key}"] = parameter.grad.numpy()
    save_file(tensors, folder / "expected.safetensors",
              metadata={"transformers": transformers.__version__, "torch": torch.__version__})


CONVERT = """
import runpy
import sys
sys.path[:0] = [{root!r} + "/gguf-py", {root!r}]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}
sys.argv = ["convert_hf_to_gguf.py", {folder!r}, "--outfile", {target!r}, "--outtype", {kind!r}] + {more!r}
runpy.run_path({root!r} + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def describe(path, root):
    """Keys with their types and values (lengths, of long lists, which are given apart), tensors with types and dimensions."""
    sys.path.insert(0, f"{root}/gguf-py")
    import gguf
    reader = gguf.GGUFReader(path)
    keys, lists = {}, {}
    for field in reader.fields.values():
        if field.name.startswith("GGUF."):
            continue
        types = [kind.name for kind in field.types]
        value = field.contents()
        if isinstance(value, list) and len(value) > 16:
            lists[field.name] = value
            value = {"length": len(value)}
        keys[field.name] = {"type": types, "value": value}
    tensors = {tensor.name: [tensor.tensor_type.name, [int(dim) for dim in tensor.shape]] for tensor in reader.tensors}
    return {"keys": keys, "tensors": tensors}, lists


def convert(name, out, tokenizer_folders, root):
    """What llama.cpp's converter makes of a case, as F32 and as F16; nothing where it makes nothing."""
    family = CASES[name][0]
    kind = CLASSES[family][2]
    result = {}
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work) / name
        shutil.copytree(out / name, folder)
        for path in tokenizer_folders[kind].glob("tokenizer*"):
            shutil.copy(path, folder)
        for precision in ["f32", "f16"]:
            target = str(pathlib.Path(work) / f"{precision}.gguf")
            code = CONVERT.format(root=str(root), pre=PRE.get(kind), folder=str(folder), target=target, kind=precision,
                                  more=["--no-mtp"] if family == "qwen3_5" else [])
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            if done.returncode != 0:
                print(f"{name}: the converter makes nothing of it: {done.stderr.strip().splitlines()[-1]}")
                return
            result[precision], lists = describe(target, root)
    result["f16"] = {"general.file_type": result["f16"]["keys"]["general.file_type"]["value"],
                     "tensors": {key: kind for key, (kind, _) in result["f16"]["tensors"].items()}}
    write_compact(out / name / "gguf.json", result)
    write_compact(out / "tokenizers" / kind / "gguf.json", lists)


def write_compact(path, value):
    path.write_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--converter", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    if args.random:
        dice = random.Random(args.seed)
        prefixes = {"qwen3_5": "qwen35"}
        random_cases = {f"{prefixes.get(family, family)}_random{n}": random_case(family, dice)
                        for family in CLASSES for n in range(args.random)}
        CASES.clear()
        CASES.update(random_cases)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        kinds, folders = {}, {}
        for kind in ["llama3", "qwen2", "qwen35", "gemma2"]:
            # Beside the cases: one tokenizer serves all of its kind.
            folders[kind] = pathlib.Path(work) / kind
            folders[kind].mkdir()
            kinds[kind] = write_tokenizer(kind, folders[kind], folders[kind])
            shared = args.out / "tokenizers" / kind
            shared.mkdir(parents=True, exist_ok=True)
            for name in ["tokenizer.json", "tokenizer_config.json"]:
                shutil.copy(folders[kind] / name, shared / name)
        for name in args.cases or CASES:
            make(name, args.out, args.seed, kinds)
            if args.converter:
                convert(name, args.out, folders, args.converter.resolve())


if __name__ == "__main__":
    main()
