"""Writes a small Llama of random weights: nothing that is tested with it depends on what it says.

Usage: random_model.py OUT.gguf
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY, CONTEXT = 2, 64, 4, 2, 128, 600, 4096


def tokenizer(writer):
    """A SentencePiece vocabulary: control tokens, all bytes, and words that no text has."""
    words = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    words += [f"tok{number}".encode() for number in range(VOCABULARY - len(words))]
    kinds += [gguf.TokenType.NORMAL] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def main():
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    writer.add_name("rand")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    tokenizer(writer)

    random = np.random.default_rng(0)

    def matrix(name, rows, columns):
        values = random.standard_normal((rows, columns), dtype=np.float32) * 0.02
        writer.add_tensor(name, values.astype(np.float16))

    def norm(name):
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    kv_width = KV_HEADS * WIDTH // HEADS
    matrix("token_embd.weight", VOCABULARY, WIDTH)
    norm("output_norm.weight")
    matrix("output.weight", VOCABULARY, WIDTH)
    for block in (f"blk.{number}." for number in range(LAYERS)):
        norm(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", WIDTH, WIDTH)
        matrix(block + "attn_k.weight", kv_width, WIDTH)
        matrix(block + "attn_v.weight", kv_width, WIDTH)
        matrix(block + "attn_output.weight", WIDTH, WIDTH)
        norm(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", FEED_FORWARD, WIDTH)
        matrix(block + "ffn_up.weight", FEED_FORWARD, WIDTH)
        matrix(block + "ffn_down.weight", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
