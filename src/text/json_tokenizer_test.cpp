#include "text/json_tokenizer.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "text/text_stream.hpp"
#include "text/tokenizer_json.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<TokenId>;

Json added(int id, const char* content, bool special) {
  return {{"id", id},        {"content", content},  {"special", special},  {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"single_word", false}};
}

// Characters with merges; spaces are marks; <s> stands before texts.
Json small() {
  return Json::parse(R"({
    "added_tokens": [],
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"}]},
    "model": {"type": "BPE", "unk_token": "<unk>",
      "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "▁": 5, "ab": 6, "<0x0A>": 7, "▁ab": 8},
      "merges": ["a b", ["▁", "ab"]]}
  })");
}

Json with_roles() {
  Json file = small();
  file["added_tokens"] = {added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)};
  return file;
}

std::unique_ptr<Tokenizer> made(const Json& file, const std::string& config = "", Ids end = {}) {
  auto result = Tokenizer::create_from_json(file.dump(), config, end);
  CHECK(result.ok(), "{}", result.error().message());
  return *std::move(result);
}

void expect_refused(const std::string& file, const std::string& config, Code code, std::string_view word) {
  const auto result = Tokenizer::create_from_json(file, config, {});
  ASSERT_FALSE(result.ok()) << word;
  EXPECT_EQ(result.error().code(), code) << result.error().message();
  EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().message();
  EXPECT_EQ(result.error().message().find('\n'), std::string::npos);
}

TEST(JsonTokenizer, BothSpellingsOfMerges_Merge) {
  const auto t = made(with_roles());
  EXPECT_EQ(t->encode("ab ab", true, true), (Ids{1, 6, 8}));
  EXPECT_EQ(t->encode("ab ab", false, true), (Ids{6, 8}));
  EXPECT_EQ(t->encode("azb", false, true), (Ids{3, 0, 4}));
  EXPECT_EQ(t->decode(Ids{1, 6, 8}, false), "ab ab");
  EXPECT_EQ(t->decode(Ids{1, 6, 8}, true), "<s>ab ab");
  EXPECT_EQ(t->size(), 9u);
}

TEST(JsonTokenizer, ControlText_BecomesTheTokenOnlyWhenTrusted) {
  Json file = with_roles();
  file["added_tokens"].push_back(added(9, "<|tool|>", false));
  file["added_tokens"].push_back(added(10, "<word>", false));
  const auto t = made(file);
  EXPECT_EQ(t->encode("a</s><|tool|><word>", false, true), (Ids{3, 2, 9, 10}));
  for (const TokenId id : t->encode("a</s><|tool|><s>", false, false)) EXPECT_TRUE(!t->is_marker(id) || id == 0);
  EXPECT_EQ(t->encode("<word>", false, false), Ids{10});
  EXPECT_TRUE(t->is_control(2));
  EXPECT_TRUE(t->is_marker(9));
  EXPECT_FALSE(t->is_marker(10));
  EXPECT_TRUE(t->is_literal(10));
}

TEST(JsonTokenizer, Roles_ComeFromTheConfigAndTheCaller) {
  const auto t = made(with_roles(), R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})", {8});
  EXPECT_EQ(t->bos(), 1);
  EXPECT_EQ(t->eos(), 2);
  EXPECT_EQ(t->end_tokens(), (Ids{2, 8}));
  const auto bare = made(with_roles());
  EXPECT_EQ(bare->bos(), std::nullopt);
  EXPECT_EQ(bare->end_tokens(), Ids{2});  // by its name
}

TEST(JsonTokenizer, AddBosAndEos_OfTheConfigGoBeforeTheTemplate) {
  const char* roles = R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": %, "add_eos_token": %})";
  const auto ids = [&](const char* value) {
    std::string config = roles;
    for (size_t at; (at = config.find('%')) != config.npos;) config.replace(at, 1, value);
    return made(with_roles(), config)->encode("a", true, true);
  };
  EXPECT_EQ(ids("true"), (Ids{1, 3, 2}));
  EXPECT_EQ(ids("false"), (Ids{3}));
  EXPECT_EQ(ids("null"), (Ids{1, 3}));
  expect_refused(with_roles().dump(), R"({"add_bos_token": true})", MOTLEY_INVALID_ARGUMENT, "no bos_token");
}

