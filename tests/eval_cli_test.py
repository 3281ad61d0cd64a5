"""`fixpoint-calibrate eval` and `inspect` on a tiny random checkpoint and its bundles: figures against an oracle in numpy, comparison
of bundles, refusals, gigabytes of text. Figures of the real model are in real_model_test.py."""
import json
import math
import os
import pathlib
import resource
import shutil
import struct
import subprocess

import pytest

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, CONTEXT = 2, 64, 4, 2, 16, 128, 1024
BOS, EOS, VOCAB = 256, 257, 258


def byte_alphabet():
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in plain}
    names.update({b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(plain)))})
    return names


def special(number, content):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}


def tokenizer():
    vocab = {name: byte for byte, name in byte_alphabet().items()}
    vocab.update({"<bos>": BOS, "<eos>": EOS})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special(BOS, "<bos>"), special(EOS, "<eos>")],
            "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": []}}


def random_weights(seed):
    random = numpy.random.default_rng(seed)

    def matrix(rows, cols, scale=1.0):
        return (random.standard_normal((rows, cols)) * scale / math.sqrt(cols)).astype("<f4")

    def gain(size):
        return random.uniform(0.5, 1.5, size).astype("<f4")

    weights = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN, math.sqrt(HIDDEN)), "model.norm.weight": gain(HIDDEN),
               "lm_head.weight": matrix(VOCAB, HIDDEN, 2.0)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        weights[name + "input_layernorm.weight"] = gain(HIDDEN)
        weights[name + "self_attn.q_proj.weight"] = matrix(HEADS * HEAD_DIM, HIDDEN)
        weights[name + "self_attn.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN)
        weights[name + "self_attn.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN)
        weights[name + "self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM)
        weights[name + "post_attention_layernorm.weight"] = gain(HIDDEN)
        weights[name + "mlp.gate_proj.weight"] = matrix(INNER, HIDDEN)
        weights[name + "mlp.up_proj.weight"] = matrix(INNER, HIDDEN)
        weights[name + "mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
    return weights


def write_checkpoint(folder, weights):
    folder.mkdir()
    header, data = {}, b""
    for name, values in weights.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "rope_theta": 10000.0}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    return folder


def oracle_log_probabilities(weights, ids):
    """log p of every next token after each of `ids`, by the textbook in double."""
    w = {name: values.astype(numpy.float64) for name, values in weights.items()}

    def norm(x, gain):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    n = len(ids)
    angles = numpy.outer(numpy.arange(n), 10000.0 ** (-numpy.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    cos, sin = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]

    def rope(x):
        a, b = x[..., :HEAD_DIM // 2], x[..., HEAD_DIM // 2:]
        return numpy.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    h = w["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        x = norm(h, w[name + "input_layernorm.weight"])
        q = rope((x @ w[name + "self_attn.q_proj.weight"].T).reshape(n, HEADS, HEAD_DIM))
        k = rope((x @ w[name + "self_attn.k_proj.weight"].T).reshape(n, KV_HEADS, HEAD_DIM)).repeat(HEADS // KV_HEADS, 1)
        v = (x @ w[name + "self_attn.v_proj.weight"].T).reshape(n, KV_HEADS, HEAD_DIM).repeat(HEADS // KV_HEADS, 1)
        scores = numpy.einsum("qhd,khd->hqk", q, k) / math.sqrt(HEAD_DIM)
        scores = numpy.where(numpy.tril(numpy.ones((n, n), bool)), scores, -numpy.inf)
        p = numpy.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        h = h + numpy.einsum("hqk,khd->qhd", p, v).reshape(n, -1) @ w[name + "self_attn.o_proj.weight"].T
        x = norm(h, w[name + "post_attention_layernorm.weight"])
        gate = x @ w[name + "mlp.gate_proj.weight"].T
        h = h + (gate / (1 + numpy.exp(-gate)) * (x @ w[name + "mlp.up_proj.weight"].T)) @ w[name + "mlp.down_proj.weight"].T
    logits = norm(h, w["model.norm.weight"]) @ w["lm_head.weight"].T
    logits -= logits.max(-1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))


def oracle_perplexity(weights, ids, window, stride, prefix):
    """The sliding-window protocol, token by token: every token of the text behind as much of it as its window shows."""
    losses = []
    for number, start in enumerate(range(0, len(ids) - window + 1, stride)):
        shown = ids[start:start + window]
        log_p = oracle_log_probabilities(weights, prefix + shown)
        first = 1 if number == 0 or stride == window else window - stride
        losses += [-log_p[len(prefix) + t - 1, shown[t]] for t in range(first, window)]
    return math.exp(sum(losses) / len(losses))


def words(seed, count):
    """Text with some order in it: words of a small made-up language."""
    random = numpy.random.default_rng(seed)
    known = ["".join(chr(97 + c) for c in random.integers(0, 26, size)) for size in random.integers(2, 9, 60)]
    return " ".join(known[i] for i in random.integers(0, 60, count)) + "\n"


def run(calibrate, *arguments, **keywords):
    return subprocess.run([str(calibrate), *map(str, arguments)], capture_output=True, text=True, **keywords)


def figures(calibrate, *arguments):
    result = run(calibrate, "eval", *arguments, "--json", "--progress", "none")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def refused(result, *parts, status=1):
    assert result.returncode == status, result
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def weights():
    return random_weights(1)


@pytest.fixture(scope="module")
def source(folder, weights):
    return write_checkpoint(folder / "source", weights)


@pytest.fixture(scope="module")
def text(folder):
    path = folder / "text.txt"
    path.write_text(words(5, 600))
    return path


@pytest.fixture(scope="module")
def bundles(calibrate, folder, source):
    """The same checkpoint calibrated with two seeds."""
    corpus = folder / "corpus.txt"
    corpus.write_text(words(6, 4000))
    made = []
    for seed in (0, 1):
        out = folder / f"seed{seed}.fixpoint"
        result = run(calibrate, source, "-o", out, "--corpus", corpus, "--seed", seed, "--progress", "none")
        assert result.returncode == 0, result.stderr
        made.append(out)
    return made


@pytest.mark.parametrize("window, stride, prefix", [(64, 64, []), (64, 64, [BOS]), (96, 24, [BOS]), (50, 7, [BOS, 10, 104])])
def test_float_perplexity_equals_the_oracle(calibrate, source, weights, tmp_path, window, stride, prefix):
    text = tmp_path / "text.txt"
    text.write_text(words(7, 60))
    ids = list(text.read_bytes())
    got = figures(calibrate, "--float", "--source", source, "--text", text, "--window", window, "--stride", stride, "--prefix",
                  ",".join(map(str, prefix)) or "none")
    key = "float_ids" if prefix else "float_none"
    assert got[key]["perplexity"] == pytest.approx(oracle_perplexity(weights, ids, window, stride, prefix), rel=2e-5)
    assert got[key]["token_ids"] == prefix
    assert got["windows"] == (len(ids) - window) // stride + 1
    assert got["tokens"] == window + (got["windows"] - 1) * stride
    assert got["window_tokens"] == window and got["stride"] == stride


def test_integer_beside_float_simulation_and_dynamic(calibrate, bundles, source, text):
    got = figures(calibrate, bundles[0], "--source", source, "--text", text, "--window", 256, "--simulation", "--dynamic")
    alone = got["bundle"]["prefix_token_ids"] == [BOS]  # then one reference has both names
    assert (got["float"] == got["float_prefix"]) == alone
    first = "bos" if alone else "own"
    float_perplexity = got["float_prefix"]["perplexity"]
    for name in ("integer", "simulation", "dynamic_rotated", "dynamic_plain"):
        model = got[name]
        assert model["perplexity"] == pytest.approx(float_perplexity * (1 + model["relative_percent"] / 100), rel=1e-9)
        assert 0 < model["kl_median"] < model["kl_p99"]
        assert 0 < model["kl_mean"] < 0.05
        assert 0.5 < model["top1_agreement"] <= 1
        assert model["standard_error_percent"] > 0
        assert model["against"][first]["kl_mean"] == model["kl_mean"]
    assert got["integer"]["perplexity"] == pytest.approx(got["simulation"]["perplexity"], rel=0.002)
    for key in ("relative_percent", "standard_error_percent", "kl_mean", "top1_agreement"):
        assert got[key] == got["integer"][key]
    assert got["kl_bos_mean"] == got["integer"]["against"]["bos"]["kl_mean"]


def test_without_a_source_the_engine_alone_is_measured(calibrate, bundles, source, text):
    result = run(calibrate, "eval", bundles[0], "--text", text, "--window", 256, "--json", "--progress", "none")
    assert result.returncode == 0, result.stderr
    assert "SHA-256" in result.stderr  # which source it was
    alone = json.loads(result.stdout)
    assert "kl_mean" not in alone and "float" not in alone
    beside = figures(calibrate, bundles[0], "--source", source, "--text", text, "--window", 256)
    assert alone["integer"]["perplexity"] == beside["integer"]["perplexity"]


def test_prefixes_of_the_float_side(calibrate, bundles, source, weights, text):
    def measured(prefix):
        return figures(calibrate, bundles[0], "--source", source, "--text", text, "--window", 200, "--limit", 3, "--prefix", prefix)

    own, bos, none, ids = (measured(prefix) for prefix in ("own", "bos", "none", f"{BOS},32"))
    assert own["float_prefix"]["token_ids"] == own["bundle"]["prefix_token_ids"] and bos["float"]["token_ids"] == [BOS]
    assert none["float_none"]["token_ids"] == [] and "kl_bos_mean" not in none
    assert ids["float_ids"]["token_ids"] == [BOS, 32]
    assert none["float_none"]["perplexity"] != bos["float"]["perplexity"]
    # The integer engine has its own prefix whatever float is measured behind.
    assert len({r["integer"]["perplexity"] for r in (own, bos, none, ids)}) == 1
    assert none["integer"]["kl_mean"] > bos["integer"]["kl_mean"]


def test_limited_windows_spread_over_the_text(calibrate, source, weights, tmp_path):
    # The second half of the text is another one: two windows of four are the first and the third.
    text = tmp_path / "halves.txt"
    content = (words(8, 400)[:1000] + words(9, 400)[:1000]).encode()
    text.write_bytes(content)
    got = figures(calibrate, "--float", "--source", source, "--text", text, "--window", 500, "--limit", 2, "--prefix", "none")
    assert got["windows"] == 2
    pieces = [list(content[start:start + 500]) for start in (0, 1000)]
    expected = sum(math.log(oracle_perplexity(weights, piece, 500, 500, [])) for piece in pieces) / 2
    assert math.log(got["float_none"]["perplexity"]) == pytest.approx(expected, rel=1e-5)


def test_a_bundle_does_not_differ_from_itself(calibrate, bundles, source, text):
    got = figures(calibrate, bundles[0], "--against", bundles[0], "--source", source, "--text", text, "--window", 128)
    comparison = got["comparison"]
    assert comparison["perplexity_ratio_percent"] == comparison["low_percent"] == comparison["high_percent"] == 0
    assert comparison["significant"] is False and comparison["verdict"] == "no significant difference"
    assert comparison["kl"]["bos"]["difference"] == 0 and comparison["kl"]["bos"]["significant"] is False
    assert got["integer"] == got["against"]


def test_comparison_of_two_bundles_is_the_difference_of_their_figures(calibrate, bundles, source, text):
    one = figures(calibrate, bundles[0], "--against", bundles[1], "--source", source, "--text", text, "--window", 128)
    back = figures(calibrate, bundles[1], "--against", bundles[0], "--source", source, "--text", text, "--window", 128)
    comparison, reverse = one["comparison"], back["comparison"]
    ratio = one["integer"]["perplexity"] / one["against"]["perplexity"]
    assert comparison["perplexity_ratio_percent"] == pytest.approx(100 * (ratio - 1), abs=1e-9)
    assert comparison["low_percent"] < comparison["perplexity_ratio_percent"] < comparison["high_percent"]
    assert comparison["significant"] == (comparison["low_percent"] > 0 or comparison["high_percent"] < 0)
    assert comparison["significant"] == reverse["significant"]
    difference = comparison["kl"]["bos"]
    assert difference["difference"] == pytest.approx(one["integer"]["kl_mean"] - one["against"]["kl_mean"], abs=1e-9)
    assert difference["low"] < difference["difference"] < difference["high"]
    assert reverse["kl"]["bos"]["low"] == pytest.approx(-difference["high"], abs=1e-12)
    assert comparison["resamples"] == 10000 and comparison["confidence"] == 0.95
    table = run(calibrate, "eval", bundles[0], "--against", bundles[1], "--text", text, "--window", 128, "--progress", "none").stdout
    assert "significant" in table and "A, integer engine" in table and "B, integer engine" in table


def make_test_bundle(calibrate, path, *arguments):
    program = pathlib.Path(calibrate).parent / "make_test_bundle"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    subprocess.run([program, path, *map(str, arguments)], check=True, capture_output=True)
    return path


def test_bundles_with_different_tokenizers_are_refused_by_name(calibrate, bundles, text, tmp_path):
    other = make_test_bundle(calibrate, tmp_path / "other.fixpoint", 300)
    refused(run(calibrate, "eval", bundles[0], "--against", other, "--text", text, "--progress", "none"),
            bundles[0].name, "other.fixpoint", "258 and 300")
    same_size = make_test_bundle(calibrate, tmp_path / "same.fixpoint", 258)
    refused(run(calibrate, "eval", bundles[0], "--against", same_size, "--text", text, "--progress", "none"),
            bundles[0].name, "same.fixpoint", "tokenizers", "token 256")


def test_another_checkpoint_is_not_the_source(calibrate, bundles, text, folder):
    other = write_checkpoint(folder / "other", random_weights(2))
    refused(run(calibrate, "eval", bundles[0], "--source", other, "--text", text, "--window", 64, "--progress", "none"),
            "is not the source", bundles[0].name, "source")
    foreign = make_test_bundle(calibrate, folder / "foreign.fixpoint", 300)
    refused(run(calibrate, "eval", foreign, "--source", other, "--text", text, "--window", 64, "--progress", "none"),
            "foreign.fixpoint", "provenance")


@pytest.mark.parametrize("arguments, word", [
    (["--window", 1], "--window 1"), (["--window", 1024], "[2, 1023]"), (["--window", 64, "--stride", 65], "--stride 65"),
    (["--window", 64, "--stride", -1], "--stride -1"), (["--limit", -1], "--limit"), (["--simulation"], "--source"),
    (["--dynamic"], "--source"), (["--prefix", "own"], "--source"), (["--float"], "--float")])
def test_flags_that_do_not_fit_are_named(calibrate, bundles, text, arguments, word):
    refused(run(calibrate, "eval", bundles[0], "--text", text, *arguments, "--progress", "none"), word)


@pytest.mark.parametrize("prefix, word", [("x", "'x'"), ("1,,2", "'1,,2'"), ("258", "258"), ("-1", "-1")])
def test_prefixes_that_are_none_are_named(calibrate, bundles, source, text, prefix, word):
    refused(run(calibrate, "eval", bundles[0], "--source", source, "--text", text, "--window", 64, f"--prefix={prefix}", "--progress",
                "none"), word)


def test_what_is_missing_is_named(calibrate, bundles, text):
    refused(run(calibrate, "eval", "--text", text), "bundle", status=2)
    refused(run(calibrate, "eval", bundles[0]), "--text", status=2)
    refused(run(calibrate, "eval", "--float", "--text", text), "--source")


def test_texts_that_cannot_be_measured_are_refused(calibrate, bundles, tmp_path):
    good = words(1, 300).encode()
    for name, content, parts in [("empty.txt", b"", ["is empty"]),
                                 ("binary.bin", good + b"\xff\xd8\xff\xe0" + good, ["not UTF-8", f"byte {len(good)} is 0xff"]),
                                 ("utf16.txt", "a few words".encode("utf-16-le"), ["byte 1 is NUL"]),
                                 ("one.txt", b"a", ["1 tokens", "at least 2"])]:
        path = tmp_path / name
        path.write_bytes(content)
        refused(run(calibrate, "eval", bundles[0], "--text", path, "--progress", "none"), name, *parts)
    refused(run(calibrate, "eval", bundles[0], "--text", tmp_path / "none.txt", "--progress", "none"), "none.txt", "No such file")
    refused(run(calibrate, "eval", bundles[0], "--text", tmp_path, "--progress", "none"), "a directory")


def test_a_short_text_is_one_short_window(calibrate, bundles, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("only a few words")
    result = run(calibrate, "eval", bundles[0], "--text", path, "--window", 512, "--json", "--progress", "none")
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout)
    assert (got["windows"], got["window_tokens"], got["tokens"]) == (1, 16, 16)


def test_the_default_window_is_what_the_model_has_room_for(calibrate, bundles, text):
    got = figures(calibrate, bundles[0], "--text", text)
    assert got["window_tokens"] == CONTEXT - len(got["bundle"]["prefix_token_ids"])


@pytest.mark.parametrize("kind", ["def f(x):\n\treturn {'a': x ** 2}  # \u00e4\n", "Gr\u00fc\u00dfe aus K\u00f6ln! ",
                                  "\u4eca\u65e5\u306f\u4e16\u754c\u3002", "\U0001f600\U0001f680 ok "])
def test_any_utf8_text_works(calibrate, bundles, source, tmp_path, kind):
    path = tmp_path / "kind.txt"
    path.write_text(kind * 40)
    got = figures(calibrate, bundles[0], "--source", source, "--text", path, "--window", 128)
    assert got["tokens"] == len((kind * 40).encode()) // 128 * 128
    assert got["kl_mean"] < 0.05


def test_gigabytes_are_sampled_not_loaded(calibrate, bundles, tmp_path):
    path = tmp_path / "huge.txt"
    if shutil.disk_usage(tmp_path).free < 5 << 30:
        pytest.skip("needs 5 GiB of free space")
    block = (words(3, 150000) * 8).encode()[:4 << 20]
    with open(path, "wb") as out:
        for _ in range(768):
            out.write(block)
    assert path.stat().st_size == 3 << 30

    def limit_memory():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    try:
        arguments = [calibrate, "eval", bundles[0], "--text", path, "--window", 64, "--progress", "none", "--json", "--threads", 1]
        result = run(*arguments, "--limit", 5, preexec_fn=limit_memory)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["windows"] == 5
        refused(run(*arguments, preexec_fn=limit_memory), "huge.txt", str(3 << 30), "--limit")
    finally:
        os.unlink(path)


def test_inspect_says_what_a_bundle_is(calibrate, bundles):
    told = json.loads(run(calibrate, "inspect", bundles[0], "--json").stdout)
    assert told["prefix_token_ids"][0] == BOS and told["prefix_tokens"][0] == "<bos>"
    assert told["tokenizer"]["bos_id"] == BOS and told["tokenizer"]["eos_ids"] == [EOS]
    assert told["config"]["hidden_size"] == HIDDEN
    assert sum(part["bytes"] for part in told["file_parts"]) == told["file_bytes"] == bundles[0].stat().st_size
    weights = {part["name"]: part for part in told["file_parts"]}
    assert weights["layers.*.qkv.weight"] == {"name": "layers.*.qkv.weight", "sections": LAYERS,
                                              "bytes": LAYERS * (HEADS + 2 * KV_HEADS) * HEAD_DIM * HIDDEN}
    shares = {site["name"]: site.get("saturated_share") for site in told["sites"]}
    assert len(shares) == 7 * LAYERS + 1
    table = run(calibrate, "inspect", bundles[0]).stdout
    for part in (told["digest"], told["golden_digest"], '256 "<bos>"', "byte-level BPE", "none", "held-out text", "numerics",
                 told["provenance"]["source"]["sha256"]):
        assert part in table, table
    worst = max((share, name) for name, share in shares.items() if share is not None)[1]
    assert worst in table
    assert "layers.0.q " not in table
    every = run(calibrate, "inspect", bundles[0], "--sites").stdout
    for site in told["sites"]:
        assert site["name"] in every and site["scale"] in every


def test_inspect_copes_with_a_bundle_of_another_maker(calibrate, tmp_path):
    other = make_test_bundle(calibrate, tmp_path / "other.fixpoint")
    result = run(calibrate, "inspect", other)
    assert result.returncode == 0, result.stderr
    assert "another program" in result.stdout and "figures" not in result.stdout
    assert json.loads(run(calibrate, "inspect", other, "--json").stdout)["provenance"]["note"] == 1.5
