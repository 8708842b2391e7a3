#include "text/text_stream.hpp"

#include <algorithm>
#include <utility>

#include "base/utf8.hpp"

namespace motley {

namespace {

std::shared_ptr<const StopSet> stop_set_of(const TextStream::Options& options) {
  if (options.stop_set || options.stop.empty()) return options.stop_set;
  return std::make_shared<const StopSet>(options.stop);
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, const Options& options)
    : tokenizer_(tokenizer),
      include_stop_in_output_(options.include_stop_in_output),
      skip_special_tokens_(options.skip_special_tokens),
      stops_(stop_set_of(options)),
      tokens_before_stops_(options.min_tokens),
      stops_count_(options.min_tokens == 0),
      matches_(stops_ ? stops_->matches() : StopSet::Matches()),
      at_start_(options.starts_text) {}

std::string TextStream::push(TokenId id) {
  if (stopped_) return {};
  const std::string bytes = tokenizer_.token_bytes(id, !skip_special_tokens_);
  pending_bytes_ += at_start_ ? tokenizer_.first_token_bytes(id, !skip_special_tokens_) : bytes;
  at_start_ = at_start_ && bytes.empty();
  take_characters(false);
  if (tokens_before_stops_ > 0) --tokens_before_stops_;
  stops_count_ = stops_count_ || (tokens_before_stops_ == 0 && pending_bytes_.empty());
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
  if (matches_.empty() || !stops_count_) {
    held_ += text;
    return;
  }
  for (const char byte : text) {
    held_.push_back(byte);
    const std::string* match = stops_->advance(matches_, byte);
    if (match == nullptr) continue;
    stopped_ = true;
    stop_match_ = *match;
    if (!include_stop_in_output_) held_.resize(held_.size() - match->size());
    return;
  }
}

std::string TextStream::release(bool at_end) {
  size_t keep = 0;
  if (!at_end && !stopped_) {
    for (const uint32_t matched : matches_) keep = std::max<size_t>(keep, matched);
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

}  // namespace motley
