"""`fixpoint-calibrate export`: the written checkpoint against PyPI's safetensors, compressed-tensors, tokenizers and transformers."""
import json
import os
import pathlib
import subprocess

import pytest

from conftest import BIN

numpy = pytest.importorskip("numpy", reason="numpy is not installed")
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="PyPI package safetensors is not installed")

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 2, 64, 4, 2, 16, 96, 300
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
           "mlp.down_proj"]


def run(calibrate, *arguments):
    return subprocess.run([str(calibrate), *map(str, arguments)], capture_output=True, text=True)


def byte_alphabet():
    """GPT-2's printable byte alphabet, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in printable}
    spelled.update({byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in printable)})
    return [spelled[byte] for byte in range(256)]


def write_tokenizer(folder):
    vocab = {token: i for i, token in enumerate(byte_alphabet())}
    merges = [["t", "h"], ["th", "e"], ["\u0120", "the"], ["i", "n"], ["e", "r"]]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    added = [{"id": len(vocab), "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False}]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {**vocab, "<s>": len(vocab)}, "merges": merges}}))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}))


def write_source(folder, architecture):
    random = numpy.random.default_rng(7)

    def matrix(rows, columns, scale=1.0):
        return (random.standard_normal((rows, columns)) * scale / columns ** 0.5).astype("float32")

    def gains(size):
        return random.uniform(0.5, 1.5, size).astype("float32")

    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN, 8), "model.norm.weight": gains(HIDDEN),
               "lm_head.weight": matrix(VOCAB, HIDDEN, 2.5)}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        tensors |= {
            p + "input_layernorm.weight": gains(HIDDEN), p + "post_attention_layernorm.weight": gains(HIDDEN),
            p + "self_attn.q_proj.weight": matrix(q, HIDDEN), p + "self_attn.k_proj.weight": matrix(kv, HIDDEN),
            p + "self_attn.v_proj.weight": matrix(kv, HIDDEN), p + "self_attn.o_proj.weight": matrix(HIDDEN, q),
            p + "mlp.gate_proj.weight": matrix(INNER, HIDDEN), p + "mlp.up_proj.weight": matrix(INNER, HIDDEN),
            p + "mlp.down_proj.weight": matrix(HIDDEN, INNER)}
        if architecture == "Qwen2ForCausalLM":
            for name, rows in [("q", q), ("k", kv), ("v", kv)]:
                tensors[p + f"self_attn.{name}_proj.bias"] = (0.3 * random.standard_normal(rows)).astype("float32")
    # Two channels of one down_proj's input are far larger than the others: one site that int8 hurts.
    for channel in (3, 40):
        tensors["model.layers.1.mlp.gate_proj.weight"][channel] *= 7
        tensors["model.layers.1.mlp.up_proj.weight"][channel] *= 7
        tensors["model.layers.1.mlp.down_proj.weight"][:, channel] /= 7
    safetensors_numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": [architecture], "model_type": "qwen2" if architecture.startswith("Qwen2") else "llama",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10000.0,
        "bos_token_id": 261, "eos_token_id": 261, "torch_dtype": "float32"}))
    write_tokenizer(folder)


# Architecture and how the bundle is made: untrained, with gains that are its function, with gains in its weights.
KINDS = {"untrained": ("LlamaForCausalLM", ["--objective", "none"]),
         "adapted": ("Qwen2ForCausalLM", ["--objective", "ce", "--steps", "8"]),
         "folded": ("LlamaForCausalLM", ["--vectors", "folded", "--steps", "8"])}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, calibrate, tmp_path_factory):
    """A small checkpoint, its bundle, and both exports of that."""
    folder = tmp_path_factory.mktemp("export")
    source, bundle, corpus = folder / "source", folder / "x.fixpoint", folder / "corpus.txt"
    source.mkdir()
    architecture, method = KINDS[request.param]
    write_source(source, architecture)
    random = numpy.random.default_rng(1)
    words = ["the", "in", "their", "water", "then", "other", "rain", "over", "1996", "\u00e9t\u00e9", "."]
    corpus.write_text(" ".join(random.choice(words, 12000)), encoding="utf-8")
    # The bundle only lends scales and provenance: its own quality does not matter here.
    result = run(calibrate, source, "-o", bundle, "--corpus", corpus, "--progress", "none", "--budget", "20%", "--threads", 1,
                 *method)
    assert result.returncode == 0, result.stderr
    outputs = {}
    for ignore, budget in [("none", "1%"), ("auto", "3%")]:
        result = run(calibrate, "export", bundle, "--source", source, "-o", folder / ignore, "--corpus", corpus,
                     "--ignore", ignore, "--budget", budget, "--json", "--progress", "none", "--threads", 1)
        assert result.returncode == 0, result.stderr
        assert "not carried over" in result.stderr
        outputs[ignore] = (folder / ignore, json.loads(result.stdout))
    assert not [path for path in folder.iterdir() if ".tmp." in path.name]
    return {"source": source, "bundle": bundle, "corpus": corpus, "outputs": outputs, "kind": request.param}


def read(folder):
    """Tensors by name as float32 or int8 arrays (numpy has no bf16: its bits become float32)."""
    safetensors = pytest.importorskip("safetensors", reason="PyPI package safetensors is not installed")
    data = (folder / "model.safetensors").read_bytes()
    tensors = {}
    for name, info in safetensors.deserialize(data):
        raw = bytes(info["data"])
        if info["dtype"] == "BF16":
            array = (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = numpy.frombuffer(raw, {"F32": "<f4", "I8": "i1"}[info["dtype"]])
        tensors[name] = (info["dtype"], array.reshape(info["shape"]))
    return tensors


def modules():
    return [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in LINEARS]


@pytest.mark.parametrize("ignore", ["none", "auto"])
def test_tensors_have_the_types_and_shapes_of_the_format(exported, ignore):
    folder, summary = exported["outputs"][ignore]
    tensors, source = read(folder), safetensors_numpy.load_file(exported["source"] / "model.safetensors")
    ignored = set(json.loads((folder / "config.json").read_text())["quantization_config"]["ignore"])
    assert ignored == set(summary["ignored"])
    assert ignored - {"lm_head"} <= set(modules())
    expected = {name: ("BF16", array.shape) for name, array in source.items()}
    for module in set(modules()) - ignored:
        rows, columns = source[module + ".weight"].shape
        expected[module + ".weight"] = ("I8", (rows, columns))
        expected[module + ".weight_scale"] = ("F32", (rows, 1))
        expected[module + ".input_scale"] = ("F32", (1,))
    assert {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()} == expected
    for layer in range(LAYERS):
        for group in (LINEARS[:3], LINEARS[4:6]):
            names = [f"model.layers.{layer}.{name}" for name in group]
            assert len({name in ignored for name in names}) == 1, "a fused group is quantized whole or not at all"
            assert len({float(tensors[n + ".input_scale"][1][0]) for n in names if n not in ignored}) <= 1
    for name, (dtype, array) in tensors.items():
        assert numpy.isfinite(array.astype("float32")).all(), name
        if name.endswith("_scale"):
            assert (array > 0).all(), name
    if ignore == "none":
        assert ignored == {"lm_head"} and summary["int8_share"] == 1
    else:
        assert "model.layers.1.mlp.down_proj" in ignored and 0.5 < summary["int8_share"] < 1
        assert summary["exported"]["kl_mean"] < summary["all_quantized"]["kl_mean"]


def test_figures_are_against_the_function_that_was_rounded(exported):
    for _, summary in exported["outputs"].values():
        assert (summary["float_perplexity"] != summary["source_perplexity"]) == (exported["kind"] == "adapted")
        relative = 100 * (summary["exported"]["perplexity"] / summary["float_perplexity"] - 1)
        assert summary["exported"]["relative_percent"] == pytest.approx(relative, abs=1e-6)
        assert summary["exported"]["kl_mean"] > 0


def test_metadata_and_readme_say_what_is_missing(exported):
    safetensors = pytest.importorskip("safetensors", reason="PyPI package safetensors is not installed")
    folder, summary = exported["outputs"]["auto"]
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["fixpoint.not_carried"].splitlines() == summary["not_carried"]
    readme = (folder / "README.md").read_text()
    assert all(sentence in readme for sentence in summary["not_carried"])
    assert f"{summary['exported']['perplexity']:.3f}" in readme
    for word in ["prefix", "Hadamard", "KV cache", "bf16"]:
        assert any(word in sentence for sentence in summary["not_carried"]), word


def test_our_importer_multiplies_integers_by_scales(exported):
    import hashlib
    probe = BIN / "import_probe"
    if not probe.exists():
        pytest.skip(f"{probe} is not built")
    folder, _ = exported["outputs"]["auto"]
    done = subprocess.run([probe, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported, tensors = json.loads(done.stdout), read(folder)
    expected, scales = {}, {}
    for name, (dtype, array) in tensors.items():
        if name.endswith(".input_scale"):
            scales[name.removesuffix(".input_scale")] = array[0]
        elif not name.endswith("_scale"):
            values = array.astype("<f4") * tensors[name + "_scale"][1] if dtype == "I8" else array
            expected[name] = hashlib.sha256(numpy.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()
    assert imported["tensors"] == expected
    assert {name: numpy.float32(value) for name, value in imported["input_scales"].items()} == scales


def test_the_file_says_the_same_to_compressed_tensors(exported):
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="PyPI package compressed-tensors is not installed")
    folder, _ = exported["outputs"]["auto"]
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = quantization.QuantizationConfig.model_validate(raw)
    scheme = config.config_groups["group_0"]
    assert scheme.targets == ["Linear"]
    assert (scheme.weights.num_bits, scheme.weights.strategy, scheme.weights.symmetric, scheme.weights.dynamic) == (
        8, quantization.QuantizationStrategy.CHANNEL, True, False)
    assert (scheme.input_activations.strategy, scheme.input_activations.dynamic) == (
        quantization.QuantizationStrategy.TENSOR, False)
    # Nothing but the keys that every version knows, for those that forbid others.
    assert set(raw) == {"quant_method", "format", "quantization_status", "global_compression_ratio", "kv_cache_scheme",
                        "ignore", "config_groups"}
    for args in (raw["config_groups"]["group_0"]["weights"], raw["config_groups"]["group_0"]["input_activations"]):
        assert set(args) == {"num_bits", "type", "symmetric", "strategy", "dynamic"}


def to_bf16(x):
    bits = numpy.ascontiguousarray(x, dtype="<f4").view("<u4")
    return ((bits + 0x7fff + (bits >> 16 & 1)) & numpy.uint32(0xffff0000)).view("<f4").astype("float64")


def reference_logits(folder, ids, activation=lambda x: x):
    """The checkpoint's forward pass in numpy, float64 but for the roundings that the format asks for; `activation` rounds what
    products read before that."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: (dtype, array.astype("float64")) for name, (dtype, array) in read(folder).items()}

    def linear(name, x):
        dtype, weight = tensors[name + ".weight"]
        x = activation(x)
        if dtype == "I8":
            scale = tensors[name + ".input_scale"][1][0]
            quantized = numpy.clip(numpy.rint(x / scale), -128, 127)
            y = quantized @ weight.T * scale * tensors[name + ".weight_scale"][1][:, 0]
        else:
            y = x @ weight.T
        return y + tensors[name + ".bias"][1] if name + ".bias" in tensors else y

    def norm(name, x):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * tensors[name + ".weight"][1]

    def rope(x):  # [tokens][heads][head_dim]
        half = HEAD_DIM // 2
        angle = numpy.arange(len(ids))[:, None] * config["rope_theta"] ** (-numpy.arange(half) / half)
        cos, sin = numpy.cos(angle)[:, None], numpy.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return numpy.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    h = tensors["model.embed_tokens.weight"][1][ids]
    mask = numpy.triu(numpy.full((len(ids), len(ids)), -numpy.inf), 1)
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        x = norm(p + "input_layernorm", h)
        q, k, v = (linear(p + f"self_attn.{n}_proj", x).reshape(len(ids), -1, HEAD_DIM) for n in "qkv")
        q, k, v = (activation(t) for t in (rope(q), rope(k), v))
        k, v = (numpy.repeat(t, HEADS // KV_HEADS, 1) for t in (k, v))
        scores = numpy.einsum("thd,shd->hts", q, k) / HEAD_DIM ** 0.5 + mask
        weights = numpy.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        h = h + linear(p + "self_attn.o_proj", numpy.einsum("hts,shd->thd", weights, v).reshape(len(ids), -1))
        x = norm(p + "post_attention_layernorm", h)
        gate = linear(p + "mlp.gate_proj", x)
        h = h + linear(p + "mlp.down_proj", gate / (1 + numpy.exp(-gate)) * linear(p + "mlp.up_proj", x))
    return activation(norm("model.norm", h)) @ tensors["lm_head.weight"][1].T


def held_out_windows(source, corpus):
    """Which windows of the corpus the exporter measures on (SplitWindows, 400 for statistics and 16 held out)."""
    tokenizers = pytest.importorskip("tokenizers", reason="PyPI package tokenizers is not installed")
    ids = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json")).encode(
        corpus.read_text(encoding="utf-8"), add_special_tokens=False).ids
    count = len(ids) // 512
    used = min(count, 416)
    held = max(1, used * 16 // 416)
    chosen = [i * count // used for i in range(used) if (i + 1) * held // used != i * held // used]
    return [[261, *ids[512 * i:512 * (i + 1)]] for i in chosen]


@pytest.mark.parametrize("ignore", ["none", "auto"])
def test_the_reported_perplexity_is_that_of_the_files(exported, ignore):
    folder, summary = exported["outputs"][ignore]
    windows = held_out_windows(exported["source"], exported["corpus"])
    assert sum(map(len, windows)) == summary["tokens"]
    losses = []
    for ids in windows:
        logits = reference_logits(folder, ids, to_bf16)[:-1]
        logs = logits - logits.max(-1, keepdims=True)
        logs -= numpy.log(numpy.exp(logs).sum(-1, keepdims=True))
        losses.append(-logs[numpy.arange(len(ids) - 1), ids[1:]].mean())
    perplexity = numpy.exp(numpy.mean(losses))
    print(f"numpy {perplexity:.4f}, reported {summary['exported']['perplexity']:.4f}, float {summary['float_perplexity']:.4f}")
    # Sums in another order move values over the edge of a rounding now and then; in this random model that is felt.
    assert abs(summary["exported"]["perplexity"] / perplexity - 1) < 0.01
    if ignore == "none":
        assert abs(summary["float_perplexity"] / perplexity - 1) > 0.02, "too close to float to tell them apart"


@pytest.mark.parametrize("ignore", ["none", "auto"])
def test_transformers_computes_the_reference(exported, ignore):
    torch = pytest.importorskip("torch", reason="torch is not installed: logits not compared")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: logits not compared")
    pytest.importorskip("compressed_tensors", reason="PyPI package compressed-tensors is not installed: logits not compared")
    folder, _ = exported["outputs"][ignore]
    ids = [261, *numpy.random.default_rng(3).integers(0, 256, 31)]
    expected = reference_logits(folder, ids)
    source = transformers.AutoModelForCausalLM.from_pretrained(exported["source"], dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().numpy()
        original = source(torch.tensor([ids])).logits[0].double().numpy()
    size = expected.std()
    error, distance = abs(logits - expected).mean() / size, abs(expected - original).mean() / size
    print(f"transformers against the reference {error:.5f}, export against float {distance:.5f} of the logits' deviation")
    # A float32 sum that lies near a tie is rounded to the other side now and then.
    assert error < 0.2 * distance
    assert 0.002 < distance < 0.5, "int8 changes the model, a little"


def test_refusals(exported, calibrate, tmp_path):
    bundle, source, corpus = exported["bundle"], exported["source"], exported["corpus"]

    def refused(*arguments, word):
        result = run(calibrate, "export", *arguments, "--progress", "none")
        assert result.returncode == 1 and result.stdout == "", result
        assert word in result.stderr, result.stderr
        assert "not carried over" not in result.stderr

    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    refused(bundle, "--source", source, "-o", full, "--corpus", corpus, word="not empty")
    assert [path.name for path in full.iterdir()] == ["mine"]
    out = tmp_path / "out"
    refused(bundle, "--source", source, "-o", out, "--to", "gguf", word="--to")
    refused(bundle, "--source", source, "-o", out, "--ignore", "some", word="--ignore")
    refused(bundle, "--source", source, "-o", out, "--budget", "x", word="--budget")
    refused(bundle, "--source", source, "-o", tmp_path / "no/out", "--corpus", corpus, word="no does not exist")
    refused(bundle, "--source", exported["outputs"]["none"][0], "-o", out, "--corpus", corpus, word="not the source")
    refused(source / "config.json", "--source", source, "-o", out, word="config.json")
    refused(bundle, "--source", source, "-o", out, "--corpus", tmp_path / "missing.txt", word="missing.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_gguf_tokenizers_encode_alike(calibrate, model, data, tmp_path):
    """Without weights: the tokenizer files that an export of a GGUF source gets."""
    tokenizers = pytest.importorskip("tokenizers", reason="PyPI package tokenizers is not installed")
    probe = BIN / "export_tokenizer_probe"
    if not probe.exists():
        pytest.skip(f"{probe} is not built")
    vocabularies = [model]
    others = os.environ.get("FIXPOINT_VOCABULARIES", "")  # more GGUF files, separated by colons
    vocabularies += [pathlib.Path(path) for path in others.split(":") if path]
    text = (data / "dev.txt").read_text(encoding="utf-8")[:200_000]
    text += "\n  caf\u00e9 \u65e5\u672c\u8a9e \U0001f600\u200d x\u0301 12345 don't WE'LL\t\r\n\n"
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    for vocabulary in vocabularies:
        done = run(probe, vocabulary, tmp_path)
        assert done.returncode == 0, done.stderr
        tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ours = run(calibrate, "tokenize", vocabulary, "--file", file, "--special", "--json")
        assert ours.returncode == 0, ours.stderr
        ids = json.loads(ours.stdout)["ids"]
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        assert theirs == ids, vocabulary
        assert tokenizer.decode(theirs, skip_special_tokens=False) == text, vocabulary
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config["eos_token"] and tokenizer.token_to_id(config["eos_token"]) is not None
