#include "client/prompts.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "server/testing/byte_tokenizer.hpp"

namespace motley::client {
namespace {

using ::testing::HasSubstr;

// Two letters a token where two of a kind stand together: texts come back with other tokens.
class PairVocabulary final : public Vocabulary {
 public:
  Result<std::vector<TokenId>> encode(std::string_view text) override {
    std::vector<TokenId> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      const bool pair = i + 1 < text.size() && text[i] == text[i + 1];
      ids.push_back(text[i] + (pair ? 128 : 0));
      i += pair ? 1 : 0;
    }
    return ids;
  }
  Result<std::string> decode(std::span<const TokenId> ids) override {
    std::string text;
    for (const TokenId id : ids) text += std::string(id < 128 ? 1 : 2, static_cast<char>(id % 128));
    return text;
  }
  Result<std::vector<TokenId>> plain_tokens() override { return std::vector<TokenId>{'a', 'b', 'c'}; }
};

class BrokenVocabulary final : public Vocabulary {
 public:
  Result<std::vector<TokenId>> encode(std::string_view) override { return error(MOTLEY_UNAVAILABLE, "gone"); }
  Result<std::string> decode(std::span<const TokenId>) override { return error(MOTLEY_UNAVAILABLE, "gone"); }
  Result<std::vector<TokenId>> plain_tokens() override { return std::vector<TokenId>{1}; }
};

class PromptFiles : public ::testing::Test {
 protected:
  std::string write(std::string_view text) const {
    const auto path = std::filesystem::path(::testing::TempDir()) / "prompts_test.json";
    std::ofstream(path) << text;
    return path.string();
  }
};

RandomOptions lengths(uint32_t input, uint32_t output, double ratio = 0, uint32_t prefix = 0) {
  RandomOptions options;
  options.input_len = input;
  options.output_len = output;
  options.range_ratio = ratio;
  options.prefix_len = prefix;
  return options;
}

TEST(RandomPrompts, Lengths_AreAsAskedFor) {
  PairVocabulary vocabulary;
  const auto prompts = random_prompts(lengths(20, 7, 0, 5), 50, false, 1, vocabulary);
  ASSERT_TRUE(prompts.ok()) << prompts.error().message();
  ASSERT_EQ(prompts->size(), 50u);
  std::set<std::vector<TokenId>> different;
  for (const Prompt& prompt : *prompts) {
    EXPECT_EQ(prompt.ids.size(), 25u);
    EXPECT_EQ(prompt.tokens, 25u);
    EXPECT_EQ(prompt.output_tokens, 7u);
    EXPECT_TRUE(prompt.text.empty());
    EXPECT_TRUE(std::equal(prompt.ids.begin(), prompt.ids.begin() + 5, prompts->front().ids.begin()));
    different.insert(prompt.ids);
  }
  EXPECT_EQ(different.size(), 50u);
}

TEST(RandomPrompts, RangeRatio_SpreadsBothLengths) {
  PairVocabulary vocabulary;
  const auto prompts = random_prompts(lengths(10, 5, 0.5), 500, false, 1, vocabulary);
  ASSERT_TRUE(prompts.ok());
  std::set<uint64_t> inputs, outputs;
  for (const Prompt& prompt : *prompts) {
    inputs.insert(prompt.tokens);
    outputs.insert(prompt.output_tokens);
  }
  EXPECT_EQ(inputs, (std::set<uint64_t>{5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(outputs, (std::set<uint64_t>{2, 3, 4, 5, 6, 7, 8}));  // floor(2.5), ceil(7.5)
}

TEST(RandomPrompts, SameSeed_GivesTheSamePrompts) {
  PairVocabulary vocabulary;
  const auto ids = [&](uint64_t seed) {
    return random_prompts(lengths(20, 7), 1, false, seed, vocabulary)->front().ids;
  };
  EXPECT_EQ(ids(1), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST(RandomPrompts, Texts_AreMadeAsManyTokensOf) {
  PairVocabulary vocabulary;
  const auto prompts = random_prompts(lengths(40, 7), 20, true, 1, vocabulary);
  ASSERT_TRUE(prompts.ok()) << prompts.error().message();
  int exact = 0;
  for (const Prompt& prompt : *prompts) {
    EXPECT_TRUE(prompt.ids.empty());
    EXPECT_EQ(prompt.tokens, vocabulary.encode(prompt.text)->size());
    EXPECT_NEAR(static_cast<double>(prompt.tokens), 40, 2);
    exact += prompt.tokens == 40;
  }
  EXPECT_GE(exact, 15);
}

TEST(RandomPrompts, LocalVocabulary_DrawsNoControlTokens) {
  const motley::testing::ByteTokenizer tokenizer;
  const auto vocabulary = local_vocabulary(tokenizer);
  EXPECT_EQ(vocabulary->plain_tokens()->size(), 256u);
  EXPECT_EQ(*vocabulary->decode(std::vector<TokenId>{'a', 0xC3, 'b', 0xC3, 0xA9}),
            "a\xEF\xBF\xBD"
            "b\xC3\xA9");
  EXPECT_EQ(vocabulary->encode("<|end|>")->front(), motley::testing::ByteTokenizer::kEnd);
}

TEST(RandomPrompts, WhatCannotBe_IsRefused) {
  PairVocabulary vocabulary;
  for (const RandomOptions& options : {lengths(0, 1), lengths(1, 0), lengths(1, 1, 1), lengths(1, 1, -0.1),
                                       lengths(UINT32_MAX, 1), lengths(1, 1, 0, UINT32_MAX)}) {
    EXPECT_EQ(random_prompts(options, 100, false, 1, vocabulary).error().code(), MOTLEY_INVALID_ARGUMENT);
  }
  BrokenVocabulary broken;
  EXPECT_EQ(random_prompts(lengths(1, 1), 1, true, 1, broken).error().code(), MOTLEY_UNAVAILABLE);
}

TEST(ShareGpt, FirstTwoTurns_AreTaken) {
  const auto entries = parse_sharegpt(R"([
    {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}, {"value": 7}]},
    {"id": "short", "conversations": [{"value": "q"}]}, {"id": "none"}, {"conversations": []},
    {"conversations": [{"value": "h\u00e9"}, {"value": ""}]}])",
                                      "f.json");
  ASSERT_TRUE(entries.ok()) << entries.error().message();
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].prompt, "q");
  EXPECT_EQ((*entries)[0].answer, "r");
  EXPECT_EQ((*entries)[1].prompt, "h\xC3\xA9");
}

