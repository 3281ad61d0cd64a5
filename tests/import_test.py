"""The importer against independent readers: PyPI's gguf on the real model, safetensors' own writer on a small one."""

import hashlib
import json
import os
import pathlib
import subprocess

import pytest

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROBE = pathlib.Path(os.environ.get("FIXPOINT_BIN", ROOT / "build/release/bin")) / "import_probe"

NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def run_probe(*arguments):
    if not PROBE.exists():
        pytest.skip(f"{PROBE} is not built")
    return subprocess.run([PROBE, *arguments], capture_output=True, text=True)


def import_json(path):
    done = run_probe(str(path))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digest(array):
    return hashlib.sha256(numpy.ascontiguousarray(array, dtype="<f4").tobytes()).hexdigest()


@pytest.fixture(scope="module")
def reader(model):
    gguf = pytest.importorskip("gguf", reason="PyPI package gguf (the oracle) is not installed")
    return gguf.GGUFReader(model)


@pytest.fixture(scope="module")
def imported(model):
    return import_json(model)


def half_split(rows, heads):
    """Undoes the converter's row order: (head, pair, half) back to (head, half, pair)."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def hugging_face_name(name):
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    _, layer, tensor, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[tensor]}.{kind}"


def test_every_tensor_equals_gguf(reader, imported):
    from gguf import dequantize
    config = imported["config"]
    expected = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape([int(dim) for dim in tensor.shape[::-1]])
        if ".attn_q." in tensor.name:
            values = half_split(values, config["num_attention_heads"])
        if ".attn_k." in tensor.name:
            values = half_split(values, config["num_key_value_heads"])
        expected[hugging_face_name(tensor.name)] = digest(values)
    assert imported["tensors"] == expected


def test_config_equals_metadata(reader, imported):
    def value(key):
        return reader.fields[key].contents()

    arch = value("general.architecture")
    config = imported["config"]
    assert config["architecture"] == arch
    assert config["num_hidden_layers"] == value(f"{arch}.block_count")
    assert config["hidden_size"] == value(f"{arch}.embedding_length")
    assert config["intermediate_size"] == value(f"{arch}.feed_forward_length")
    assert config["num_attention_heads"] == value(f"{arch}.attention.head_count")
    assert config["num_key_value_heads"] == value(f"{arch}.attention.head_count_kv")
    assert config["head_dim"] == value(f"{arch}.rope.dimension_count")
    assert config["max_position_embeddings"] == value(f"{arch}.context_length")
    assert config["rope_theta"] == value(f"{arch}.rope.freq_base")
    assert config["rms_norm_eps"] == value(f"{arch}.attention.layer_norm_rms_epsilon")
    assert config["vocab_size"] == len(value("tokenizer.ggml.tokens"))
    assert config["tie_word_embeddings"] == all(tensor.name != "output.weight" for tensor in reader.tensors)


def test_tokenizer_figures_and_digests(model, reader, imported):
    tokenizer = imported["tokenizer"]
    assert tokenizer["tokens"] == len(reader.fields["tokenizer.ggml.tokens"].contents())
    assert tokenizer["merges"] == len(reader.fields["tokenizer.ggml.merges"].contents())
    assert tokenizer["eos_ids"][0] == reader.fields["tokenizer.ggml.eos_token_id"].contents()
    template = reader.fields["tokenizer.chat_template"].contents()
    assert tokenizer["chat_template_sha256"] == hashlib.sha256(template.encode()).hexdigest()
    assert imported["source_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    alone = run_probe("--tokenizer", str(model))
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout) == tokenizer


def test_a_cut_model_is_refused_by_name(model, tmp_path):
    cut = tmp_path / "cut.gguf"
    with open(model, "rb") as source:
        cut.write_bytes(source.read(3_000_000))
    done = run_probe(str(cut))
    assert done.returncode != 0
    assert "cut.gguf" in done.stderr and "tensor data" in done.stderr


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def small_model(architecture, scaling):
    config = {
        "architectures": [architecture], "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 5,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        "rope_theta": 500000.0, "rope_scaling": scaling,
    }
    shapes = {"model.embed_tokens.weight": (5, 16), "model.norm.weight": (16,), "lm_head.weight": (5, 16)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes.update({
            prefix + "input_layernorm.weight": (16,), prefix + "post_attention_layernorm.weight": (16,),
            prefix + "self_attn.q_proj.weight": (32, 16), prefix + "self_attn.k_proj.weight": (16, 16),
            prefix + "self_attn.v_proj.weight": (16, 16), prefix + "self_attn.o_proj.weight": (16, 32),
            prefix + "mlp.gate_proj.weight": (24, 16), prefix + "mlp.up_proj.weight": (24, 16),
            prefix + "mlp.down_proj.weight": (16, 24),
        })
        if architecture == "Qwen2ForCausalLM":
            shapes.update({prefix + "self_attn.q_proj.bias": (32,), prefix + "self_attn.k_proj.bias": (16,),
                           prefix + "self_attn.v_proj.bias": (16,)})
    return config, shapes


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_directory_written_by_safetensors(tmp_path, architecture, dtype, sharded):
    writer = pytest.importorskip("safetensors.numpy", reason="PyPI package safetensors is not installed")
    config, shapes = small_model(architecture, LLAMA3)
    random = numpy.random.default_rng(0)
    tensors = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    if sharded:
        names = sorted(tensors)
        shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
        for shard, members in shards.items():
            writer.save_file({name: tensors[name] for name in members}, tmp_path / shard)
        index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        writer.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    imported = import_json(tmp_path)
    assert imported["tensors"] == {name: digest(values) for name, values in tensors.items()}
    assert imported["source_types"] == {"float32": "F32", "float16": "F16"}[dtype]
    assert imported["config"]["head_dim"] == 8


def test_llama3_frequencies_equal_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="PyPI package transformers is not installed")
    pytest.importorskip("torch", reason="PyPI package torch is not installed")
    writer = pytest.importorskip("safetensors.numpy", reason="PyPI package safetensors is not installed")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    config, shapes = small_model("LlamaForCausalLM", LLAMA3)
    tensors = {name: numpy.ones(shape, dtype="float32") for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    writer.save_file(tensors, tmp_path / "model.safetensors")
    imported = import_json(tmp_path)
    known = {key: value for key, value in config.items() if key != "architectures"}
    expected = LlamaRotaryEmbedding(transformers.LlamaConfig(**known)).inv_freq.double().numpy()
    # transformers computes in float32: a few roundings of 2^-24 each.
    numpy.testing.assert_allclose(imported["rope_inverse_frequency"], expected, rtol=1e-6)
