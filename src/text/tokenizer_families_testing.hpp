// For tests and benchmarks: the entries of tests/golden/tokenizer_families.json (tools/golden/tokenizer_families.py).
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/vocabulary_testing.hpp"

namespace motley {

inline Result<std::unique_ptr<Tokenizer>> tokenizer_of_family(const nlohmann::json& family) {
  if (family.contains("tokenizer_json")) {
    return Tokenizer::create_from_json(family["tokenizer_json"].dump(), "", {});
  }
  const nlohmann::json& data = family["vocabulary"];
  const auto id = [&](const char* key) -> std::optional<int32_t> {
    return data.contains(key) && data[key].is_number() ? std::optional(data[key].get<int32_t>()) : std::nullopt;
  };
  const auto flag = [&](const char* key) -> std::optional<bool> {
    return data.contains(key) && data[key].is_boolean() ? std::optional(data[key].get<bool>()) : std::nullopt;
  };
  TestVocabulary vocabulary;
  vocabulary.model = data["model"].get<std::string>();
  vocabulary.pre = data.value("pre", "");
  vocabulary.tokens = data["tokens"].get<std::vector<std::string>>();
  vocabulary.types = data["types"].get<std::vector<int32_t>>();
  vocabulary.scores = data.value("scores", std::vector<float>());
  vocabulary.merges = data.value("merges", std::vector<std::string>());
  vocabulary.unknown = id("unknown");
  vocabulary.bos = id("bos");
  vocabulary.eos = id("eos");
  vocabulary.add_bos = flag("add_bos");
  vocabulary.add_eos = flag("add_eos");
  vocabulary.add_space_prefix = flag("add_space_prefix");
  vocabulary.remove_extra_whitespaces = flag("remove_extra_whitespaces");
  for (const uint8_t byte : data.value("precompiled_charsmap", std::vector<uint8_t>())) {
    vocabulary.precompiled_charsmap.push_back(static_cast<char>(byte));
  }
  return vocabulary.create();
}

}  // namespace motley
