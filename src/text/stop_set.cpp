#include "text/stop_set.hpp"

#include "base/utf8.hpp"

namespace motley {

StopSet::StopSet(std::span<const std::string> stop) {
  for (const std::string& text : stop) {
    if (text.empty() || !utf8_valid(text)) continue;
    std::vector<uint32_t> border(text.size(), 0);
    for (uint32_t i = 1, matched = 0; i < text.size(); ++i) {
      while (matched > 0 && text[i] != text[matched]) matched = border[matched - 1];
      if (text[i] == text[matched]) ++matched;
      border[i] = matched;
    }
    stops_.push_back({text, std::move(border)});
  }
}

const std::string* StopSet::advance(Matches& matches, char byte) const {
  const std::string* longest = nullptr;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const auto& [text, border] = stops_[i];
    uint32_t& matched = matches[i];
    if (matched == text.size()) matched = border[matched - 1];
    while (matched > 0 && text[matched] != byte) matched = border[matched - 1];
    if (text[matched] == byte) ++matched;
    if (matched == text.size() && (longest == nullptr || text.size() > longest->size())) longest = &text;
  }
  return longest;
}

}  // namespace motley
