#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_families.json: small tokenizer.json files of the known families, trained here, and the
ids and texts that Hugging Face tokenizers makes with them.

  tools/golden/tokenizer_families.py [--lines N] [--seed S] [--out DIR] [--gguf FILE.gguf]...

Larger comparisons: --lines 20000 --out DIR, then run text_test --gtest_filter='TokenizerGolden.*' with
MOTLEY_TEST_GOLDEN_DIR=DIR; benchmarks/tokenizer_speed takes the same file. --gguf adds a file's own vocabulary (SmolLM2, or
one of scores: gemma, llama): too large for the repository. So is SentencePiece's charsmap nmt_nfkc, which stands in place
of a few rules where there are 1000 lines or more.
Needs: pip install tokenizers sentencepiece protobuf gguf
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import io
import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import tokenizer as golden
import tokenizer_oracle

VOCABULARY = 450
MARK = "▁"
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|")
O200K = CASED + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK_LLM = ["[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽ]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+"]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ADDED = [AddedToken("<|im_start|>", special=True, normalized=False), AddedToken("<|im_end|>", special=True, normalized=False),
         AddedToken("<tool>", special=False, normalized=False), AddedToken("<tool>call", special=False, normalized=False)]
STRIPPING = [AddedToken("<|begin|>", special=True, normalized=False, rstrip=True),
             AddedToken("<pad>", special=False, normalized=False, lstrip=True),
             AddedToken("fox", special=False, normalized=False, single_word=True)]
CHAT = [AddedToken(t, special=True, normalized=False, rstrip=True) for t in ("<|im_start|>", "<|im_end|>", "<|begin|>")]
NORMALIZED = [AddedToken("<|im_start|>", special=True, normalized=True),
              AddedToken("<|im_end|>", special=True, normalized=False, lstrip=True),
              AddedToken("<tool>", special=False, normalized=True, rstrip=True),
              AddedToken("Fox", special=False, normalized=True, single_word=True),
              AddedToken("\u2126", special=False, normalized=True)]


def trained(pre, sentences, alphabet=(), normalizer=None):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator(sentences, trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=list(alphabet), show_progress=False, limit_alphabet=300))
    model = json.loads(made.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def byte_level(pre, sentences, normalizer=None, bos=False, added=ADDED, **rules):
    pre = pre_tokenizers.Sequence([*pre, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pre)])
    tokens, merges = trained(pre, sentences, pre_tokenizers.ByteLevel.alphabet())
    tokens += [word for word in golden.WHOLE_WORDS if word not in tokens]
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, **rules))
    made.pre_tokenizer = pre
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_tokens([AddedToken("<|begin_of_text|>", special=True, normalized=False), *added])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
            special_tokens=[("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))])])
    return made


def with_marks(normalizer, pre, decoder, sentences, added=(), rules=None, common=ADDED):
    """SentencePiece's BPE as converters write it: spaces are marks, unknown characters are bytes."""
    marks = normalizers.Replace(" ", MARK)
    words = pre_tokenizers.Split(MARK, "merged_with_next")
    tokens, merges = trained(words, sentences, normalizer=marks)
    tokens = SPECIAL + BYTES + tokens
    rules = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>", **(rules or {})}
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, **rules))
    if normalizer is not None:
        made.normalizer = normalizer
    if pre is not None:
        made.pre_tokenizer = pre
    made.decoder = decoder
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    made.add_tokens([*common, *added])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return made


def unigram(normalizer, pre, decoder, sentences, byte_fallback=False, added=ADDED):
    trainee = Tokenizer(models.Unigram())
    trainee.normalizer, trainee.pre_tokenizer = normalizer, pre
    trainee.train_from_iterator(sentences, trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    vocabulary = [tuple(entry) for entry in json.loads(trainee.to_str())["model"]["vocab"]]
    if byte_fallback:
        vocabulary += [(token, -30.0) for token in BYTES]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=byte_fallback))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, pre, decoder
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<pad>", "</s>", "<unk>")])
    made.add_tokens(added)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)])
    return made


def charsmap_rules(sentences):
    """A few of SentencePiece's: NFKC of characters of the sentences, sequences, what goes away, what becomes a space."""
    rules = {c: unicodedata.normalize("NFKC", c) for s in sentences for c in s if unicodedata.normalize("NFKC", c) != c}
    rules |= {"e\u0301": "é", "a\u0308\u0323": "ä\u0323", "\u1100\u1161": "가", "\u0001": "", "\u200b": " ", "\t": " ",
              "\r": " ", "\n": " ", "\u3000": " ", "fo": "of", "f": "F"}
    hexes = lambda text: " ".join(f"{ord(c):X}" for c in text)
    return "".join(f"{hexes(source)}\t{hexes(target)}\n" for source, target in sorted(rules.items()))


