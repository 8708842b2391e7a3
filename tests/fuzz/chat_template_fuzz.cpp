// Input: a tokenizer_config.json, NUL, messages as JSON. Looks for crashes, hangs and oversized allocations.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "text/chat_template.hpp"
#include "text/chat_template_messages.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using Json = nlohmann::ordered_json;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  auto sources = motley::parse_chat_template_sources(input.substr(0, end));
  if (sources.ok() && !sources->empty()) static_cast<void>(motley::ChatTemplate::create(*sources, "<s>", "</s>"));
  const Json messages = Json::parse(input.substr(std::min(end + 1, input.size())), nullptr, false);
  if (messages.is_discarded()) return 0;
  auto adapted = motley::adapt_messages(messages, size % 2 == 0);
  // What was adapted once is fit.
  if (adapted.ok() && *adapted) {
    auto again = motley::adapt_messages(**adapted, size % 2 == 0);
    if (!again.ok() || (*again && **again != **adapted)) __builtin_trap();
  }
  return 0;
}
