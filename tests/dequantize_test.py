"""Every weight encoding, decoded by import_probe and by PyPI's gguf: equal bit for bit on random blocks."""

import os
import pathlib
import subprocess

import pytest

numpy = pytest.importorskip("numpy", reason="numpy is not installed")
gguf = pytest.importorskip("gguf", reason="PyPI package gguf (the oracle) is not installed")

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROBE = pathlib.Path(os.environ.get("FIXPOINT_BIN", ROOT / "build/release/bin")) / "import_probe"

BLOCKS = 2000
# Offsets of the binary16 scales in a block. Random bytes there could be NaN or infinity, which no quantizer writes.
HALF_OFFSETS = {
    "F32": [], "F16": [0], "BF16": [],
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


@pytest.fixture(scope="module")
def probe():
    if not PROBE.exists():
        pytest.skip(f"{PROBE} is not built")
    return PROBE


def random_blocks(name):
    quant = gguf.GGMLQuantizationType[name]
    block_bytes = gguf.GGML_QUANT_SIZES[quant][1]
    random = numpy.random.default_rng(int(quant))
    blocks = random.integers(0, 256, (BLOCKS, block_bytes), dtype=numpy.uint8)
    if name == "F32":
        blocks = random.standard_normal((BLOCKS, 1)).astype("<f4").view(numpy.uint8)
    elif name == "BF16":
        blocks[:, 1] &= 0xBF  # exponents below the special ones
    for offset in HALF_OFFSETS[name]:
        half = blocks[:, offset:offset + 2].copy().view("<u2")
        half[(half & 0x7C00) == 0x7C00] ^= 0x4000  # neither infinity nor NaN; subnormals and both signs stay
        blocks[:, offset:offset + 2] = half.view(numpy.uint8)
    return quant, blocks


@pytest.mark.parametrize("name", HALF_OFFSETS)
def test_equals_gguf_bit_for_bit(probe, name):
    quant, blocks = random_blocks(name)
    expected = numpy.ascontiguousarray(gguf.dequantize(blocks, quant), dtype="<f4")
    output = subprocess.run([probe, "--dequantize", str(int(quant))], input=blocks.tobytes(),
                            capture_output=True, check=True).stdout
    got = numpy.frombuffer(output, dtype="<u4")
    wanted = expected.reshape(-1).view("<u4")
    assert got.shape == wanted.shape
    different = numpy.flatnonzero(got != wanted)
    assert different.size == 0, f"{different.size} values differ, the first at {different[0]}"
