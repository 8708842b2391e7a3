// Input: tokenizer.json, NUL, text. Whatever they are: a refusal of one line, or a tokenizer whose ids are its own and
// whose untrusted text holds no marker.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "text/text_stream.hpp"
#include "text/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kTextBytesMax = 256;  // so that a slow expression takes milliseconds
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view text = input.substr(std::min(end + 1, input.size())).substr(0, kTextBytesMax);
  const auto made = motley::Tokenizer::create_from_json(input.substr(0, end), "", {});
  if (!made.ok()) {
    CHECK(!made.error().message().empty());
    CHECK(made.error().message().find('\n') == std::string::npos, "{}", made.error().message());
    return 0;
  }
  const motley::Tokenizer& tokenizer = **made;
  motley::TextStream stream(tokenizer, {.stop = {}, .starts_text = true});
  for (const bool trusted : {false, true}) {
    for (const motley::TokenId id : tokenizer.encode(text, trusted, trusted)) {
      CHECK(id >= 0 && static_cast<uint32_t>(id) < tokenizer.size(), "{} of {}", id, tokenizer.size());
      (void)stream.push(id);
    }
  }
  (void)stream.finish();
  return 0;
}
