// Input: template source, NUL, the variables as a JSON object. Looks for crashes, hangs and oversized allocations.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "text/jinja/template.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using Json = nlohmann::ordered_json;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  std::string_view variables = input.substr(std::min(end + 1, input.size()));
  auto program = motley::jinja::Template::create(input.substr(0, end));
  if (!program.ok()) return 0;
  Json json = Json::parse(variables, nullptr, false);
  if (!json.is_object()) json = Json::object();
  std::vector<motley::jinja::Variable> list;
  for (const auto& [name, value] : json.items()) list.push_back({name, &value});
  // Smaller than in service, so that one input takes a millisecond.
  auto text = (*program)->render(list, 1721997296, {.steps = 10'000, .text_bytes = 64u << 10});
  if (text.ok() && !text->empty() && text->runs().back().end != text->size()) __builtin_trap();
  return 0;
}
