// Against Hugging Face tokenizers: small vocabularies and the ids of many texts, made by tools/golden/tokenizer.py.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/config.hpp"
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

}  // namespace
}  // namespace motley
