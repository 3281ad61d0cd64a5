"""The bytes of server/receipt.h once more, written from the header alone."""
import hashlib
import struct


def _text(text):
    return struct.pack("<Q", len(text)) + text


def _ids(ids):
    return struct.pack(f"<Q{len(ids)}i", len(ids), *ids)


def receipt(*, digest, numerics, prompt, output, reason, stop_token=-1, stop_string=b"", inverse_temperature=0, top_k=0,
            top_p=65536, min_p=0, seed=0, repetition=65536, presence=0, frequency=0, bias=(), max_tokens, min_tokens=0,
            ignore_eos=False, stop_ids=(), stop_strings=(), constraint=(0, b"")):
    data = _text(b"fixpoint-receipt-1") + _text(digest.encode()) + struct.pack("<I", numerics) + _ids(prompt)
    data += struct.pack("<IiIIQ", inverse_temperature, top_k, top_p, min_p, seed)
    data += struct.pack("<Iii", repetition, presence, frequency)
    data += struct.pack("<Q", len(bias)) + b"".join(struct.pack("<ii", *pair) for pair in sorted(bias))
    data += struct.pack("<iiB", max_tokens, min_tokens, ignore_eos)
    data += _ids(sorted(set(stop_ids)))
    strings = sorted(set(stop_strings))
    data += struct.pack("<Q", len(strings)) + b"".join(map(_text, strings))
    data += struct.pack("<B", constraint[0]) + _text(constraint[1])
    data += _ids(output) + struct.pack("<Bi", reason, stop_token) + _text(stop_string)
    return hashlib.sha256(data).hexdigest()
