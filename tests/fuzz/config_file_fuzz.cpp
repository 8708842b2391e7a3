// Any text, read as a TOML file of options: entries by name, each with values and a line of the text, or a refusal of
// one line that names the file.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "apps/config_file.hpp"
#include "base/check.hpp"
#include "fuzz/refusal_check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto entries = motley::apps::parse_config(text, "f.toml");
  if (!entries.ok()) {
    motley::fuzz::check_refusal(entries.error());
    CHECK(entries.error().message().starts_with("f.toml:"), "{}", entries.error().message());
    return 0;
  }
  const auto lines = static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n')) + 1;
  for (size_t i = 0; i < entries->size(); ++i) {
    const motley::apps::ConfigEntry& entry = (*entries)[i];
    CHECK(entry.line >= 1 && entry.line <= lines, "{} of {}", entry.line, lines);
    CHECK(!entry.values.empty(), "{}", entry.name);
    CHECK(i == 0 || (*entries)[i - 1].name < entry.name, "{}", entry.name);
  }
  return 0;
}