TEST(ShareGpt, BadFiles_AreRefusedByName) {
  const std::string good = R"({"conversations":[{"value":"q"},{"value":"r"}]})";
  const std::pair<std::string, std::string> cases[] = {
      {"", "f.json: not JSON, after entry 0"},
      {"{}", "f.json is no JSON array"},
      {"7", "f.json is no JSON array"},
      {"[" + good + ", 7]", "f.json: entry 1 is no object"},
      {"[[]]", "f.json: entry 0 is no object"},
      {"[" + good + ",", "f.json: not JSON, after entry 1"},
      {"[" + good + "] x", "f.json: not JSON, after entry 1"},
      {R"([{"conversations": 7}])", "f.json: entry 0: conversations is no array"},
      {R"([{"conversations": [{"value": "q"}, {"value": 7}]}])", "entry 0: conversations[1].value is no string"},
      {R"([{"conversations": ["q", "r"]}])", "entry 0: conversations[0].value is no string"},
      {"[{\"conversations\": [{\"value\": \"\xff\"}, {\"value\": \"\"}]}]", "f.json: not JSON, after entry 0"},
      {std::string(100'000, '['), "f.json: not JSON"},
  };
  for (const auto& [text, says] : cases) {
    const auto entries = parse_sharegpt(text, "f.json");
    ASSERT_FALSE(entries.ok()) << text.substr(0, 80);
    EXPECT_EQ(entries.error().code(), MOTLEY_INVALID_ARGUMENT);
    EXPECT_THAT(entries.error().message(), HasSubstr(says));
  }
}

TEST(Custom, Lines_AreRead) {
  const auto entries = parse_custom(
      "{\"prompt\": \"a\"}\r\n\n  \n{\"prompt\": \"b\", \"output_tokens\": 5, \"x\": []}\n"
      "{\"prompt\": \"c\", \"output_tokens\": null}",
      "f.jsonl");
  ASSERT_TRUE(entries.ok()) << entries.error().message();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].prompt, "a");
  EXPECT_FALSE((*entries)[0].output_tokens);
  EXPECT_EQ((*entries)[1].output_tokens, 5u);
  EXPECT_FALSE((*entries)[2].output_tokens);
}

TEST(Custom, BadLines_AreRefusedByNumber) {
  const std::pair<std::string, std::string> cases[] = {
      {"{\"prompt\": \"a\"}\n{\"prompt\": ", "f.jsonl:2: not a JSON object"},
      {"[]", "f.jsonl:1: not a JSON object"},
      {"\n\n{}", "f.jsonl:3: prompt is no string, or empty"},
      {"{\"prompt\": \"\"}", "f.jsonl:1: prompt is no string, or empty"},
      {"{\"prompt\": [1]}", "f.jsonl:1: prompt is no string, or empty"},
      {"{\"prompt\": \"a\", \"output_tokens\": 0}", "f.jsonl:1: output_tokens is no whole number from 1"},
      {"{\"prompt\": \"a\", \"output_tokens\": -1}", "f.jsonl:1: output_tokens"},
      {"{\"prompt\": \"a\", \"output_tokens\": 1.5}", "f.jsonl:1: output_tokens"},
      {"{\"prompt\": \"a\", \"output_tokens\": 4294967296}", "f.jsonl:1: output_tokens"},
      {"{\"prompt\": \"\xff\"}", "f.jsonl:1: not a JSON object"},
  };
  for (const auto& [text, says] : cases) {
    const auto entries = parse_custom(text, "f.jsonl");
    ASSERT_FALSE(entries.ok()) << text;
    EXPECT_EQ(entries.error().code(), MOTLEY_INVALID_ARGUMENT);
    EXPECT_THAT(entries.error().message(), HasSubstr(says));
  }
}

std::vector<std::string> texts_of(const std::vector<Prompt>& prompts) {
  std::vector<std::string> texts;
  for (const Prompt& prompt : prompts) texts.push_back(prompt.text);
  return texts;
}

TEST_F(PromptFiles, CustomFile_IsShuffledAndSentAgain) {
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "{\"prompt\": \"p" + std::to_string(i) + "\", \"output_tokens\": 3}\n";
  FileOptions options;
  options.path = write(lines);
  options.shuffle = false;
  const auto ordered = file_prompts(options, 5, 1, nullptr);
  ASSERT_TRUE(ordered.ok()) << ordered.error().message();
  EXPECT_EQ(texts_of(*ordered), (std::vector<std::string>{"p0", "p1", "p2", "p3", "p4"}));
  EXPECT_EQ((*ordered)[0].output_tokens, 3u);
  options.shuffle = true;
  EXPECT_NE(texts_of(*file_prompts(options, 20, 1, nullptr)), texts_of(*file_prompts(options, 20, 2, nullptr)));
  EXPECT_EQ(texts_of(*file_prompts(options, 20, 1, nullptr)), texts_of(*file_prompts(options, 20, 1, nullptr)));
  EXPECT_EQ(file_prompts(options, 50, 1, nullptr)->size(), 50u);
  options.oversample = false;
  options.output_len = 9;
  const auto few = file_prompts(options, 50, 1, nullptr);
  EXPECT_EQ(few->size(), 20u);
  EXPECT_EQ(few->front().output_tokens, 9u);
}

TEST_F(PromptFiles, ShareGptFile_IsFilteredByLength) {
  const auto pair = [](size_t prompt, size_t answer) {
    std::string text;  // no two letters of a kind together: a token each
    for (size_t i = 0; i < std::max(prompt, answer); ++i) text += static_cast<char>('a' + i % 2);
    return "{\"conversations\": [{\"value\": \"" + text.substr(0, prompt) + "\"}, {\"value\": \"" +
           text.substr(0, answer) + "\"}]}";
  };
  FileOptions options;
  options.kind = DatasetKind::kShareGpt;
  options.path = write("[" + pair(3, 10) + "," + pair(10, 3) + "," + pair(1025, 10) + "," + pair(1000, 1049) + "," +
                       pair(1024, 1024) + "," + pair(4, 6) + "]");
  options.shuffle = options.oversample = false;
  PairVocabulary vocabulary;
  const auto prompts = file_prompts(options, 10, 1, &vocabulary);
  ASSERT_TRUE(prompts.ok()) << prompts.error().message();
  ASSERT_EQ(prompts->size(), 2u);
  EXPECT_EQ((*prompts)[0].tokens, 1024u);
  EXPECT_EQ((*prompts)[0].output_tokens, 1024u);
  EXPECT_EQ((*prompts)[1].tokens, 4u);
  EXPECT_EQ((*prompts)[1].output_tokens, 6u);
  options.output_len = 1;  // how long the file's answer is no longer counts
  EXPECT_EQ(file_prompts(options, 10, 1, &vocabulary)->size(), 4u);
  BrokenVocabulary broken;
  EXPECT_EQ(file_prompts(options, 10, 1, &broken).error().code(), MOTLEY_UNAVAILABLE);
}

TEST_F(PromptFiles, FileWithoutAPrompt_IsRefused) {
  FileOptions options;
  options.path = write("\n");
  EXPECT_THAT(file_prompts(options, 1, 1, nullptr).error().message(), HasSubstr("no prompt in it can be used"));
  options.path = "/nonexistent/file";
  EXPECT_EQ(file_prompts(options, 1, 1, nullptr).error().code(), MOTLEY_NOT_FOUND);
}

}  // namespace
}  // namespace motley::client
