// Against Hugging Face tokenizers: small vocabularies and the ids of many texts, made by tools/golden/tokenizer.py.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/config.hpp"
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

TEST(TokenizerGolden, Families_SameIdsAndTextAsTheReference) {
  const nlohmann::json file = golden("tokenizer_families.json");
  const auto texts = file["texts"].get<std::vector<std::string>>();
  ASSERT_GE(texts.size(), 60u);
  ASSERT_GE(file["families"].size(), 21u);
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
