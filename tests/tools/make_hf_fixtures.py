"""Makes tests/fixtures/hf: small random Hugging Face folders, with logits and one gradient by transformers (f32, CPU).

Run from the repository root with torch, transformers, tokenizers and safetensors installed:
    python tests/tools/make_hf_fixtures.py
The values depend on the seed and on the package versions, which the metadata of expected.safetensors records.
"""

import json
import pathlib
import shutil

import numpy
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hf"
MARKERS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHAPE = dict(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
CASES = {
    # Head width other than hidden_size / heads, several shards.
    "llama_gqa": ("llama", dict(head_dim=12, num_hidden_layers=3)),
    "llama_tied": ("llama", dict(tie_word_embeddings=True, num_key_value_heads=4)),
    # 64 original positions and theta 500: all three branches of the scaling are taken.
    "llama3_rope": ("llama", dict(rope_theta=500.0, rope_scaling=dict(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64))),
    "qwen3_tied": ("qwen3", dict(tie_word_embeddings=True, head_dim=16)),
}


def make_tokenizer():
    """Byte-level BPE with the qwen2 pre-tokenizer, 320 entries."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=MARKERS + [AddedToken('{"gist":"', special=False, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the parser failed in the third test of the build"] * 20, trainer)
    assert tokenizer.get_vocab_size() <= 320
    return tokenizer


def make(name, family, changes, tokenizer):
    torch.manual_seed(7)
    values = SHAPE | changes
    if family == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values))
    # The usual 0.02 gives almost flat attention; at this spread a mistake in any part moves the logits.
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(1.0 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5 * 1.5)
    model = model.float().eval()
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    # Shards only where asked for: the limit is far above the other models.
    model.save_pretrained(folder, max_shard_size="40KB" if name == "llama_gqa" else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>",
         "chat_template": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"}, indent=2))

    ids = torch.randint(7, values["vocab_size"], (1, 24), generator=generator)
    logits = model(ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    loss.backward()
    save_file(
        {
            "ids": ids[0].numpy().astype(numpy.uint32),
            "logits": logits.detach().numpy(),
            "loss": numpy.array([loss.item()], dtype=numpy.float32),
            "gradient": model.model.layers[0].self_attn.q_proj.weight.grad.numpy(),
        },
        folder / "expected.safetensors",
        metadata={"transformers": transformers.__version__, "torch": torch.__version__},
    )


def main():
    tokenizer = make_tokenizer()
    for name, (family, changes) in CASES.items():
        make(name, family, changes, tokenizer)


main()
