#include "text/unigram_tokenizer.hpp"

#include <gtest/gtest.h>

#include "text/charsmap_testing.hpp"
#include "text/vocabulary_testing.hpp"

namespace motley {
namespace {

using Ids = std::vector<TokenId>;

TestVocabulary small() {
  TestVocabulary made;
  made.model = "t5";
  made.pre = "";
  for (const auto& [token, type] : std::initializer_list<std::pair<const char*, int32_t>>{{"<pad>", 3},
                                                                                          {"</s>", 3},
                                                                                          {"<unk>", 2},
                                                                                          {"\u2581", 1},
                                                                                          {"a", 1},
                                                                                          {"b", 1},
                                                                                          {"\u2581ab", 1},
                                                                                          {"\u2581a", 1}}) {
    made.add(token, type);
  }
  made.scores = {0, 0, 0, -2, -3, -3, -1, -2};
  made.eos = 1;
  made.unknown = 2;
  made.add_eos = true;
  return made;
}

std::unique_ptr<Tokenizer> made(const TestVocabulary& vocabulary) {
  auto result = vocabulary.create();
  CHECK(result.ok(), "{}", result.error().message());
  return *std::move(result);
}

TEST(UnigramTokenizer, Text_TakesTheBestSumBehindAMark) {
  const auto t = made(small());
  EXPECT_EQ(t->encode("ab a", true, true), (Ids{6, 7, 1}));
  EXPECT_EQ(t->encode("azzb", false, true), (Ids{7, 2, 5}));
  EXPECT_EQ(t->encode("ab</s>ab", false, true), (Ids{6, 1, 6}));
  EXPECT_EQ(t->encode_more("ab", Place::kInText, true), (Ids{4, 5}));
  EXPECT_EQ(t->encode("", true, true), Ids{1});
  EXPECT_EQ(t->decode(Ids{6, 7, 1}, false), "ab a");
  EXPECT_EQ(t->encode("  a  ", false, true), (Ids{3, 3, 7, 3, 3}));
}

TEST(UnigramTokenizer, ExtraSpaces_GoWhereTheVocabularyAsks) {
  TestVocabulary vocabulary = small();
  vocabulary.remove_extra_whitespaces = true;
  const auto t = made(vocabulary);
  EXPECT_EQ(t->encode("  ab   a  ", false, true), (Ids{6, 7}));
  EXPECT_EQ(t->encode("   ", false, true), Ids{});
  EXPECT_EQ(t->encode_more(" ab", Place::kInText, true), Ids{6});
  vocabulary.add_space_prefix = false;
  EXPECT_EQ(made(vocabulary)->encode(" ab  a", false, true), (Ids{4, 5, 7}));
}

TEST(UnigramTokenizer, Charsmap_ReplacesTheLongestFirst) {
  TestVocabulary vocabulary = small();
  vocabulary.precompiled_charsmap = charsmap_of({{"x", "b"}, {"xx", "ab"}, {"\t", " "}, {"\u200B", ""}});
  const auto t = made(vocabulary);
  EXPECT_EQ(t->encode("xx", false, true), Ids{6});
  EXPECT_EQ(t->encode("xxx", false, true), (Ids{6, 5}));
  EXPECT_EQ(t->encode("ab\tab\u200B", false, true), (Ids{6, 6}));
  EXPECT_EQ(t->encode("\u200B", false, true), Ids{});
}

TEST(UnigramTokenizer, DamagedData_IsRefusedWithItsKey) {
  TestVocabulary without_scores = small(), bad_charsmap = small();
  without_scores.scores.clear();
  bad_charsmap.precompiled_charsmap = "abc";
  const std::pair<TestVocabulary, const char*> cases[] = {{without_scores, "tokenizer.ggml.scores"},
                                                          {bad_charsmap, "tokenizer.ggml.precompiled_charsmap"}};
  for (const auto& [vocabulary, word] : cases) {
    const auto result = vocabulary.create();
    ASSERT_FALSE(result.ok()) << word;
    EXPECT_EQ(result.error().code(), MOTLEY_INVALID_ARGUMENT);
    EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().message();
  }
}

}  // namespace
}  // namespace motley
