#include "base/quote.hpp"

#include <fmt/format.h>

#include <cstdint>

#include "base/utf8.hpp"

namespace motley {

namespace {
constexpr size_t kQuotedBytesMax = 64;
}

std::string in_quotes(std::string_view text) {
  std::string out = "'";
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (at + step.bytes > kQuotedBytesMax) {
      out += "...";
      break;
    }
    if (step.kind != Utf8Step::kCharacter || step.code_point < 0x20 ||
        (step.code_point >= 0x7F && step.code_point < 0xA0)) {
      for (size_t i = 0; i < step.bytes; ++i) out += fmt::format("\\x{:02x}", static_cast<uint8_t>(text[at + i]));
    } else {
      out.append(text.substr(at, step.bytes));
    }
    at += step.bytes;
  }
  return out + "'";
}

}  // namespace motley
