#include "config_file.hpp"

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include <algorithm>
#include <optional>

#include "base/file.hpp"

namespace motley::apps {
namespace {

constexpr size_t kConfigBytesMax = 1u << 20;

std::optional<std::string> scalar_text(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  return std::nullopt;
}

}  // namespace

Result<std::vector<std::pair<std::string, std::vector<std::string>>>> read_config_file(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_file(path, kConfigBytesMax));
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    return invalid_argument("{}:{}: {}", path, parsed.error().source().begin.line, parsed.error().description());
  }
  std::vector<std::pair<std::string, std::vector<std::string>>> options;
  for (const auto& [key, node] : parsed.table()) {
    std::string name(key.str());
    std::replace(name.begin(), name.end(), '_', '-');
    std::vector<std::string> values;
    if (const auto* array = node.as_array()) {
      for (const toml::node& item : *array) {
        const auto value = scalar_text(item);
        if (!value)
          return invalid_argument("{}:{}: {} holds something that is not a plain value", path, item.source().begin.line,
                                  name);
        values.push_back(*value);
      }
    } else if (const auto value = scalar_text(node)) {
      values.push_back(*value);
    } else {
      return invalid_argument("{}:{}: {} is not a plain value or a list of them", path, node.source().begin.line, name);
    }
    options.emplace_back(std::move(name), std::move(values));
  }
  return options;
}

}  // namespace motley::apps