TEST(JsonTokenizer, AddedTokens_StripAndStandAlone) {
  Json file = with_roles();
  file["added_tokens"].push_back(added(9, "<l>", true));
  file["added_tokens"].push_back(added(10, "<r>", true));
  file["added_tokens"].push_back(added(11, "ba", false));
  file["added_tokens"][3]["lstrip"] = true;
  file["added_tokens"][4]["rstrip"] = true;
  file["added_tokens"][5]["single_word"] = true;
  const auto t = made(file);
  EXPECT_EQ(t->encode("a \n<l> a", false, true), (Ids{3, 9, 5, 3}));
  EXPECT_EQ(t->encode("a <r>\t a", false, true), (Ids{3, 5, 10, 3}));
  EXPECT_EQ(t->encode("<r> <l>", false, true), (Ids{10, 9}));
  EXPECT_EQ(t->encode("ba", false, true), Ids{11});
  EXPECT_EQ(t->encode("aba", false, true), (Ids{6, 3}));
  EXPECT_EQ(t->encode("\u00E9ba", false, true), (Ids{0, 4, 3}));
}

// Looked for in normalised text, by what the normalizer makes of their spelling: here with the mark in front.
TEST(JsonTokenizer, NormalizedAddedTokens_AreFoundInNormalisedText) {
  Json file = with_roles();
  file["normalizer"] = Json::parse(R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Lowercase"}]})");
  const auto add = [&](Json token) {
    token["normalized"] = true;
    file["added_tokens"].push_back(token);
  };
  add(added(9, "<T>", true));
  add(added(10, "XX", false));
  const auto t = made(file);
  EXPECT_EQ(t->encode("<T>a", false, true), (Ids{9, 3}));
  EXPECT_EQ(t->encode("a <t>a", false, true), (Ids{5, 3, 9, 3}));
  EXPECT_EQ(t->encode("a<T>a", false, true), (Ids{5, 3, 0, 0, 0, 3}));
  EXPECT_EQ(t->encode("</s><T>a", false, true), (Ids{2, 9, 3}));
  EXPECT_EQ(t->encode("a xXa", false, true), (Ids{5, 3, 10, 3}));
  // Of text that nobody vouches for, control tokens do not come.
  EXPECT_EQ(t->encode("a xx", false, false), (Ids{5, 3, 10}));
  for (const TokenId id : t->encode("<T>", false, false)) EXPECT_NE(id, 9);
}

TEST(JsonTokenizer, MetaspaceDecoder_DropsTheMarksOfTheFirstToken) {
  Json file = with_roles();
  file["model"]["vocab"]["▁▁a▁b"] = 9;
  const auto texts = [&](const char* scheme, Ids ids) {
    file["decoder"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", true}};
    const auto t = made(file);
    TextStream stream(*t, {.stop = {}, .starts_text = true});
    std::string shown;
    for (const TokenId id : ids) shown += stream.push(id);
    EXPECT_EQ(shown + stream.finish(), t->decode(ids, false));
    return t->decode(ids, false);
  };
  EXPECT_EQ(texts("first", {9, 8}), "ab ab");
  EXPECT_EQ(texts("always", {1, 5, 8}), " ab");
  EXPECT_EQ(texts("always", {3, 8}), "a ab");
  EXPECT_EQ(texts("never", {9, 8}), "  a b ab");
}

TEST(JsonTokenizer, Precompiled_ReplacesByItsCharsmap) {
  Json file = with_roles();
  // Zero bytes of texts behind a trie of one unit that leads nowhere.
  const auto precompiled = [&](const char* encoded) {
    file["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", encoded}};
    return file.dump();
  };
  EXPECT_TRUE(Tokenizer::create_from_json(precompiled("BAAAAAAAAAA="), "", {}).ok());
  expect_refused(precompiled("B?"), "", MOTLEY_INVALID_ARGUMENT, "normalizer.precompiled_charsmap is not base64");
  expect_refused(precompiled("AAAA"), "", MOTLEY_INVALID_ARGUMENT, "is too short for a charsmap");
}

