#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_words.json: where Hugging Face tokenizers cut texts by the expressions of GGUF's names.

  tools/golden/tokenizer_words.py [--lines N] [--seed S] [--out DIR]

The expressions stand here as their publishers spell them (tokenizer.json files; llama.cpp where a name is its own).
Larger comparisons: --lines 20000 --out DIR, then tests/text_test --gtest_filter='TokenizerGolden.Words*' with
MOTLEY_TEST_GOLDEN_DIR=DIR.
Needs: pip install tokenizers
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import sys
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

import tokenizer as golden

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER, FIRST = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[^\r\n\p{L}\p{N}]?"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASED = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴ"
         "ᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
         "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
ASIAN = "[一-龥\u0800-一가-\ud7ff]+"
NAMES = {
    "gpt-2": [GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [golden.LLAMA3],
    "qwen2": [golden.QWEN2],
    "qwen35": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+"],
    "gpt-4o": [f"{FIRST}{UPPER}*{LOWER}+{SHORT}|{FIRST}{UPPER}+{LOWER}*{SHORT}|" + r"\p{N}{1,3}" + ENDS],
    "tekken": [f"{FIRST}{UPPER}*{LOWER}+|{FIRST}{UPPER}+{LOWER}*|" + r"\p{N}" + ENDS],
    "deepseek-llm": ["[\r\n]", rf"\s?[{CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", ASIAN, r"\p{N}+"],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", ASIAN, r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
                    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" "\r\n" r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
                    r""" ?[\p{P}\p{S}]+[""" "\r\n" r"""]*|\s*[""" "\r\n" r"""]+|\s+(?!\S)|\s+"""],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
}


def cuts(steps, text):
    """Bytes of each word."""
    return [len(text[begin:end].encode()) for _, (begin, end) in steps.pre_tokenize_str(text)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20240603)
    parser.add_argument("--out", type=Path, default=golden.ROOT / "tests/golden")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = golden.make_lines(options.lines, options.seed)
    names = []
    for name, expressions in NAMES.items():
        steps = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(e), "isolated") for e in expressions])
        names.append({"pre": name, "words": [cuts(steps, text) for text in texts]})
    golden.write(options.out / "tokenizer_words.json", {"texts": texts, "names": names})


if __name__ == "__main__":
    sys.exit(main())