def sentencepiece_model(sentences, whole):
    """A unigram model of SentencePiece's own trainer, with a charsmap."""
    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(charsmap_rules(sentences))
        rules.flush()
        normalized = {"normalization_rule_name": "nmt_nfkc"} if whole else {"normalization_rule_tsv": rules.name}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=written, vocab_size=VOCABULARY, hard_vocab_limit=False,
            model_type="unigram", pad_piece="[PAD]", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, **normalized)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(written.getvalue())
    return proto


def t5_of_hub(proto):
    """As transformers converts T5."""
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=proto.trainer_spec.unk_id))
    made.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
                                            normalizers.Strip(left=False, right=True),
                                            normalizers.Replace(Regex(" {2,}"), MARK)])
    made.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="always")
    made.decoder = decoders.Metaspace(MARK, prepend_scheme="always")
    made.add_special_tokens(["[PAD]", "</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def t5_of_gguf(proto, texts):
    """As converters write T5 to GGUF, and what SentencePiece itself makes of the texts."""
    own = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    ids = [own.encode(text) for text in texts]
    pieces = ["".join(own.id_to_piece(i) for i in line if i != own.unk_id()).replace(MARK, " ") for line in ids]
    shown = [text.removeprefix(" ") for text in pieces]  # own.decode() would show unknown ones as U+2047
    return {"name": "t5-gguf",
            "vocabulary": {"model": "t5", "tokens": [piece.piece for piece in proto.pieces],
                           "types": [piece.type for piece in proto.pieces],
                           "scores": [piece.score for piece in proto.pieces], "unknown": own.unk_id(), "eos": 1,
                           "add_eos": True, "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
                           "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
                           "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap)},
            "ids": [[*line, 1] for line in ids],
            "shown": [None if text == shows else shows for text, shows in zip(texts, shown)]}


def families(sentences):
    split = lambda pattern, behavior="isolated", invert=False: pre_tokenizers.Split(Regex(pattern), behavior, invert)
    fuse = [decoders.ByteFallback(), decoders.Fuse()]
    replace = decoders.Replace(MARK, " ")
    llama2 = decoders.Sequence([replace, *fuse, decoders.Strip(" ", 1, 0)])
    metaspace = lambda scheme, parts: pre_tokenizers.Metaspace(MARK, prepend_scheme=scheme, split=parts)
    yield "gpt2", byte_level([], sentences)
    yield "llama3", byte_level([split(golden.LLAMA3)], sentences, bos=True, ignore_merges=True)
    yield "qwen2", byte_level([split(golden.QWEN2)], sentences, normalizers.NFC())
    yield "qwen2-removed", byte_level([split(golden.QWEN2, "removed", True)], sentences, normalizers.NFC())
    yield "o200k", byte_level([split(O200K)], sentences)
    yield "deepseek", byte_level([*(split(p) for p in DEEPSEEK_LLM), pre_tokenizers.Digits(individual_digits=True)], sentences)
    yield "llama2", with_marks(normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]), None,
                               llama2, sentences)
    yield "mistral", with_marks(None, metaspace("first", False), llama2, sentences)
    yield "always-split", with_marks(None, metaspace("always", True), llama2, sentences, added=STRIPPING)
    yield "gemma", with_marks(normalizers.Replace(" ", MARK), pre_tokenizers.Split(" ", "merged_with_previous"),
                              decoders.Sequence([replace, *fuse]), sentences,
                              added=[AddedToken("\n" * n, normalized=False) for n in range(2, 5)])
    yield "no-bytes", with_marks(normalizers.Replace(" ", MARK), None, decoders.Sequence([replace, *fuse]), sentences,
                                 rules={"byte_fallback": False})
    yield "t5", unigram(normalizers.NFKC(), pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), metaspace("always", True)]), decoders.Metaspace(), sentences)
    yield "unigram-bytes", unigram(normalizers.NFD(), metaspace("never", True), decoders.Sequence([replace, *fuse]),
                                   sentences, byte_fallback=True)
    folding = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                    normalizers.Replace(Regex(r"\s{2,}"), " "), normalizers.Strip()])
    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
        made = with_marks(folding, pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(behavior), split(r"\d+|o", behavior), pre_tokenizers.Digits(False)]),
            decoders.Sequence(fuse), sentences)
        yield "folding-" + behavior, made
    plain = [s for s in sentences if "<" not in s]  # words that spell a special token must not become one by merging
    prepended = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    yield "phi3", with_marks(prepended, None, llama2, sentences, common=CHAT)
    yield "normalized", with_marks(normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), prepended]), None,
                                   llama2, plain, common=NORMALIZED)
    yield "normalized-bytes", byte_level([split(golden.QWEN2)], plain, normalizers.NFC(), added=NORMALIZED)
    yield "unigram-first", unigram(normalizers.NFKC(), metaspace("first", True),
                                   decoders.Metaspace(MARK, prepend_scheme="first"), sentences, added=NORMALIZED)
    yield "words", with_marks(normalizers.NFC(), pre_tokenizers.Whitespace(), decoders.Sequence(fuse), sentences)


