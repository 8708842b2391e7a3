#!/usr/bin/env python3
"""Writes src/text/unicode_ranges.inc: the code points that \\p{L}, \\p{N} and \\s match.

The classes are read out of the regular expression engine inside Hugging Face tokenizers (Unicode 16.0), code point by
code point, so that text is cut where the reference cuts it.
  tools/golden/tokenizer_unicode.py        needs: pip install tokenizers
SPDX-License-Identifier: Apache-2.0
"""
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

OUT = Path(__file__).resolve().parents[2] / "src/text/unicode_ranges.inc"
CLASSES = [("kLetter", r"\p{L}"), ("kNumber", r"\p{N}"), ("kSpace", r"\s")]
SURROGATES = range(0xD800, 0xE000)


def ranges(pattern):
    """[first, last] pairs, ascending."""
    remove = pre_tokenizers.Split(Regex(pattern), "removed")
    found = []
    for code in range(0x110000):
        if code in SURROGATES or remove.pre_tokenize_str(chr(code)):
            continue
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def main():
    rows = sorted((first, last, name) for name, pattern in CLASSES for first, last in ranges(pattern))
    lines, line = [], ""
    for first, last, name in rows:
        cell = f"{{0x{first:x}, 0x{last:x}, {name}}},"
        if line and len(line) + 1 + len(cell) > 118:
            lines.append(line)
            line = ""
        line = f"{line} {cell}" if line else cell
    lines.append(line)
    OUT.write_text("// Made by tools/golden/tokenizer_unicode.py: {first, last, class}, ascending. Unicode 16.0.\n"
                   "// clang-format off\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
