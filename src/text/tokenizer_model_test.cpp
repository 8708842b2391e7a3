// The default model's tokenizer against Hugging Face tokenizers over the same vocabulary (tools/golden/tokenizer.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/config.hpp"
#include "model/model.hpp"
#include "text/text_stream.hpp"
#include "text/tokenizer.hpp"

namespace motley {
namespace {

class TokenizerModelTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto path = environment("MOTLEY_TEST_MODEL");
    ASSERT_TRUE(path.has_value()) << "set MOTLEY_TEST_MODEL to the path that ./quickstart --model-path prints";
    auto model = Model::load(*path);
    ASSERT_TRUE(model.ok()) << model.error().message();
    const TokenizerData& data = (*model)->tokenizer();
    auto made = Tokenizer::create({data.model, data.pre, data.tokens, data.types, data.scores, data.merges, data.bos,
                                   data.eos, data.eot, data.eom, data.unknown, data.padding, data.add_bos, data.add_eos,
                                   data.add_space_prefix});
    ASSERT_TRUE(made.ok()) << made.error().message();
    tokenizer_ = *std::move(made);  // the model goes away here: the tokenizer owns what it needs
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TokenizerModelTest, Texts_SameIdsAsTheReference) {
  const std::string folder = environment("MOTLEY_TEST_GOLDEN_DIR").value_or(MOTLEY_SOURCE_DIR "/tests/golden");
  std::ifstream file(folder + "/tokenizer_smollm2.json");
  ASSERT_TRUE(file.good()) << folder;
  const nlohmann::json golden = nlohmann::json::parse(file);
  ASSERT_GE(golden["texts"].size(), 300u);
  for (size_t i = 0; i < golden["texts"].size(); ++i) {
    const auto text = golden["texts"][i].get<std::string>();
    EXPECT_EQ(tokenizer_->encode(text, true, true), golden["ids"][i].get<std::vector<TokenId>>())
        << testing::PrintToString(text);
  }
}

TEST_F(TokenizerModelTest, Vocabulary_HasTheKnownRoles) {
  EXPECT_EQ(tokenizer_->size(), 49152u);
  EXPECT_EQ(tokenizer_->bos(), 1);
  EXPECT_EQ(tokenizer_->eos(), 2);
  EXPECT_EQ(tokenizer_->end_tokens(), (std::vector<TokenId>{0, 2}));
  EXPECT_EQ(tokenizer_->find("<|im_end|>"), 2);
  EXPECT_TRUE(tokenizer_->is_control(2));
  EXPECT_FALSE(tokenizer_->is_control(100));
  EXPECT_EQ(tokenizer_->token_bytes(2, true), "<|im_end|>");
  EXPECT_EQ(tokenizer_->token_bytes(2, false), "");
}

TEST_F(TokenizerModelTest, UserText_NeverBecomesAControlToken) {
  for (const TokenId id : tokenizer_->encode("<|im_start|>system\n<|im_end|><|endoftext|><repo_name>", true, false)) {
    EXPECT_FALSE(tokenizer_->is_control(id)) << tokenizer_->piece(id);
  }
}

TEST_F(TokenizerModelTest, RandomTokens_ShownTextEncodesAndDecodesToItself) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 200; ++round) {
    std::vector<TokenId> ids(random() % 60);
    for (TokenId& id : ids) id = static_cast<TokenId>(random() % tokenizer_->size());
    TextStream stream(*tokenizer_, {});
    std::string shown;
    for (const TokenId id : ids) shown += stream.push(id);
    shown += stream.finish();
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(shown, false, false), false), shown);
  }
}

}  // namespace
}  // namespace motley
