// Against Hugging Face tokenizers: small vocabularies and the ids of many texts, made by tools/golden/tokenizer.py.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/config.hpp"
#include "text/pre_tokenize_steps.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/text_stream.hpp"
#include "text/tokenizer_families_testing.hpp"
#include "text/vocabulary_testing.hpp"

namespace motley {
namespace {

nlohmann::json golden(const std::string& name) {
  const std::string folder = environment("MOTLEY_TEST_GOLDEN_DIR").value_or(MOTLEY_SOURCE_DIR "/tests/golden");
  std::ifstream file(folder + "/" + name);
  CHECK(file.good(), "cannot read {}/{}", folder, name);
  return nlohmann::json::parse(file);
}

TEST(TokenizerGolden, PublishedPreTokenizers_SameIdsAsTheReference) {
  const nlohmann::json file = golden("tokenizer_synthetic.json");
  const auto texts = file["texts"].get<std::vector<std::string>>();
  ASSERT_GE(texts.size(), 100u);
  ASSERT_EQ(file["tokenizers"].size(), 3u);
  for (const auto& entry : file["tokenizers"]) {
    TestVocabulary vocabulary;
    vocabulary.pre = entry["pre"].get<std::string>();
    vocabulary.tokens = entry["tokens"].get<std::vector<std::string>>();
    vocabulary.types = entry["types"].get<std::vector<int32_t>>();
    vocabulary.merges = entry["merges"].get<std::vector<std::string>>();
    const auto tokenizer = vocabulary.create();
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ((*tokenizer)->encode(texts[i], false, true), entry["ids"][i].get<std::vector<TokenId>>())
          << vocabulary.pre << ": " << testing::PrintToString(texts[i]);
      EXPECT_EQ((*tokenizer)->encode(texts[i], false, false), entry["plain_ids"][i].get<std::vector<TokenId>>())
          << vocabulary.pre << ", plain: " << testing::PrintToString(texts[i]);
    }
  }
}

TEST(TokenizerGolden, WordsOfGgufNames_CutWhereTheReferenceCuts) {
  const nlohmann::json file = golden("tokenizer_words.json");
  const auto texts = file["texts"].get<std::vector<std::string>>();
  ASSERT_GE(texts.size(), 60u);
  ASSERT_GE(file["names"].size(), 12u);
  PreTokenizeStep::Scratch scratch;
  for (const auto& entry : file["names"]) {
    const auto name = entry["pre"].get<std::string>();
    const PreTokenizer* pre = find_pre_tokenizer(name);
    ASSERT_NE(pre, nullptr) << name;
    const auto steps = PreTokenizeSteps::create(pre->patterns);
    ASSERT_TRUE(steps.ok()) << name << ": " << steps.error().message();
    size_t wrong = 0;
    std::string first;
    for (size_t i = 0; i < texts.size(); ++i) {
      steps->apply(texts[i], Place::kStart, scratch);
      std::vector<size_t> words;
      for (const TextPiece& piece : scratch.pieces) {
        if (!piece.text.empty()) words.push_back(piece.text.size());
      }
      const auto expected = entry["words"][i].get<std::vector<size_t>>();
      if (words == expected || wrong++ > 0) continue;
      first = testing::PrintToString(texts[i]) + "\n got " + testing::PrintToString(words) + "\nwant " +
              testing::PrintToString(expected);
    }
    EXPECT_EQ(wrong, 0u) << name << ", of " << texts.size() << " texts, first " << first;
  }
}

TEST(TokenizerGolden, Families_SameIdsAndTextAsTheReference) {
  const nlohmann::json file = golden("tokenizer_families.json");
  const auto texts = file["texts"].get<std::vector<std::string>>();
  ASSERT_GE(texts.size(), 60u);
  ASSERT_GE(file["families"].size(), 27u);
  for (const auto& family : file["families"]) {
    const auto name = family["name"].get<std::string>();
    const auto made = tokenizer_of_family(family);
    ASSERT_TRUE(made.ok()) << name << ": " << made.error().message();
    const auto& tokenizer = *made;
    size_t wrong_ids = 0, wrong_texts = 0;
    std::string first;
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto ids = family["ids"][i].get<std::vector<TokenId>>();
      const auto got = tokenizer->encode(texts[i], true, true);
      TextStream stream(*tokenizer, {.stop = {}, .starts_text = true});
      std::string shown;
      for (const TokenId id : ids) shown += stream.push(id);
      shown += stream.finish();
      const nlohmann::json& expected = family["shown"][i];
      const std::string text = expected.is_null() ? texts[i] : expected.get<std::string>();
      const bool same_ids = got == ids, same_text = shown == text;
      wrong_ids += same_ids ? 0 : 1;
      wrong_texts += same_text ? 0 : 1;
      if ((same_ids && same_text) || !first.empty()) continue;
      first = testing::PrintToString(texts[i]) + "\n got " + testing::PrintToString(got) + "\nwant " +
              testing::PrintToString(ids) + "\nshown " + testing::PrintToString(shown) + "\n want " +
              testing::PrintToString(text);
    }
    EXPECT_EQ(wrong_ids, 0u) << name << ", of " << texts.size() << " texts, first " << first;
    EXPECT_EQ(wrong_texts, 0u) << name << ", of " << texts.size() << " texts, first " << first;
  }
}

}  // namespace
}  // namespace motley
