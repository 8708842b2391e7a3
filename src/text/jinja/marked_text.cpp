#include "text/jinja/marked_text.hpp"

#include <algorithm>

namespace motley::jinja {

size_t MarkedText::run_index(size_t pos) const {
  auto it = std::upper_bound(runs_.begin(), runs_.end(), pos, [](size_t p, const Run& run) { return p < run.end; });
  return static_cast<size_t>(it - runs_.begin());
}

bool MarkedText::trusted_at(size_t pos) const { return runs_[run_index(pos)].trusted; }

void MarkedText::append(std::string_view text, bool trusted) {
  if (text.empty()) return;
  bytes_.append(text);
  if (!runs_.empty() && runs_.back().trusted == trusted) {
    runs_.back().end = bytes_.size();
  } else {
    runs_.push_back({bytes_.size(), trusted});
  }
}

void MarkedText::append(const MarkedText& other, size_t begin, size_t end) {
  if (begin >= end) return;
  for (size_t i = other.run_index(begin); begin < end; ++i) {
    size_t stop = std::min(end, other.runs_[i].end);
    append(other.view().substr(begin, stop - begin), other.runs_[i].trusted);
    begin = stop;
  }
}

MarkedText MarkedText::sub(size_t begin, size_t end) const {
  MarkedText out;
  out.append(*this, begin, end);
  return out;
}

}  // namespace motley::jinja
