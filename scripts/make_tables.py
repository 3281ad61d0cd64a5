#!/usr/bin/env python3
"""Writes the constant tables of the arithmetic contract. Run from the repository's root; the outputs are committed.

kernels/reference/sigmoid_table.inc   32768 * sigmoid(-i/8), i = 0..128, nearest
kernels/reference/exp2_table.inc      2^31 * 2^(-i/256), i = 0..256, nearest (the sampler's finer table)
"""
from decimal import Decimal, getcontext, ROUND_HALF_UP

getcontext().prec = 60


def nearest(x):
    return int(x.to_integral_value(rounding=ROUND_HALF_UP))


def write(path, values, per_line):
    with open(path, "w") as f:
        for i in range(0, len(values), per_line):
            f.write("    " + ", ".join(str(v) for v in values[i:i + per_line]) + ",\n")


sigmoid = [nearest(32768 / (1 + (Decimal(i) / 8).exp())) for i in range(129)]
write("kernels/reference/sigmoid_table.inc", sigmoid, 16)
ln2 = Decimal(2).ln()
exp2 = [nearest(Decimal(2**31) * (-ln2 * i / 256).exp()) for i in range(257)]
write("kernels/reference/exp2_table.inc", [f"{v}u" for v in exp2], 8)
