#include "text/sentencepiece_tokenizer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "base/utf8.hpp"
#include "text/text_stream.hpp"
#include "text/vocabulary_testing.hpp"
#include "text/word_model.hpp"

namespace motley {
namespace {

using Ids = std::vector<TokenId>;

// <unk>, <s>, </s>, the 256 bytes; what is added has falling scores.
struct SpmVocabulary : TestVocabulary {
  explicit SpmVocabulary(bool with_bytes = true) {
    model = "llama";
    pre = "";
    unknown = special("<unk>", 2);
    bos = special("<s>", 3);
    eos = special("</s>", 3);
    for (int byte = 0; with_bytes && byte < 256; ++byte) special(fmt::format("<0x{:02X}>", byte), 6);
    add_bos = false;
  }
  int32_t special(const std::string& piece, int32_t type) {
    scores.push_back(0);
    return add(piece, type);
  }
  int32_t word(const std::string& piece) { return word(piece, -static_cast<float>(tokens.size())); }
  int32_t word(const std::string& piece, float score) {
    scores.push_back(score);
    return add(piece, 1);
  }
  std::unique_ptr<Tokenizer> made() const {
    auto result = create();
    CHECK(result.ok(), "{}", result.error().message());
    return *std::move(result);
  }
  void expect_refused(Code code, std::string_view word) const {
    const auto result = create();
    ASSERT_FALSE(result.ok()) << word;
    EXPECT_EQ(result.error().code(), code) << result.error().message();
    EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().message();
  }
};

SpmVocabulary letters(bool with_bytes = true) {
  SpmVocabulary v(with_bytes);
  for (const char* piece : {"▁", "a", "b", "c", "l", "o", "h", "e"}) v.word(piece);
  return v;
}

TEST(SentencePiece, Neighbours_MergeByScoreAndLeftmostOnTies) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  const TokenId ab = v.word("ab", -5), bc = v.word("bc", -4), aa = v.word("aa", -3);
  const auto t = v.made();
  EXPECT_EQ(t->encode("abc", false, false), (Ids{*t->find("a"), bc}));
  EXPECT_EQ(t->encode("aaa", false, false), (Ids{aa, *t->find("a")}));
  EXPECT_EQ(t->encode("ab", false, false), Ids{ab});
}

TEST(SentencePiece, EqualScores_LeftmostPairFirst) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  const TokenId bc = v.word("bc", -9), ab = v.word("ab", -9);
  (void)bc;
  const auto t = v.made();
  EXPECT_EQ(t->encode("abc", false, false), (Ids{ab, *t->find("c")}));
}

TEST(SentencePiece, SpacePrefix_StandsBeforeEveryStretchOfText) {
  SpmVocabulary v = letters();
  const TokenId mark_a = v.word("▁a"), mark_b = v.word("▁b"), mark = *v.made()->find("▁");
  EXPECT_EQ(v.made()->encode("a", false, true), Ids{mark_a});
  EXPECT_EQ(v.made()->encode(" a", false, true), (Ids{mark, mark_a}));
  EXPECT_EQ(v.made()->encode("a b</s>b", false, true), (Ids{mark_a, mark_b, *v.eos, mark_b}));
  EXPECT_EQ(v.made()->encode("", false, true), Ids{});
  v.add_space_prefix = false;
  EXPECT_EQ(v.made()->encode("a b</s>b", false, true),
            (Ids{*v.made()->find("a"), mark_b, *v.eos, *v.made()->find("b")}));
}

TEST(SentencePiece, EncodeMore_PrefixesOnlyWhereATextWouldBegin) {
  SpmVocabulary v = letters();
  const TokenId mark_a = v.word("▁a");
  const auto t = v.made();
  EXPECT_EQ(t->encode_more("a", Place::kStart, true), Ids{mark_a});
  EXPECT_EQ(t->encode_more("a", Place::kAfterToken, true), Ids{mark_a});
  EXPECT_EQ(t->encode_more("a", Place::kInText, true), Ids{*t->find("a")});
}

TEST(SentencePiece, BosAndEos_DefaultToBosAlone) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  v.add_bos.reset();
  const TokenId a = *v.made()->find("a");
  EXPECT_EQ(v.made()->encode("a", true, true), (Ids{*v.bos, a}));
  v.add_bos = false;
  v.add_eos = true;
  EXPECT_EQ(v.made()->encode("a", true, true), (Ids{a, *v.eos}));
  EXPECT_EQ(v.made()->end_tokens(), Ids{*v.eos});
}

TEST(SentencePiece, UnknownCharacters_BecomeBytesOrTheUnknownToken) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  const auto t = v.made();
  EXPECT_EQ(t->encode("a\u20AC", false, false),
            (Ids{*t->find("a"), *t->find("<0xE2>"), *t->find("<0x82>"), *t->find("<0xAC>")}));
  EXPECT_EQ(t->encode("\xFF", false, false), Ids{*t->find("<0xFF>")});
  SpmVocabulary without = letters(false);
  without.add_space_prefix = false;
  const auto u = without.made();
  EXPECT_EQ(u->encode("a\u20AC\u20ACb\u20AC", false, false), (Ids{*u->find("a"), 0, *u->find("b"), 0}));
}

