#!/usr/bin/env python3
"""Writes src/text/unicode_ranges.inc and unicode_properties.inc: what Hugging Face tokenizers knows of characters.

Nothing is taken from a standard's tables: each property is read out of the reference, code point by code point, because
its parts come from several versions of Unicode (classes of expressions 16.0, small letters 17.0, punctuation 8.0, marks
and normalisation 9.0).
  tools/golden/tokenizer_unicode.py        needs: pip install tokenizers unicodedata2
SPDX-License-Identifier: Apache-2.0
"""
from pathlib import Path

import unicodedata2
from tokenizers import Regex, normalizers, pre_tokenizers

TEXT = Path(__file__).resolve().parents[2] / "src/text"
CLASSES = [("kLetter", r"\p{L}"), ("kNumber", r"\p{N}"), ("kSpace", r"\s")]
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def ranges(codes):
    """[first, last] pairs, ascending."""
    found = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def matched(pattern):
    remove = pre_tokenizers.Split(Regex(pattern), "removed")
    return [code for code in CODES if not remove.pre_tokenize_str(chr(code))]


def marks():
    strip = normalizers.StripAccents()
    return [code for code in CODES if not strip.normalize_str(chr(code))]


def punctuation():
    remove = pre_tokenizers.Punctuation("removed")
    return [code for code in CODES if not remove.pre_tokenize_str(chr(code))]


def words():
    """What stays with a letter in one word: \\w of Rust's expressions."""
    split = pre_tokenizers.Whitespace()
    return [code for code in CODES if split.pre_tokenize_str("a" + chr(code))[0][0] == "a" + chr(code)]


def small_letters():
    """(first, last, step, distance): of letters whose small form is another one character."""
    lower = normalizers.Lowercase()
    rows = []
    for code in CODES:
        small = lower.normalize_str(chr(code))
        if len(small) != 1 or ord(small) == code:
            continue
        distance = ord(small) - code
        if rows and rows[-1][3] == distance and code - rows[-1][1] in (1, 2):
            step = code - rows[-1][1]
            if rows[-1][0] == rows[-1][1] or rows[-1][2] == step:
                rows[-1][1:3] = code, step
                continue
        rows.append([code, code, 1, distance])
    return rows


def newer_than_normalisation():
    """What later versions of Unicode decompose, reorder or compose, and the reference leaves alone."""
    forms = [(getattr(normalizers, form)(), form) for form in ("NFD", "NFKD")]
    frames = ["{}", "a{}\u0316", "a\u0315{}", "a\u0345{}"]  # marks of several classes beside it
    newer = set()
    for code in CODES:
        for reference, form in forms:
            for frame in frames:
                text = frame.format(chr(code))
                now = unicodedata2.normalize(form, text)
                if reference.normalize_str(text) != now:
                    newer.add(code)
                    if form == "NFD" and frame == "{}":
                        newer.add(ord(now[0]))  # new composites begin with new characters
    return sorted(newer)


def cells(rows):
    lines, line = [], ""
    for row in rows:
        cell = "{" + ", ".join(row) + "},"
        if line and len(line) + 1 + len(cell) > 118:
            lines.append(line)
            line = ""
        line = f"{line} {cell}" if line else cell
    return "\n".join([*lines, line]) + "\n"


def table(kind, name, rows):
    return f"constexpr {kind} {name}[] = {{\n" + cells(rows) + "};\n"


def main():
    made = "// Made by tools/golden/tokenizer_unicode.py: "
    span = lambda codes: [(hex(first), hex(last)) for first, last in ranges(codes)]
    classes = sorted((first, last, name) for name, pattern in CLASSES for first, last in ranges(matched(pattern)))
    (TEXT / "unicode_ranges.inc").write_text(
        made + "{first, last, class}, ascending. Unicode 16.0.\n// clang-format off\n" +
        cells((hex(first), hex(last), name) for first, last, name in classes))
    small = [(hex(first), hex(last), str(step), str(distance)) for first, last, step, distance in small_letters()]
    (TEXT / "unicode_properties.inc").write_text(
        made + "tables in ascending order.\n// clang-format off\n" +
        table("Span", "kMarks", span(marks())) + table("Span", "kPunctuation", span(punctuation())) +
        table("Span", "kWords", span(words())) + table("Span", "kNewer", span(newer_than_normalisation())) +
        table("SmallLetters", "kSmallLetters", small))


if __name__ == "__main__":
    main()