def merges_of_scores(tokens, types, scores):
    """As converters of SentencePiece models list them: best score first."""
    known = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind in (1, 4)}
    found = []
    for token, i in known.items():
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                found.append((-scores[i], known[token[:cut]], known[token[cut:]], token[:cut], token[cut:]))
    return [(left, right) for _, _, _, left, right in sorted(found)]


def gguf_vocabulary(path):
    from gguf import GGUFReader
    reader = GGUFReader(path)
    field = lambda key, absent=None: (reader.get_field("tokenizer.ggml." + key).contents()
                                      if reader.get_field("tokenizer.ggml." + key) else absent)
    common = {"model": field("model"), "tokens": field("tokens"), "types": field("token_type"),
              "bos": field("bos_token_id"), "eos": field("eos_token_id")}
    if common["model"] == "gpt2":
        return {**common, "pre": field("pre"), "merges": field("merges"), "add_bos": False}
    return {**common, "scores": field("scores"), "unknown": field("unknown_token_id"),
            "add_space_prefix": field("add_space_prefix", True)}


def reference_of_scores(vocabulary):
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, byte_fallback=True, fuse_unk=True,
                                merges=merges_of_scores(tokens, types, vocabulary["scores"]),
                                unk_token=tokens[vocabulary["unknown"]]))
    replace = normalizers.Replace(" ", MARK)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), replace]) if vocabulary["add_space_prefix"] else replace
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary["add_space_prefix"] else []
    made.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind in (2, 3)])
    made.add_tokens([AddedToken(t, normalized=False) for t, kind in zip(tokens, types) if kind == 4])
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["bos"])])
    return made


def scored(sentences, prefix):
    """A small vocabulary of scores, as GGUF's model `llama` holds it."""
    tokens, merges = trained(pre_tokenizers.Split(MARK, "merged_with_next"), sentences,
                             normalizer=normalizers.Replace(" ", MARK))
    literals = ["<|im_start|>", "<|im_end|>", "<tool>", "<tool>call", "  "]
    tokens = SPECIAL + BYTES + [token for token in tokens if token not in literals] + literals
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 264) + [3, 3, 4, 4, 4]
    order = {a + b: -float(rank) for rank, (a, b) in reversed(list(enumerate(merges)))}
    scores = [order.get(token, -1e6) for token in tokens]
    return {"model": "llama", "tokens": tokens, "types": types, "scores": scores, "unknown": 0, "bos": 1, "eos": 2,
            "add_space_prefix": prefix}


def expectations(reference, texts):
    ids = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=True)]
    # Left out here and not by the reference, which overlooks those that are looked for in normalised text.
    special = {i for i, token in reference.get_added_tokens_decoder().items() if token.special}
    shown = reference.decode_batch([[i for i in line if i not in special] for line in ids], skip_special_tokens=True)
    return {"ids": ids, "shown": [None if text == shows else shows for text, shows in zip(texts, shown)]}  # None: as given


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20240602)
    parser.add_argument("--out", type=Path, default=golden.ROOT / "tests/golden")
    parser.add_argument("--gguf", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sentences = [golden.unescape(s) for s in golden.SENTENCES]
    texts = golden.make_lines(options.lines, options.seed)
    made = [{"name": name, "tokenizer_json": json.loads(reference.to_str()), **expectations(reference, texts)}
            for name, reference in families(sentences)]
    proto = sentencepiece_model(sentences, whole=options.lines >= 1000)
    hub = t5_of_hub(proto)
    made.append({"name": "t5-charsmap", "tokenizer_json": json.loads(hub.to_str()), **expectations(hub, texts)})
    made.append(t5_of_gguf(proto, texts))
    vocabularies = [("scores", scored(sentences, False)), ("scores-prefix", scored(sentences, True))]
    made += [{"name": name, "vocabulary": vocabulary, **expectations(reference_of_scores(vocabulary), texts)}
             for name, vocabulary in vocabularies]
    for path in options.gguf:
        vocabulary = gguf_vocabulary(path)
        reference = tokenizer_oracle.smollm2(path) if vocabulary["model"] == "gpt2" else reference_of_scores(vocabulary)
        made.append({"name": Path(path).name, "vocabulary": vocabulary, **expectations(reference, texts)})
    dump = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (options.out / "tokenizer_families.json").write_text(
        '{"texts":' + dump(texts) + ',\n"families":[\n' + ",\n".join(map(dump, made)) + "]}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
