#include "text/tokenizer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "text/bpe_tokenizer.hpp"
#include "text/normalize.hpp"
#include "text/vocabulary.hpp"
#include "text/vocabulary_testing.hpp"

namespace motley {
namespace {

using Ids = std::vector<TokenId>;

struct Roles {
  TokenId hello, control, user, user_longer, unknown, unused;
};

TestVocabulary small(Roles* roles = nullptr) {
  TestVocabulary v = TestVocabulary::bytes();
  v.merge("l", "l");
  v.merge("h", "e");
  v.merge("he", "ll");
  Roles r{};
  r.hello = v.merge("hell", "o");
  v.merge("Ġ", "hello");
  r.control = v.add("<|im_end|>", 3);
  r.user = v.add("<t>", 4);
  r.user_longer = v.add("<t>x", 4);
  r.unknown = v.add("<unk>", 2);
  r.unused = v.add("<pad7>", 5);
  v.eos = r.control;
  if (roles != nullptr) *roles = r;
  return v;
}

std::unique_ptr<Tokenizer> made(const TestVocabulary& v) {
  auto result = v.create();
  CHECK(result.ok(), "{}", result.error().message());
  return *std::move(result);
}

void expect_refused(const TestVocabulary& v, Code code, std::string_view word) {
  const auto result = v.create();
  ASSERT_FALSE(result.ok()) << word;
  EXPECT_EQ(result.error().code(), code) << result.error().message();
  EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().message();
  EXPECT_EQ(result.error().message().find('\n'), std::string::npos);
}

TEST(Tokenizer, Words_MergeByRank) {
  Roles r;
  const auto t = made(small(&r));
  EXPECT_EQ(t->encode("hello", true, true), Ids{r.hello});
  EXPECT_EQ(t->encode("hello hello", true, true), (Ids{r.hello, *t->find("Ġhello")}));
  EXPECT_EQ(t->encode("hellhe", true, true), (Ids{*t->find("hell"), *t->find("he")}));
  EXPECT_EQ(t->encode("", true, true), Ids{});
  EXPECT_EQ(t->token_bytes(*t->find("Ġhello"), false), " hello");
}

TEST(Tokenizer, ControlText_BecomesTheTokenOnlyWhenTrusted) {
  Roles r;
  const auto t = made(small(&r));
  EXPECT_EQ(t->encode("hello<|im_end|>", false, true), (Ids{r.hello, r.control}));
  for (const TokenId id : t->encode("hello<|im_end|><unk>", false, false)) EXPECT_FALSE(t->is_control(id));
  EXPECT_EQ(t->encode("<t><t>x<t", false, false)[0], r.user);
  EXPECT_EQ(t->encode("<t><t>x<t", false, false)[1], r.user_longer);
  EXPECT_EQ(t->encode("<t><t>x<t", false, false).size(), 4u);
}

TEST(Tokenizer, Decode_HidesControlAndUnusedTokens) {
  Roles r;
  const auto t = made(small(&r));
  const Ids ids{r.hello, r.control, r.user, r.unknown, r.unused, -1, 1 << 30};
  EXPECT_EQ(t->decode(ids, false), "hello<t>");
  EXPECT_EQ(t->decode(ids, true), "hello<|im_end|><t><unk>");
  EXPECT_EQ(t->piece(-1), "");
  EXPECT_EQ(t->piece(r.control), "<|im_end|>");
  EXPECT_FALSE(t->is_control(1 << 30));
}

TEST(Tokenizer, MergeThatMakesAControlToken_IsNeverApplied) {
  TestVocabulary v = TestVocabulary::bytes();
  v.merge("a", "b");
  v.types.back() = 3;
  const auto t = made(v);
  EXPECT_EQ(t->encode("ab", false, false).size(), 2u);
  EXPECT_EQ(t->encode("ab", false, true).size(), 1u);
}

TEST(Tokenizer, BosAndEos_FollowTheFileThenThePreTokeniser) {
  struct Case {
    const char* pre;
    std::optional<bool> add_bos, add_eos;
    Ids expected;
  };
  const TokenId a = static_cast<TokenId>('a'), bos = 256, eos = 257;
  const Case cases[] = {
      {"gpt-2", {}, {}, {a}}, {"llama-bpe", {}, {}, {bos, a}},       {"llama3", false, {}, {a}},
      {"qwen2", {}, {}, {a}}, {"smollm", true, true, {bos, a, eos}}, {"smollm", {}, true, {a, eos}},
  };
  for (const Case& c : cases) {
    TestVocabulary v = TestVocabulary::bytes();
    v.bos = v.add("<s>", 3);
    v.eos = v.add("</s>", 3);
    v.pre = c.pre;
    v.add_bos = c.add_bos;
    v.add_eos = c.add_eos;
    EXPECT_EQ(made(v)->encode("a", true, true), c.expected) << c.pre;
    EXPECT_EQ(made(v)->encode("a", false, true), Ids{a}) << c.pre;
  }
}

TEST(Tokenizer, EndTokens_AreTheRolesAndTheKnownNames) {
  TestVocabulary v = TestVocabulary::bytes();
  const TokenId im_end = v.add("<|im_end|>", 3), text = v.add("<|endoftext|>", 3), user = v.add("<|eot_id|>", 4);
  const TokenId other = v.add("stop-here", 3);
  v.add("</s>", 1);  // an ordinary word in this vocabulary
  v.eom = other;
  v.eos = im_end;
  EXPECT_EQ(made(v)->end_tokens(), (Ids{im_end, text, user, other}));
}

TEST(Tokenizer, IgnoreMerges_TakesKnownWordsWhole) {
  for (const auto& [pre, size] : {std::pair("llama-bpe", 1u), std::pair("qwen2", 3u)}) {
    TestVocabulary v = TestVocabulary::bytes();
    v.add("xyz", 1);
    v.pre = pre;
    EXPECT_EQ(made(v)->encode("xyz", false, false).size(), size) << pre;
  }
}

TEST(Tokenizer, MissingByte_GivesNothingAndItsNeighboursMeet) {
  TestVocabulary v = TestVocabulary::bytes();
  const TokenId ab = v.merge("a", "b");
  v.tokens['q'] = "gone";
  EXPECT_EQ(made(v)->encode("aqb", false, false), Ids{ab});
  EXPECT_EQ(made(v)->encode("q", false, false), Ids{});
}

TEST(Tokenizer, ByteTokens_StandForTheirByte) {
  TestVocabulary v = TestVocabulary::bytes();
  v.tokens.erase(v.tokens.begin() + 'q');
  v.types.erase(v.types.begin() + 'q');
  const TokenId q = v.add("<0x71>", 6);
  EXPECT_EQ(made(v)->encode("q", false, false), Ids{q});
  EXPECT_EQ(made(v)->token_bytes(q, false), "q");
  v.tokens.back() = "<0xzz>";
  expect_refused(v, MOTLEY_INVALID_ARGUMENT, "<0xHH>");
}

TEST(Tokenizer, UnknownFamilies_AreNamed) {
  TestVocabulary v = small();
  v.model = "rwkv";
  expect_refused(v, MOTLEY_UNIMPLEMENTED, "'rwkv'");
  v = small();
  v.pre = "bloom\n";
  expect_refused(v, MOTLEY_UNIMPLEMENTED, "'bloom\\x0a'");
  v.pre = "";
  expect_refused(v, MOTLEY_UNIMPLEMENTED, "tokenizer.ggml.pre");
}

TEST(Tokenizer, ContradictoryData_IsRefusedWithItsPlace) {
  const auto changed = [](auto change) {
    TestVocabulary v = small();
    change(v);
    return v;
  };
  using V = TestVocabulary;
  const std::pair<TestVocabulary, const char*> cases[] = {
      {changed([](V& v) { v.tokens.clear(), v.types.clear(); }), "tokens is empty"},
      {changed([](V& v) { v.types.pop_back(); }), "token_type has 265 entries for 266"},
      {changed([](V& v) { v.scores = {1.f}; }), "scores has 1"},
      {changed([](V& v) { v.types[3] = 9; }), "token 3 has the type 9"},
      {changed([](V& v) { v.types[3] = -1; }), "token 3 has the type -1"},
      {changed([](V& v) { v.tokens[5] = v.tokens[4]; }), "tokens 4 and 5"},
      {changed([](V& v) { v.tokens[5] = std::string(kTokenBytesMax + 1, 'x'); }), "token 5 is too long"},
      {changed([](V& v) { v.merges[1] = "nosuch e"; }), "merge 1 names 'nosuch'"},
      {changed([](V& v) { v.merges[1] = "h nosuch"; }), "merge 1 names 'nosuch'"},
      {changed([](V& v) { v.merges[1] = "h z"; }), "merge 1 names 'hz'"},
      {changed([](V& v) { v.merges[1] = "he"; }), "merge 1 is 'he'"},
      {changed([](V& v) { v.merges[1] = ""; }), "merge 1 is ''"},
      {changed([](V& v) { v.merges[1] = "h "; }), "merge 1 is 'h '"},
      {changed([](V& v) { v.merges[1] = v.merges[0]; }), "merge 1 ('l l') stands twice"},
      {changed([](V& v) { v.merges[1] = std::string(3 * kTokenBytesMax, 'x'); }), "merge 1 is too long"},
      {changed([](V& v) { v.bos = 266; }), "bos_token_id is 266"},
      {changed([](V& v) { v.eos = -1; }), "eos_token_id is -1"},
      {changed([](V& v) { v.padding = 1 << 30; }), "padding_token_id"},
      {changed([](V& v) { v.add_bos = true; }), "no tokenizer.ggml.bos_token_id"},
      {changed([](V& v) { v.add_eos = true, v.eos.reset(); }), "no tokenizer.ggml.eos_token_id"},
  };
  for (const auto& [vocabulary, word] : cases) expect_refused(vocabulary, MOTLEY_INVALID_ARGUMENT, word);
}

TEST(Tokenizer, EmptyTokens_MayRepeatAndMatchNothing) {
  TestVocabulary v = small();
  v.add("", 3);
  v.add("", 4);
  v.add("", 1);
  EXPECT_EQ(made(v)->encode("ab", false, true).size(), 2u);
}

// A vocabulary with merges over bytes of every kind, broken UTF-8 included.
TestVocabulary random_vocabulary(std::mt19937_64& random, const char* pre) {
  TestVocabulary v = TestVocabulary::bytes();
  v.pre = pre;
  for (int i = 0; i < 120; ++i) {
    const std::string left = v.tokens[random() % v.tokens.size()], right = v.tokens[random() % v.tokens.size()];
    if (std::find(v.tokens.begin(), v.tokens.end(), left + right) == v.tokens.end()) v.merge(left, right);
  }
  v.add("<|c|>", 3);
  v.add("<u>", 4);
  return v;
}

TEST(Tokenizer, RandomBytes_RoundTripAndHoldNoControlToken) {
  for (const char* pre : {"gpt-2", "smollm", "llama-bpe"}) {
    std::mt19937_64 random(3);
    const auto t = made(random_vocabulary(random, pre));
    const std::string_view pieces[] = {"<|c|>", "<u>", "<", "\xE2\x82", "\u20AC", "12", " ", "\n", "'s", "Zz"};
    for (int round = 0; round < 4000; ++round) {
      std::string text;
      for (size_t i = 0, count = random() % 20; i < count; ++i) {
        if (random() % 2 == 0) {
          text += static_cast<char>(random());
        } else {
          text += pieces[random() % std::size(pieces)];
        }
      }
      const Ids plain = t->encode(text, false, false), trusted = t->encode(text, false, true);
      ASSERT_EQ(t->decode(plain, false), text);
      ASSERT_EQ(t->decode(trusted, true), text);
      for (const TokenId id : plain) ASSERT_FALSE(t->is_control(id));
      ASSERT_EQ(t->encode(text, false, false), plain);  // what the first pass remembered changes nothing
    }
  }
}

TEST(Tokenizer, TextAroundALiteralToken_EncodesAsItsParts) {
  std::mt19937_64 random(9);
  const auto t = made(random_vocabulary(random, "gpt-2"));
  for (int round = 0; round < 2000; ++round) {
    std::string left(random() % 12, '\0'), right(random() % 12, '\0');
    for (char& c : left) c = static_cast<char>(random());
    for (char& c : right) c = static_cast<char>(random());
    Ids parts = t->encode(left, false, true);
    parts.push_back(*t->find("<|c|>"));
    for (const TokenId id : t->encode(right, false, true)) parts.push_back(id);
    ASSERT_EQ(t->encode(left + "<|c|>" + right, false, true), parts);
  }
}

TEST(Tokenizer, Qwen2_NormalisesToFormC) {
  TestVocabulary v = TestVocabulary::bytes();
  v.pre = "qwen2";
  const auto t = made(v);
  EXPECT_EQ(t->decode(t->encode("e\u0301\xFF"
                                "a\u030A!",
                                false, false),
                      false),
            "\u00E9\xFF\u00E5!");
  v.pre = "gpt-2";
  const auto plain = made(v);
  EXPECT_EQ(plain->decode(plain->encode("e\u0301", false, false), false), "e\u0301");
}

TEST(Normalize, SurelyNfc_IsNeverWrong) {
  std::mt19937_64 random(21);
  const std::string_view pieces[] = {"a",      "\u00E9", "\u0301", "\u3046", "\u3099", "\u30AB",
                                     "\u4E2D", "\uAC00", "\u11A8", "\u212B", "\u0958", "\xFF",
                                     "\u0323", "\uF900", "\u1100", "\u1161", "\u30FB", "\u0400"};
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (size_t i = 0, count = random() % 5; i < count; ++i) text += pieces[random() % std::size(pieces)];
    if (surely_nfc(text)) {
      ASSERT_EQ(to_nfc(text), text);
    }
    ASSERT_EQ(to_nfc(to_nfc(text)), to_nfc(text));
  }
}

TEST(Tokenizer, ManyThreads_SameIds) {
  std::mt19937_64 random(3);
  const auto t = made(random_vocabulary(random, "gpt-2"));
  std::string text(20000, '\0');
  for (char& c : text) c = "hello wrd\n1"[random() % 11];
  random.seed(3);
  const Ids expected = made(random_vocabulary(random, "gpt-2"))->encode(text, false, false);
  std::vector<Ids> got(4);
  std::vector<std::thread> threads;
  for (Ids& ids : got) threads.emplace_back([&] { ids = t->encode(text, false, false); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : got) EXPECT_EQ(ids, expected);
}

TEST(Tokenizer, HugeWord_IsNotQuadratic) {
  TestVocabulary v = TestVocabulary::bytes();
  v.merge("a", "a");
  v.merge("aa", "aa");
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(made(v)->encode(text, false, false).size(), text.size() / 4);
}

}  // namespace
}  // namespace motley
