// The filter wordwrap: Python's textwrap.wrap over each line of a text.
#include <algorithm>
#include <deque>
#include <utility>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

// Characters [begin, end) of the line.
struct Chunk {
  size_t begin, end;
  size_t size() const { return end - begin; }
};

bool is_blank(char32_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_word(char32_t c) { return c == '_' || is_alpha(c) || is_digit(c) || is_numeric(c); }
bool is_letter(char32_t c) { return is_word(c) && !is_decimal(c); }
bool is_word_or_sign(char32_t c) {
  return is_word(c) || (c < 0x80 && std::string_view("!\"'&.,?").find(static_cast<char>(c)) != std::string_view::npos);
}

// One line, cut where textwrap's wordsep_re (or wordsep_simple_re) cuts it and filled up again to lines of `width`.
class Wrapper {
 public:
  Wrapper(const MarkedText& line, const WrapStyle& style) : line_(line), style_(style) {
    for (size_t pos = 0; pos < line.size(); pos += char_length(line.view(), pos)) {
      offsets_.push_back(pos);
      chars_.push_back(code_point_at(line.view(), pos));
    }
    offsets_.push_back(line.size());
    for (size_t pos = 0; pos < chars_.size(); pos = chunks_.back().end) chunks_.push_back({pos, chunk_end(pos)});
  }

  std::vector<MarkedText> run() {
    std::vector<MarkedText> lines;
    while (!chunks_.empty()) {
      if (!lines.empty() && blank(chunks_.front())) chunks_.pop_front();
      std::vector<Chunk> taken;
      size_t length = 0;
      while (!chunks_.empty() && length + chunks_.front().size() <= style_.width) take_first(taken, length);
      if (!chunks_.empty() && chunks_.front().size() > style_.width) take_long(taken, length);
      if (!taken.empty() && blank(taken.back())) taken.pop_back();
      if (!taken.empty()) lines.push_back(line_.sub(offsets_[taken.front().begin], offsets_[taken.back().end]));
    }
    return lines;
  }

 private:
  bool blank(const Chunk& chunk) const {
    const auto begin = chars_.begin();
    return std::all_of(begin + static_cast<std::ptrdiff_t>(chunk.begin), begin + static_cast<std::ptrdiff_t>(chunk.end),
                       is_space);
  }
  size_t run_end(size_t pos, bool blank) const {
    while (pos < chars_.size() && is_blank(chars_[pos]) == blank) ++pos;
    return pos;
  }
  bool letter_at(size_t pos) const { return pos < chars_.size() && is_letter(chars_[pos]); }
  // A dash between words begins at `pos`: two or more hyphens. Its end, or `pos`.
  size_t dash_end(size_t pos) const {
    size_t end = pos;
    while (end < chars_.size() && chars_[end] == '-') ++end;
    const bool between =
        end >= pos + 2 && pos > 0 && is_word_or_sign(chars_[pos - 1]) && end < chars_.size() && is_word(chars_[end]);
    return between ? end : pos;
  }
  // Whether a word may be broken behind the hyphen at `pos`.
  bool breaks_behind(size_t pos) const {
    if (chars_[pos] != '-') return false;
    const bool two_letters = pos >= 2 && is_letter(chars_[pos - 2]) && is_letter(chars_[pos - 1]);
    const bool short_part =
        pos >= 3 && is_letter(chars_[pos - 3]) && chars_[pos - 2] == '-' && is_word_or_sign(chars_[pos - 1]);
    if (!two_letters && !short_part) return false;
    if (!letter_at(pos + 1)) return false;
    return letter_at(pos + 2) || (pos + 2 < chars_.size() && chars_[pos + 2] == '-' && letter_at(pos + 3));
  }

  size_t chunk_end(size_t pos) const {
    if (is_blank(chars_[pos])) return run_end(pos, true);
    if (!style_.break_on_hyphens) return run_end(pos, false);
    if (const size_t end = dash_end(pos); end > pos) return end;
    for (size_t end = pos + 1;; ++end) {
      if (end < chars_.size() && breaks_behind(end)) return end + 1;
      if (end == chars_.size() || is_blank(chars_[end]) || dash_end(end) > end) return end;
    }
  }

  void take_first(std::vector<Chunk>& taken, size_t& length) {
    taken.push_back(chunks_.front());
    length += chunks_.front().size();
    chunks_.pop_front();
  }

  // A word that is longer than a line: as much of it as goes into the rest of this one.
  void take_long(std::vector<Chunk>& taken, size_t& length) {
    if (!style_.break_long_words) {
      if (taken.empty()) take_first(taken, length);
      return;
    }
    Chunk& word = chunks_.front();
    size_t end = word.begin + (style_.width - length);
    if (style_.break_on_hyphens) {
      size_t hyphen = end;
      while (hyphen > word.begin && chars_[hyphen - 1] != '-') --hyphen;
      const auto begin = chars_.begin() + static_cast<std::ptrdiff_t>(word.begin);
      const auto last = chars_.begin() + static_cast<std::ptrdiff_t>(std::max(hyphen, word.begin + 1) - 1);
      if (std::any_of(begin, last, [](char32_t c) { return c != '-'; })) end = hyphen;
    }
    taken.push_back({word.begin, end});
    length += taken.back().size();
    word.begin = end;
  }

  const MarkedText& line_;
  const WrapStyle& style_;
  std::vector<size_t> offsets_;
  std::vector<char32_t> chars_;
  std::deque<Chunk> chunks_;
};

}  // namespace

MarkedText wrap_text(Interpreter& in, const MarkedText& text, const WrapStyle& style) {
  in.charge(4 * text.size());  // also for the room that positions and chunks take
  MarkedText out;
  bool first = true;
  const auto put = [&](const MarkedText& line) {
    if (!std::exchange(first, false)) out.append(style.separator);
    in.charge(1 + style.separator.size() / 64);
    out.append(line);
    if (out.size() > in.limits().text_bytes) in.charge_text(out.size());
  };
  for (const MarkedText& line : split_lines(text, false)) {
    const std::vector<MarkedText> wrapped = Wrapper(line, style).run();
    if (wrapped.empty()) put({});
    for (const MarkedText& part : wrapped) put(part);
  }
  return out;
}

}  // namespace motley::jinja