TEST(SentencePiece, LiteralText_IsMatchedBeforeSpacesAreMarked) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  v.scores.push_back(-1000);
  const TokenId two = v.add("  ", 4);
  v.scores.push_back(-1000);
  v.add("<|tool|>", 4);
  v.scores.push_back(0);
  const TokenId ca = v.add("ca", 3);  // merges never make a control token
  const auto t = v.made();
  EXPECT_EQ(t->encode("a  b", false, false), (Ids{*t->find("a"), two, *t->find("b")}));
  EXPECT_EQ(t->encode("ca", false, true), Ids{ca});
  for (const TokenId id : t->encode("ca<s></s><unk><|tool|>", false, false)) EXPECT_FALSE(t->is_marker(id));
}

TEST(SentencePiece, Decode_TakesOneLeadingSpaceOff) {
  SpmVocabulary v = letters();
  const TokenId mark_a = v.word("▁a");
  const auto t = v.made();
  const Ids ids{*v.bos, mark_a, mark_a};
  EXPECT_EQ(t->decode(ids, false), "a a");
  EXPECT_EQ(t->decode(ids, true), "<s> a a");
  EXPECT_EQ(t->token_bytes(mark_a, false), " a");
  TextStream text(*t, {.stop = {}, .starts_text = true}), answer(*t, {});
  std::string whole, continued;
  for (const TokenId id : ids) {
    whole += text.push(id);
    continued += answer.push(id);
  }
  EXPECT_EQ(whole + text.finish(), "a a");
  EXPECT_EQ(continued + answer.finish(), " a a");
  v.add_space_prefix = false;
  EXPECT_EQ(v.made()->decode(ids, false), " a a");
}

TEST(SentencePiece, TokenWithASpaceInside_IsStillFound) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  v.word("▁b");
  const TokenId joined = v.word("a▁b", -1), aa = v.word("▁▁", -0.5f);
  const auto t = v.made();
  EXPECT_EQ(t->encode("a b", false, false), (Ids{joined}));
  EXPECT_EQ(t->encode("a   b", false, false), (Ids{*t->find("a"), aa, *t->find("▁b")}));
}

TEST(SentencePiece, ContradictoryData_IsRefused) {
  SpmVocabulary v = letters();
  v.scores.clear();
  v.expect_refused(MOTLEY_INVALID_ARGUMENT, "tokenizer.ggml.scores");
  v = letters();
  v.scores[300 % v.scores.size()] = NAN;
  v.expect_refused(MOTLEY_INVALID_ARGUMENT, "not a number");
  v = letters();
  v.word(std::string(kSearchedTokenBytesMax + 1, 'a'));
  v.expect_refused(MOTLEY_INVALID_ARGUMENT, "at most 512");
}

TEST(SentencePiece, HugeWord_IsNotQuadratic) {
  SpmVocabulary v = letters();
  v.add_space_prefix = false;
  v.word("aa");
  v.word("aaaa");
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(v.made()->encode(text, false, false).size(), text.size() / 4);
}

// The definition, word for word, over strings: the best-scoring pair of neighbours that is a token, leftmost on ties.
Ids by_definition(const SpmVocabulary& v, const Tokenizer& t, const std::string& text) {
  std::vector<std::string> symbols;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t bytes = utf8_step(rest).kind == Utf8Step::kCharacter ? utf8_step(rest).bytes : 1;
    symbols.emplace_back(rest.substr(0, bytes));
    rest.remove_prefix(bytes);
    if (symbols.back() == " ") symbols.back() = "▁";
  }
  const auto word = [&](const std::string& piece) {
    const auto id = t.find(piece);
    return id && v.types[static_cast<size_t>(*id)] == 1 ? id : std::nullopt;
  };
  for (;;) {
    std::optional<size_t> best;
    float best_score = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto id = word(symbols[i]) && word(symbols[i + 1]) ? word(symbols[i] + symbols[i + 1]) : std::nullopt;
      if (!id || (best && v.scores[static_cast<size_t>(*id)] <= best_score)) continue;
      best = i;
      best_score = v.scores[static_cast<size_t>(*id)];
    }
    if (!best) break;
    symbols[*best] += symbols[*best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(*best) + 1);
  }
  Ids ids;
  for (const std::string& symbol : symbols) {
    if (const auto id = word(symbol)) {
      ids.push_back(*id);
    } else {
      for (const char byte : symbol) ids.push_back(*t.find(fmt::format("<0x{:02X}>", static_cast<uint8_t>(byte))));
    }
  }
  return ids;
}

TEST(SentencePiece, RandomVocabularies_FollowTheDefinitionAndRoundTrip) {
  for (uint64_t seed = 0; seed < 120; ++seed) {
    std::mt19937_64 random(seed);
    SpmVocabulary v = letters();
    v.add_space_prefix = false;
    for (int i = 0; i < 60; ++i) {
      const size_t first = 259, count = v.tokens.size() - first;
      const std::string joined = v.tokens[first + random() % count] + v.tokens[first + random() % count];
      if (joined.size() < 40 && std::find(v.tokens.begin(), v.tokens.end(), joined) == v.tokens.end()) {
        v.word(joined, -static_cast<float>(random() % 40));  // with ties
      }
    }
    const auto t = v.made();
    for (int round = 0; round < 60; ++round) {
      std::string text;
      for (size_t i = 0, size = random() % 70; i < size; ++i) {
        text += random() % 20 == 0 ? std::string("\u20AC\xFF") : std::string(1, " abclohe"[random() % 8]);
      }
      const Ids ids = t->encode(text, false, false);
      ASSERT_EQ(ids, by_definition(v, *t, text)) << "seed " << seed << " " << testing::PrintToString(text);
      ASSERT_EQ(t->decode(ids, false), text);
    }
  }
}

}  // namespace
}  // namespace motley