TEST(JsonTokenizer, Metaspace_PrefixesByPlace) {
  Json file = with_roles();
  file["normalizer"] = nullptr;
  const auto ids = [&](const char* scheme, std::string_view text, Place place) {
    file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", false}};
    return made(file)->encode_more(text, place, true);
  };
  EXPECT_EQ(ids("first", "ab</s>ab", Place::kStart), (Ids{8, 2, 6}));
  EXPECT_EQ(ids("always", "ab</s>ab", Place::kStart), (Ids{8, 2, 8}));
  EXPECT_EQ(ids("never", "ab</s>ab", Place::kStart), (Ids{6, 2, 6}));
  EXPECT_EQ(ids("first", "ab", Place::kAfterToken), Ids{6});
  EXPECT_EQ(ids("always", "ab", Place::kAfterToken), Ids{8});
  EXPECT_EQ(ids("always", "ab", Place::kInText), Ids{6});
  EXPECT_EQ(ids("always", " ab", Place::kStart), Ids{8});
}

TEST(JsonTokenizer, BrokenText_IsEncodedByteByByte) {
  Json file = with_roles();
  file["model"]["byte_fallback"] = true;
  file["model"]["vocab"]["<0xFF>"] = 9;
  const auto t = made(file);
  EXPECT_EQ(t->encode("a\xFF\n", false, true), (Ids{3, 9, 7}));
  EXPECT_EQ(t->decode(Ids{9, 7}, false), "\xFF\n");
}

TEST(JsonTokenizer, Unigram_TakesTheBestSum) {
  Json file = with_roles();
  file["normalizer"] = nullptr;
  file["model"] = Json::parse(R"({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["<s>", 0], ["</s>", 0],
    ["a", -3], ["b", -3], ["ab", -4.5], ["ba", -2], ["aba", -9], ["bab", -8]]})");
  const auto t = made(file);
  EXPECT_EQ(t->encode("ab", false, true), Ids{5});
  EXPECT_EQ(t->encode("aba", false, true), (Ids{3, 6}));
  EXPECT_EQ(t->encode("abab", false, true), (Ids{3, 6, 4}));
  EXPECT_EQ(t->encode("bxyb", false, true), (Ids{4, 0, 4}));
  EXPECT_EQ(t->encode("\xFF\xFE", false, true), Ids{0});
}

TEST(JsonTokenizer, WhatIsNotBuilt_IsNamed) {
  const auto changed = [](const char* pointer, Json value) {
    Json file = with_roles();
    file[Json::json_pointer(pointer)] = std::move(value);
    return file.dump();
  };
  const std::pair<std::string, const char*> cases[] = {
      {changed("/model/type", "WordPiece"), "model.type 'WordPiece'"},
      {changed("/model/dropout", 0.1), "model.dropout"},
      {changed("/model/end_of_word_suffix", "</w>"), "model.end_of_word_suffix"},
      {changed("/normalizer", {{"type", "BertNormalizer"}}), "normalizer.type 'BertNormalizer'"},
      {changed("/pre_tokenizer", {{"type", "UnicodeScripts"}}), "pre_tokenizer.type 'UnicodeScripts'"},
      {changed("/pre_tokenizer", {{"type", "ByteLevel"}}), "must both be ByteLevel"},
      {changed("/post_processor", {{"type", "BertProcessing"}}), "post_processor.type 'BertProcessing'"},
      {changed("/decoder", {{"type", "WordPiece"}}), "decoder.type 'WordPiece'"},
      {changed("/decoder/decoders/0/pattern", {{"Regex", "x"}}), "decoder.pattern"},
      {changed("/decoder/decoders/1", {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}), "before Fuse"},
      {changed("/decoder/decoders/3", {{"type", "Strip"}, {"content", "x"}, {"start", 1}, {"stop", 0}}), "one space"},
  };
  for (const auto& [file, word] : cases) expect_refused(file, "", MOTLEY_UNIMPLEMENTED, word);
}

