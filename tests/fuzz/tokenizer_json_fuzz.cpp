// Input: tokenizer.json, NUL, text. Whatever they are: a refusal of one line, or a tokenizer whose ids are its own and
// whose untrusted text holds no marker.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz/refusal_check.hpp"
#include "fuzz/tokenizer_checks.hpp"
#include "text/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kTextBytesMax = 256;  // so that a slow expression takes milliseconds
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view text = input.substr(std::min(end + 1, input.size())).substr(0, kTextBytesMax);
  const auto made = motley::Tokenizer::create_from_json(input.substr(0, end), "", {});
  if (!made.ok()) {
    motley::fuzz::check_refusal(made.error());
    return 0;
  }
  motley::fuzz::check_tokenizer(**made, text);
  return 0;
}
