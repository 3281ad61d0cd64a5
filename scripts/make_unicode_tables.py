#!/usr/bin/env python3
"""Writes text/unicode_tables.inc: the code point classes that the tokenizers' splitting rules need, as sorted ranges.

Takes a second. Needs `pip install unicodedata2==16.0.0 regex`; the categories are those of Unicode 16.0, which is what
the `tokenizers` package splits by. Run it only to move to another Unicode version:

    python3 scripts/make_unicode_tables.py --output text/unicode_tables.inc
"""

import argparse

import regex
import unicodedata2

LETTER, NUMBER, MARK, SPACE, WORD = 1, 2, 4, 8, 16
ALPHABETIC = regex.compile(r"\p{Alphabetic}")
# The White_Space property. Written out: it has not changed since U+180E left it in Unicode 6.3.
WHITE_SPACE = {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, *range(9, 14), *range(0x2000, 0x200B)}
JOIN_CONTROL = {0x200C, 0x200D}


def classes(code_point: int) -> int:
    char = chr(code_point)
    category = unicodedata2.category(char)
    bits = {"L": LETTER, "N": NUMBER, "M": MARK}.get(category[0], 0)
    if code_point in WHITE_SPACE:
        bits |= SPACE
    if category != "Cn" and (category[0] == "M" or category in ("Nd", "Pc") or code_point in JOIN_CONTROL
                             or ALPHABETIC.match(char)):
        bits |= WORD
    return bits


def ranges():
    first, bits = 0, classes(0)
    for code_point in range(1, 0x110001):
        next_bits = classes(code_point) if code_point < 0x110000 and not 0xD800 <= code_point < 0xE000 else 0
        if next_bits != bits or code_point == 0x110000:
            if bits:
                yield first, code_point - 1, bits
            first, bits = code_point, next_bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    if unicodedata2.unidata_version != "16.0.0":
        raise SystemExit(f"unicodedata2 is at Unicode {unicodedata2.unidata_version}, this script wants 16.0.0")
    cells = [f"{{0x{first:X},0x{last:X},{bits}}}," for first, last, bits in ranges()]
    with open(arguments.output, "w", encoding="ascii") as out:
        out.write("// Written by scripts/make_unicode_tables.py from Unicode 16.0.0. Do not edit.\n")
        out.write("// {first code point, last code point, classes}: 1 letter, 2 number, 4 mark, 8 white space, 16 word.\n")
        line = ""
        for cell in cells:
            if len(line) + len(cell) > 120:
                out.write(line + "\n")
                line = ""
            line += cell
        out.write(line + "\n")
    print(f"{arguments.output}: {len(cells)} ranges")


if __name__ == "__main__":
    main()