TEST(JsonTokenizer, ContradictoryFiles_AreRefusedWithTheirPlace) {
  const auto changed = [](const char* pointer, Json value) {
    Json file = with_roles();
    file[Json::json_pointer(pointer)] = std::move(value);
    return file.dump();
  };
  const std::pair<std::string, const char*> cases[] = {
      {"", "not valid JSON at byte"},
      {"[1]", "is not a JSON object"},
      {"7", "is not a JSON object"},
      {"{}", "decoder is null"},
      {R"({"model": {"vocab": {"a": 1.5}}})", "ids are whole numbers"},
      {R"({"model": {"vocab": {"a": -1}}})", "ids are whole numbers"},
      {R"({"model": {"vocab": {"a": {}}}})", "no pair"},
      {R"({"model": {"vocab": [["a"]]}})", "no pair"},
      {R"({"model": {"vocab": [["a", 1, 2]]}})", "out of place"},
      {R"({"model": {"vocab": ["a"]}})", "no token with a number"},
      {R"({"model": {"vocab": [[["a", 1]]]}})", "too deeply"},
      {R"({"model": {"merges": {"a": "b"}}})", "model.merges"},
      {R"({"model": {"merges": [["a"]]}})", "no pair"},
      {R"({"model": {"merges": [["a", "b", "c"]]}})", "no pair"},
      {R"({"model": {"merges": ["ab"]}})", "model.merges"},
      {R"({"model": {"merges": [null]}})", "model.merges"},
      {changed("/model/vocab/x", 4), "both have the id 4"},
      {changed("/model/vocab/x", 900000), "the id 900000"},
      {changed("/model/vocab", Json::object()), "'<unk>'"},
      {changed("/model/merges/0", "a nosuch"), "merge 0 names 'nosuch'"},
      {changed("/model/unk_token", "nosuch"), "model.unk_token"},
      {changed("/model/byte_fallback", 1), "model.byte_fallback"},
      {changed("/added_tokens/0/id", -1), "added_tokens[].id"},
      {changed("/added_tokens/0/content", "other"), "both have the id 0"},
      {changed("/added_tokens", 3), "added_tokens is not a list"},
      {changed("/added_tokens/-", with_roles().at("added_tokens").at(0)), "added_tokens has the id 0 twice"},
      {changed("/normalizer/pattern", 3), "normalizer.pattern"},
      {changed("/normalizer/pattern/String", ""), "normalizer.pattern is empty"},
      {changed("/normalizer/pattern", {{"Regex", "("}}), "not one that can be used"},
      {changed("/normalizer/pattern", {{"Regex", "[a&&b]"}}), "a set inside a set"},
      {changed("/post_processor/special_tokens/<s>/ids/0", 99), "outside the vocabulary"},
      {changed("/post_processor/single", Json::array()), "has no Sequence"},
  };
  for (const auto& [file, word] : cases) {
    const auto result = Tokenizer::create_from_json(file, "", {});
    ASSERT_FALSE(result.ok()) << word;
    EXPECT_EQ(result.error().message().rfind("tokenizer.json", 0), 0u) << result.error().message();
    if (std::string_view(word) != "'<unk>'") {
      EXPECT_NE(result.error().message().find(word), std::string::npos) << word << ": " << result.error().message();
    }
  }
  EXPECT_FALSE(Tokenizer::create_from_json(with_roles().dump(), R"({"bos_token": "nosuch"})", {}).ok());
  EXPECT_FALSE(Tokenizer::create_from_json(with_roles().dump(), "{", {}).ok());
  EXPECT_FALSE(Tokenizer::create_from_json(with_roles().dump(), "", Ids{99}).ok());
}

TEST(TokenizerJson, Limits_Hold) {
  const std::string deep = R"({"a": )" + std::string(100000, '[');
  EXPECT_EQ(read_tokenizer_json(deep, "f").error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  std::string many = R"({"a": [0)";
  for (size_t i = 0; i <= kTokenizerJsonValuesMax; ++i) many += ",0";
  EXPECT_EQ(read_tokenizer_json(many + "]}", "f").error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_FALSE(read_tokenizer_json("{\"\xFF\": 1}", "f").ok());
}

TEST(JsonTokenizer, GrowingReplacements_StopAtALimit) {
  Json file = with_roles();
  Json steps = Json::array();
  for (int i = 0; i < 60; ++i) {
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaaaa"}});
  }
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  EXPECT_LT(made(file)->encode("a", false, true).size(), 100000u);
}

}  // namespace
}  // namespace motley
