// Any text, read as both kinds of a dataset: entries with a prompt in UTF-8, or a refusal of one line that names the
// file.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "base/utf8.hpp"
#include "client/prompts.hpp"
#include "fuzz/refusal_check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void check(const motley::Result<std::vector<motley::client::DatasetEntry>>& entries) {
  if (!entries.ok()) {
    motley::fuzz::check_refusal(entries.error());
    CHECK(entries.error().message().starts_with("f.json"), "{}", entries.error().message());
    return;
  }
  for (const motley::client::DatasetEntry& entry : *entries) {
    CHECK(!entry.prompt.empty() && motley::utf8_valid(entry.prompt) && motley::utf8_valid(entry.answer));
    CHECK(entry.output_tokens != 0u);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check(motley::client::parse_sharegpt(text, "f.json"));
  check(motley::client::parse_custom(text, "f.json"));
  return 0;
}
