#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_smollm2.json and tokenizer_synthetic.json: texts and the token ids of the reference.

  tools/golden/tokenizer.py --model SMOLLM2.gguf [--lines N] [--seed S] [--out DIR]

The reference is Hugging Face tokenizers: over the model file's own vocabulary, and over small vocabularies that are
trained here with the published expressions of GPT-2, Llama 3 and Qwen 2. Larger comparisons: --lines 20000 --out DIR,
then run tokenizer_golden_test and tokenizer_model_test with MOTLEY_TEST_GOLDEN_DIR=DIR.
Needs: pip install tokenizers gguf
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import random
import sys
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import tokenizer_oracle

ROOT = Path(__file__).resolve().parents[2]
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTION + r"\p{N}{1,3}" + REST
QWEN2 = CONTRACTION + r"\p{N}" + REST
LITERALS = [("<|begin|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<|im_end|>\n\n", 3), ("<tool>", 4),
            ("<tool>call", 4), ("<pad>", 5)]
# Words that no merge makes: only a vocabulary that takes words whole ever uses them.
WHOLE_WORDS = ["Ġquixotic", "ĠзавÑĤÑĢа", "zyx"]
VOCABULARY = 900

SENTENCES = r"""The quick brown fox jumps over the lazy dog; it's 12 o'clock, they'll say, and we've seen 1,234.56 reasons I'd doubt.
He DIDN'T say THEY'RE late: you'RE wrong, we'Ve won, I'M here, she'Ll come, it'S fine, 'tis, rock'n'roll, o'ſ 'ſ.
A quixotic plan, zyx, unhappily re-tokenised; naïve café façade coöperate. ﬁnal ﬂow Å Å Ω Ω.
Der Bürgermeister der Stadt Köln läßt grüßen: Straßenbahnhaltestelle, Übermut, ÄÖÜäöüß!
L'été dernier, où étiez-vous ? « Nulle part », répondit-elle — d'accord…
El niño comió mañana ¿verdad? ¡Sí! 50 % más.
Завтра будет дождь, сказал он; съешь ещё этих мягких французских булок, да выпей чаю.
Η γρήγορη αλεπού πηδάει· ἐν ἀρχῇ ἦν ὁ λόγος.
今日はいい天気ですね。東京タワーは333メートルです。ｶﾀｶﾅ カタカナ がぎぐ がぎぐ
敏捷的棕色狐狸跳过了懒狗。我有３个苹果，共１２３４元。
빠른 갈색 여우가 게으른 개를 뛰어넘는다. 한글 각
الثعلب البني السريع يقفز فوق الكلب الكسول، ٠١٢٣٤٥٦٧٨٩ ریال
השועל החום המהיר קופץ מעל הכלב העצלן
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। १२३४५
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ ๑๒๓
Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng. ệ ế
ქართული ენა, հայերեն լեզու, አማርኛ, தமிழ் மொழி
😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👍🏽 ☃️ ❤️ 🤷🏾‍♀️
def f(x, *, y=3):\n\treturn {"a": [1, 2, 3], 'b': x**2 + y} if x >= 0x1F else None  # comment\n
#include <vector>\r\nint main() { std::vector<int> v{1,2,3}; for (auto& e : v) e <<= 2; return v[0] != 4 && !v.empty(); }\r\n
SELECT * FROM users WHERE id = 10 AND name LIKE '%abc%' ORDER BY created_at DESC;
    if (a == b) {\n        return;\n    }\n\n\n\telse\t\t{ }   \n   \n
https://example.org/path?query=value&x=1#frag user@example.org C:\\Users\\name ../..//a.b.c
$\\frac{1}{2} \\sum_{i=0}^{n} x_i^2 \\leq \\infty$ ½ ¼ Ⅷ ² ₃ ① 𝟘𝟙𝟚 ٣ ৪
<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n <|im_end|>\n\n<|im_end <|im_start <tool>call<tool>cal<|begin|><pad>
<|endoftext|>x<repo_name>y<filename>z <|im_start|> <|IM_END|> < |im_end|> <|im_end|><|im_end|>
3.14159265358979 1000000 12 345 6789 0x1F 1e-10 100% 7th 42nd a1b2c3 v2.0.1 2024-06-01T12:00:00Z ١٢٣
!!! ??? ... --- === *** ((( ))) [[[]]] {{{}}} ~~~ ``` "" " ''' ,,, ;;; ::: /// \\\\\\ ||| &&& ^^^ %%% $$$ ### @@@ +++ ___
a\u0000b\u0000\u0000c \u0001\u0004\u0006\u0013\u0014\u0016\u001d\u007f \u0085x\u0085 \u00a0y\u00a0\u00a0z \u2028 \u2029 \u3000 \ufeff \u200b
e\u0301 a\u0308\u0323 n\u0303\u0303 \u0301 z\u0335 \u1e9b\u0323 q\u0307\u0323 \u0f71\u0f72 \u1100\u1161\u11a8
\U0002f800 \U0001d15e \ufb1d \u0958 \u2126 \u212b \u0340\u0341 \u0344 \u0374 \u037e \u0387 \u1fef \ufffd \uffff \U0010ffff \U00040000
""".split("\n")[:-1]
GLUE = ["", "", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", " \t \n  ", "\u00a0", "\u0085", "\u3000 "]


def unescape(line):
    return line.encode("unicode_escape").decode("ascii").replace("\\\\", "\\").encode("ascii").decode("unicode_escape")


def assigned_characters():
    """By general category, as this Python's Unicode knows them."""
    by_category = {}
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category not in ("Cs", "Cn", "Co"):
            by_category.setdefault(category, []).append(chr(code))
    return by_category


def make_lines(count, seed):
    """The sentences, then mixtures of their words, spaces, literals and characters of every category."""
    chance = random.Random(seed)
    sentences = [unescape(s) for s in SENTENCES]
    words = [w for s in sentences for w in s.split(" ")] + [name for name, _ in LITERALS]
    characters = assigned_characters()
    categories = sorted(characters)
    lines = sentences + ["", " ", "  ", "\n", "\r\n", "a", " a", "  a", "a ", "a  ", "1", " 1", "  1", "\t\n ", "'", "'s"]
    while len(lines) < count:
        parts = []
        for _ in range(chance.randint(1, 12)):
            kind = chance.random()
            if kind < 0.55:
                parts.append(chance.choice(words))
            elif kind < 0.65:
                parts.append("".join(chance.choice(characters[chance.choice(categories)]) for _ in range(chance.randint(1, 4))))
            elif kind < 0.75:
                word = chance.choice(words)
                parts.append(word[chance.randint(0, len(word)):])
            elif kind < 0.85:
                parts.append(str(chance.randint(0, 10 ** chance.randint(1, 9))))
            elif kind < 0.9:
                parts.append(chance.choice(words).upper())
            elif kind < 0.95:
                parts.append(chance.choice("aäλ字-= .\n\t'😀") * chance.randint(2, 70))
            parts.append(chance.choice(GLUE))
        lines.append("".join(parts))
    return lines[:count] if count > len(sentences) else lines


def split_by(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def synthetic(name, pre, normalizer, ignore_merges, texts):
    """A trained vocabulary as GGUF lists it, and its reference with and without control tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre
    trained.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [word for word in WHOLE_WORDS if word not in model["vocab"]]
    types = [1] * len(tokens) + [kind for _, kind in LITERALS]
    tokens += [literal for literal, _ in LITERALS]
    merges = [tuple(merge) for merge in model["merges"]]

    def reference(kinds):
        # A fresh one each time: added tokens stay with the object.
        made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=ignore_merges))
        made.pre_tokenizer = pre
        made.decoder = decoders.ByteLevel()
        if normalizer is not None:
            made.normalizer = normalizer
        made.add_tokens([AddedToken(t, normalized=False) for t, kind in zip(tokens, types) if kind in kinds])
        return made

    vocabulary = {"pre": name, "tokens": tokens, "types": types, "merges": [" ".join(merge) for merge in merges]}
    return vocabulary, reference({3, 4}), reference({4})


def ids_of(tokenizer, texts):
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("],[", "],\n[") + "\n",
                    encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the SmolLM2 GGUF file")
    parser.add_argument("--lines", type=int, default=320)
    parser.add_argument("--seed", type=int, default=20240601)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = make_lines(options.lines, options.seed)

    smollm2 = tokenizer_oracle.smollm2(options.model)
    write(options.out / "tokenizer_smollm2.json", {"texts": texts, "ids": ids_of(smollm2, texts)})

    sentences = [unescape(s) for s in SENTENCES]
    made = [synthetic("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), None, False, sentences),
            synthetic("llama-bpe", split_by(LLAMA3), None, True, sentences),
            synthetic("qwen2", split_by(QWEN2), normalizers.NFC(), False, sentences)]
    texts = texts[:max(150, options.lines // 2)]
    write(options.out / "tokenizer_synthetic.json", {"texts": texts, "tokenizers": [
        {**vocabulary, "ids": ids_of(full, texts), "plain_ids": ids_of(plain, texts)} for vocabulary, full, plain in made]})


if __name__ == "__main__":
    sys.exit(main())
