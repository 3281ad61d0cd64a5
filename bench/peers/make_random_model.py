#!/usr/bin/env python3
"""A GGUF file (Q8_0) of TinyLlama's shape, 1.1 billion parameters, with random weights: for speed where no real model can be had.

    make_random_model.py TOKENIZER.gguf OUT.gguf [--layers N]

TOKENIZER.gguf gives the vocabulary: its first 32,000 tokens and the merges that stay within them. The weights are normal with deviation
0.02, so activations stay finite; what the model says means nothing. Needs PyPI's gguf and numpy.
"""
import argparse

import gguf
import numpy

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY, CONTEXT = 2048, 22, 32, 4, 5632, 32000, 2048


def merges_within(merges, tokens):
    known = set(tokens)
    return [merge for merge in merges if merge.replace(" ", "", 1) in known and set(merge.split(" ")) <= known]


def copy_tokenizer(source, writer):
    fields = gguf.GGUFReader(source).fields
    value = lambda name: fields[f"tokenizer.ggml.{name}"].contents()
    tokens = value("tokens")[:VOCABULARY]
    writer.add_tokenizer_model(value("model"))
    writer.add_tokenizer_pre(value("pre"))
    writer.add_token_list(tokens)
    writer.add_token_types(value("token_type")[:VOCABULARY])
    writer.add_token_merges(merges_within(value("merges"), tokens))
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        add(value(f"{name}_token_id"))
    writer.add_chat_template(fields["tokenizer.chat_template"].contents())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("output")
    parser.add_argument("--layers", type=int, default=LAYERS)
    arguments = parser.parse_args()

    writer = gguf.GGUFWriter(arguments.output, "llama")
    writer.add_name("random-1.1B")
    writer.add_block_count(arguments.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    copy_tokenizer(arguments.tokenizer, writer)

    random = numpy.random.Generator(numpy.random.Philox(0))

    def matrix(name, rows, columns):
        weights = random.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(0.02)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    for layer in range(arguments.layers):
        block = f"blk.{layer}."
        kv = HIDDEN // HEADS * KV_HEADS
        for name, rows, columns in (("attn_q", HIDDEN, HIDDEN), ("attn_k", kv, HIDDEN), ("attn_v", kv, HIDDEN), ("attn_output", HIDDEN, HIDDEN),
                                    ("ffn_gate", FEED_FORWARD, HIDDEN), ("ffn_up", FEED_FORWARD, HIDDEN), ("ffn_down", HIDDEN, FEED_FORWARD)):
            matrix(f"{block}{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{name}.weight", numpy.ones(HIDDEN, numpy.float32))
    writer.add_tensor("output_norm.weight", numpy.ones(HIDDEN, numpy.float32))
    matrix("output.weight", VOCABULARY, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
