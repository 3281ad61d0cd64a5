"""The importer and the float forward pass against `transformers` on the same checkpoint."""
import math
import subprocess

import pytest

from conftest import BIN

TOKENS, WINDOW = 2048, 1024


def probe(model, text):
    program = BIN / "float_probe"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    result = subprocess.run([str(program), str(model), str(text), str(TOKENS), str(WINDOW)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert len(rows) == TOKENS
    return [int(r[0]) for r in rows], [int(r[1]) for r in rows], [float(r[2]) for r in rows]


def test_float_forward_equals_transformers(model, data):
    torch = pytest.importorskip("torch", reason="torch is not installed: float forward not compared")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: float forward not compared")
    pytest.importorskip("gguf", reason="gguf is not installed: transformers cannot read the model")
    pytest.importorskip("accelerate", reason="accelerate is not installed: transformers refuses GGUF files without it")
    ids, argmax, loss = probe(model, data / "dev.txt")

    reference = transformers.AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    windows = torch.tensor(ids).view(-1, WINDOW)
    with torch.no_grad():
        logs = torch.log_softmax(reference(windows).logits.float(), -1)
    agreement = (logs.argmax(-1).flatten() == torch.tensor(argmax)).float().mean().item()
    expected = -logs[:, :-1].gather(-1, windows[:, 1:, None]).mean().item()
    mine = [x for x in loss if not math.isnan(x)]
    assert len(mine) == TOKENS - TOKENS // WINDOW
    perplexity = math.exp(sum(mine) / len(mine))
    print(f"top-1 agreement {agreement:.5f}, perplexity {perplexity:.5f} against {math.exp(expected):.5f}")
    assert agreement >= 0.999
    assert abs(perplexity / math.exp(expected) - 1) <= 0.001


def test_token_ids_equal_those_of_transformers(model, data):
    pytest.importorskip("torch", reason="torch is not installed: transformers cannot read a GGUF vocabulary without it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: token ids not compared")
    pytest.importorskip("gguf", reason="gguf is not installed: transformers cannot read the model")
    ids, _, _ = probe(model, data / "dev.txt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    text = (data / "dev.txt").read_text(encoding="utf-8")
    assert tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS] == ids
