#include "text/text_stream.hpp"

#include <algorithm>
#include <utility>

#include "text/utf8.hpp"

namespace motley {

TextStream::TextStream(const Tokenizer& tokenizer, Options options)
    : tokenizer_(tokenizer), options_(std::move(options)) {
  for (const std::string& text : options_.stop) {
    // What is matched against is always valid UTF-8, so a stop string that is not can never match.
    if (text.empty() || !utf8_valid(text)) continue;
    Stop stop{text, std::vector<uint32_t>(text.size(), 0), 0};
    for (uint32_t i = 1, matched = 0; i < text.size(); ++i) {
      while (matched > 0 && text[i] != text[matched]) matched = stop.border[matched - 1];
      if (text[i] == text[matched]) ++matched;
      stop.border[i] = matched;
    }
    stops_.push_back(std::move(stop));
  }
}

std::string TextStream::push(TokenId id) {
  if (stopped_) return {};
  pending_bytes_ += tokenizer_.token_bytes(id, !options_.skip_special_tokens);
  take_characters(false);
  return release(false);
}

std::string TextStream::finish() {
  if (stopped_) return {};
  take_characters(true);
  return release(true);
}

void TextStream::take_characters(bool at_end) {
  std::string_view rest = pending_bytes_;
  std::string text;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8Step::kUnfinished && !at_end) break;
    text += step.kind == Utf8Step::kCharacter ? rest.substr(0, step.bytes) : kReplacementCharacter;
    rest.remove_prefix(step.bytes);
  }
  pending_bytes_.erase(0, pending_bytes_.size() - rest.size());
  take_text(text);
}

void TextStream::take_text(std::string_view text) {
  for (const char byte : text) {
    held_.push_back(byte);
    const Stop* match = nullptr;
    for (Stop& stop : stops_) {
      while (stop.matched > 0 && stop.text[stop.matched] != byte) stop.matched = stop.border[stop.matched - 1];
      if (stop.text[stop.matched] == byte) ++stop.matched;
      if (stop.matched < stop.text.size()) continue;
      if (match == nullptr || stop.text.size() > match->text.size()) match = &stop;
    }
    if (match == nullptr) continue;
    stopped_ = true;
    stop_match_ = match->text;
    if (!options_.include_stop_in_output) held_.resize(held_.size() - match->text.size());
    return;
  }
}

std::string TextStream::release(bool at_end) {
  size_t keep = 0;
  if (!at_end && !stopped_) {
    for (const Stop& stop : stops_) keep = std::max<size_t>(keep, stop.matched);
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

}  // namespace motley
