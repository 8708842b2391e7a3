// FieldReader: typed, range-checked reading of a JSON object's members, remembering the first error.
// Not thread-safe. Every read leaves `out` alone when the member is absent, null or wrong.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "server/api_error.hpp"

namespace motley {

class FieldReader {
 public:
  // `object` is borrowed; it must be a JSON object. `prefix` goes before names in errors ("stream_options.").
  explicit FieldReader(const nlohmann::ordered_json& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  // The member, or null if it is absent or JSON's null.
  const nlohmann::ordered_json* find(std::string_view name) const;

  // True: read.
  bool boolean(std::string_view name, bool& out);
  bool string(std::string_view name, std::string& out);
  bool integer(std::string_view name, int64_t min, int64_t max, int64_t& out);
  // `open_min`: min itself is out of range.
  bool number(std::string_view name, double min, double max, bool open_min, float& out);
  // An array of integers within [0, vocab_size).
  bool token_ids(std::string_view name, size_t count_max, uint32_t vocab_size, std::vector<TokenId>& out);

  // Keeps the first error alone.
  void fail(ApiError error) {
    if (!error_) error_ = std::move(error);
  }
  bool failed() const { return error_.has_value(); }
  const MaybeError& error() const { return error_; }
  std::string path(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  const nlohmann::ordered_json& object_;
  std::string prefix_;
  MaybeError error_;
};

// Checks one array of ids; `name` for errors.
MaybeError read_token_ids(const nlohmann::ordered_json& array, const std::string& name, uint32_t vocab_size,
                          std::vector<TokenId>& out);

}  // namespace motley
