// Settings: typed reads of the keys of a config.json, with the defaults of the model's class behind them.
//
// A key whose value is null counts as absent, its default too. Every refusal names the key and the remedy. Borrows what
// it is made of.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "model/hf/json.hpp"

namespace motley::hf {

class Settings {
 public:
  // `defaults` answers where `values` is silent; null = none. `path` leads messages to `values`: "rope_scaling.".
  explicit Settings(const JsonValue& values, const JsonValue* defaults = nullptr, std::string path = {})
      : values_(values), defaults_(defaults), path_(std::move(path)) {}

  const JsonValue* find(std::string_view key) const;
  // The first of two spellings that is there; the second's value or null otherwise.
  std::string_view pick(std::string_view key, std::string_view other) const { return find(key) ? key : other; }

  // Nullopt where the key is absent; INVALID_ARGUMENT where it is of another type or out of range.
  Result<std::optional<uint32_t>> count(std::string_view key, uint64_t least, uint64_t most) const;
  Result<uint32_t> required_count(std::string_view key, uint64_t least, uint64_t most) const;
  // In (0, most].
  Result<std::optional<float>> positive(std::string_view key, double most) const;
  Result<float> required_positive(std::string_view key, double most) const;
  Result<std::optional<bool>> flag(std::string_view key) const;
  Result<std::optional<std::string_view>> text(std::string_view key) const;
  // Exactly `count` numbers in (0, most].
  Result<std::vector<float>> positives(std::string_view key, size_t count, double most) const;

  // "key 'k': what; get the model again"
  Status invalid(std::string_view key, std::string_view what) const;
  // "key 'k': asks for what, which is not built; use another model"
  Status unbuilt(std::string_view key, std::string_view what) const;
  std::string shown(std::string_view key) const;

 private:
  Status missing(std::string_view key) const { return invalid(key, "is missing"); }
  Status mistyped(std::string_view key, std::string_view wanted) const;

  const JsonValue& values_;
  const JsonValue* defaults_;
  std::string path_;
};

}  // namespace motley::hf
