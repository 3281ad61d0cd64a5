"""The command line of fixpoint-calibrate: verbs, refusals, exit status. Measuring is in real_model_test.py."""
import json
import subprocess

import pytest


def run(calibrate, *arguments, stdin=""):
    return subprocess.run([str(calibrate), *map(str, arguments)], capture_output=True, text=True, input=stdin)


def refused(result, *words, status=1):
    assert result.returncode == status, result
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    if status == 1:
        assert lines[-1].startswith("fixpoint-calibrate: "), result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_missing_arguments_are_named(calibrate, tmp_path):
    refused(run(calibrate), "MODEL")
    refused(run(calibrate, "model.gguf"), "-o")
    refused(run(calibrate, "eval"), "bundle", status=2)
    refused(run(calibrate, "no.gguf", "-o", tmp_path / "x.fixpoint"), "no.gguf")
    refused(run(calibrate, "no.gguf", "-o", tmp_path / "no/such/x.fixpoint"), "no/such")
    refused(run(calibrate, "no.gguf", "-o", tmp_path), "directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, word", [
    (["--budget", "x"], "--budget"), (["--budget", "-1%"], "--budget"), (["--threads", "5000"], "--threads"),
    (["--progress", "loud"], "--progress")])
def test_values_out_of_range_are_named(calibrate, tmp_path, arguments, word):
    refused(run(calibrate, "no.gguf", "-o", tmp_path / "x.fixpoint", *arguments), word)


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_what_is_no_bundle_is_refused(calibrate, tmp_path, verb):
    refused(run(calibrate, verb, tmp_path / "missing.fixpoint"), "missing.fixpoint")
    junk = tmp_path / "junk.fixpoint"
    junk.write_bytes(b"x" * 10000)
    refused(run(calibrate, verb, junk), "junk.fixpoint")


def test_tokenize_prints_ids(calibrate, model, tmp_path):
    result = run(calibrate, "tokenize", model, "--json", stdin="Hello world")
    assert result.returncode == 0, result.stderr
    plain = json.loads(result.stdout)["ids"]
    assert len(plain) == 2
    file = tmp_path / "text"
    file.write_text("Hello world")
    assert json.loads(run(calibrate, "tokenize", model, "--file", file, "--json").stdout)["ids"] == plain
    control = "<|im_start|>"
    as_text = json.loads(run(calibrate, "tokenize", model, "--json", stdin=control).stdout)["ids"]
    as_control = json.loads(run(calibrate, "tokenize", model, "--json", "--special", stdin=control).stdout)["ids"]
    assert len(as_text) > 1 and len(as_control) == 1
    file.write_bytes(b"ok \xff")
    refused(run(calibrate, "tokenize", model, "--file", file), "UTF-8", "byte 3")


def test_render_prints_what_the_model_would_see(calibrate, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}")
    messages = tmp_path / "m.json"
    messages.write_text(json.dumps([{"role": "user", "content": "hé"}]))
    assert run(calibrate, "render", template, "--messages", messages).stdout == "<user>hé<go>"
    assert run(calibrate, "render", template, "--messages", messages, "--no-generation-prompt").stdout == "<user>hé"
    messages.write_text("[{]")
    refused(run(calibrate, "render", template, "--messages", messages))


def test_a_corpus_that_cannot_be_used_is_refused_with_its_name(calibrate, model, tmp_path):
    out = tmp_path / "x.fixpoint"
    for name, content, word in [("empty.txt", b"", "empty"), ("short.txt", b"a few words", "2048"), ("binary.txt", b"\xff" * 9000, "UTF-8")]:
        corpus = tmp_path / name
        corpus.write_bytes(content)
        refused(run(calibrate, model, "-o", out, "--corpus", corpus, "--progress", "none"), name, word)
    assert not out.exists()
