#include "config_file.hpp"

// toml++ asserts what bytes of a file can break (a header of "[@"), and with NDEBUG lets some compilers assume it: the
// checks that follow in its code are what refuses such files.
#undef NDEBUG
#define TOML_ASSERT(expr) static_assert(true)
#define TOML_EXCEPTIONS 0
#define TOML_MAX_NESTED_VALUES 4  // a list of plain values takes two
#include <toml++/toml.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "base/file.hpp"

namespace motley::apps {
namespace {

std::optional<std::string> scalar_text(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  return std::nullopt;
}

bool is_name_character(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; }

Status check_lines(std::string_view text, const std::string& path) {
  size_t line = 1;
  for (size_t begin = 0; begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (end - begin > kConfigLineBytesMax) {
      return invalid_argument("{}:{}: the line has more than {} bytes", path, line, kConfigLineBytesMax);
    }
    begin = end + 1;
  }
  return ok_status();
}

Result<std::vector<std::string>> entry_values(const toml::node& node, const std::string& place) {
  std::vector<std::string> values;
  if (const auto* array = node.as_array()) {
    for (const toml::node& item : *array) {
      const auto value = scalar_text(item);
      if (!value) return invalid_argument("{} holds something that is not a plain value", place);
      values.push_back(*value);
    }
    if (values.empty()) return invalid_argument("{} is an empty list; leave it out", place);
  } else if (const auto value = scalar_text(node)) {
    values.push_back(*value);
  } else {
    return invalid_argument("{} is not a plain value or a list of them", place);
  }
  return values;
}

}  // namespace

Result<std::vector<ConfigEntry>> parse_config(std::string_view text, const std::string& path) {
  RETURN_IF_ERROR(check_lines(text, path));
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    return invalid_argument("{}:{}: {}", path, parsed.error().source().begin.line, parsed.error().description());
  }
  std::vector<ConfigEntry> entries;
  for (const auto& [key, node] : parsed.table()) {
    ConfigEntry entry;
    entry.name = key.str();
    std::replace(entry.name.begin(), entry.name.end(), '_', '-');
    entry.line = key.source().begin.line;
    if (!std::all_of(entry.name.begin(), entry.name.end(), is_name_character)) {
      return invalid_argument("{}:{}: a key is not the name of an option", path, entry.line);
    }
    ASSIGN_OR_RETURN(entry.values, entry_values(node, fmt::format("{}:{}: {}", path, entry.line, entry.name)));
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const ConfigEntry& a, const ConfigEntry& b) {
    return std::tie(a.name, a.line) < std::tie(b.name, b.line);
  });
  const auto twice = std::adjacent_find(entries.begin(), entries.end(),
                                        [](const ConfigEntry& a, const ConfigEntry& b) { return a.name == b.name; });
  if (twice != entries.end()) {
    return invalid_argument("{}:{}: {} is given twice", path, (twice + 1)->line, twice->name);
  }
  return entries;
}

Result<std::vector<ConfigEntry>> read_config_file(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_file(path, kConfigBytesMax));
  return parse_config(text, path);
}

}  // namespace motley::apps
