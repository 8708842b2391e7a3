// The pieces that string filters and string methods share. Marks go with their characters.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

constexpr double kTwoTo63 = 9223372036854775808.0;

std::string_view trimmed(std::string_view text) {
  auto blank = [](char c) { return is_space(static_cast<unsigned char>(c)); };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// The digits of a Python number literal: underscores only between digits. nullopt: misplaced.
std::optional<std::string> without_underscores(std::string_view text) {
  auto is_alnum = [](char c) { return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'); };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_')
      out += text[i];
    else if (i == 0 || i + 1 == text.size() || !is_alnum(text[i - 1]) || !is_alnum(text[i + 1]))
      return std::nullopt;
  }
  return out;
}

bool is_cased(char32_t c) { return is_upper(c) || is_lower(c); }

}  // namespace

MarkedText soft_text(Interpreter& in, const Value& v) {
  if (!v.is_string()) return in.str(v);
  in.charge_text(v.text().size());
  return v.text();
}

size_t find_text(Interpreter& in, std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const char* base = text.data();
  // memmem's worst case grows with the length of short needles.
  const uint64_t factor = 1 + std::min<size_t>(needle.size(), 256) / 16;
  const void* hit = memmem(base + from, text.size() - from, needle.data(), needle.size());
  const size_t end = hit ? static_cast<size_t>(static_cast<const char*>(hit) - base) : text.size();
  in.charge(1 + (end - from) / 64 * factor);
  return hit ? end : std::string_view::npos;
}

MarkedText replace_text(Interpreter& in, const MarkedText& text, const MarkedText& from, const MarkedText& to,
                        int64_t count) {
  MarkedText out;
  size_t pos = 0;
  auto put = [&] {
    in.charge(1 + to.runs().size());
    if (out.size() + to.size() > in.limits().text_bytes) in.charge_text(out.size() + to.size());
    out.append(to);
  };
  if (from.empty()) {
    for (; count != 0 && pos < text.size(); --count) {
      put();
      size_t n = char_length(text.view(), pos);
      out.append(text, pos, pos + n);
      pos += n;
    }
    if (count != 0) put();
  } else {
    for (; count != 0; --count) {
      size_t hit = find_text(in, text.view(), from.view(), pos);
      if (hit == std::string_view::npos) break;
      out.append(text, pos, hit);
      put();
      pos = hit + from.size();
    }
  }
  out.append(text, pos, text.size());
  return out;
}

MarkedText strip_text(const MarkedText& text, std::string_view chars, bool left, bool right) {
  auto matches = [&](size_t pos) {
    if (chars.empty()) return is_space(code_point_at(text.view(), pos));
    std::string_view c = text.view().substr(pos, char_length(text.view(), pos));
    for (size_t i = 0; i < chars.size(); i += char_length(chars, i)) {
      if (chars.substr(i, char_length(chars, i)) == c) return true;
    }
    return false;
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end && matches(begin)) begin += char_length(text.view(), begin);
  while (right && begin < end) {
    size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(text.bytes()[last]) & 0xC0) == 0x80) --last;
    if (!matches(last)) break;
    end = last;
  }
  return text.sub(begin, end);
}

MarkedText change_case(const MarkedText& text, Case what) {
  MarkedText out;
  size_t pos = 0;
  bool first = true, after_cased = false;
  for (const MarkedText::Run& run : text.runs()) {
    std::string piece;
    for (; pos < run.end; pos += char_length(text.view(), pos)) {
      const char32_t c = code_point_at(text.view(), pos);
      switch (what) {
        case Case::kUpper: append_upper(piece, c); break;
        case Case::kLower: append_lower(piece, c); break;
        case Case::kFold: append_folded(piece, c); break;
        case Case::kCapitalize: first ? append_title(piece, c) : append_lower(piece, c); break;
        case Case::kTitle: after_cased ? append_lower(piece, c) : append_title(piece, c); break;
        case Case::kSwap: is_upper(c) ? append_lower(piece, c) : append_upper(piece, c); break;
      }
      first = false;
      after_cased = is_cased(c);
    }
    out.append(piece, run.trusted);
  }
  return out;
}

std::vector<MarkedText> split_lines(const MarkedText& text, bool keep_ends) {
  std::vector<MarkedText> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = code_point_at(text.view(), pos);
    size_t end = pos + char_length(text.view(), pos);
    const bool breaks = (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (breaks) {
      if (c == '\r' && end < text.size() && text.bytes()[end] == '\n') ++end;
      lines.push_back(text.sub(begin, keep_ends ? end : pos));
      begin = end;
    }
    pos = end;
  }
  if (begin < text.size()) lines.push_back(text.sub(begin, text.size()));
  return lines;
}

MarkedText pad_text(Interpreter& in, const MarkedText& text, size_t left, size_t right, const MarkedText& fill) {
  constexpr size_t kPadMax = size_t{1} << 20;
  if (left > kPadMax || right > kPadMax) fail("padding is limited to {} characters", kPadMax);
  in.charge(left + right);
  MarkedText out;
  for (; left > 0; --left) out.append(fill);
  out.append(text);
  for (; right > 0; --right) out.append(fill);
  return out;
}

MarkedText join_text(Interpreter& in, const List& items, const MarkedText& separator) {
  MarkedText out;
  for (size_t i = 0; i < items.size(); ++i) {
    in.charge(1 + separator.runs().size() + separator.size() / 64);
    if (i > 0) out.append(separator);
    append_str(out, items[i]);
    if (out.size() > in.limits().text_bytes) in.charge_text(out.size());
    if (items[i].is_string()) in.charge(items[i].text().size() / 64);
  }
  return out;
}

std::optional<int64_t> parse_int(std::string_view text, int base) {
  text = trimmed(text);
  bool negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 2 && text[0] == '0') {
    const char marker = static_cast<char>(text[1] | 0x20);
    const int marked = marker == 'x' ? 16 : marker == 'o' ? 8 : marker == 'b' ? 2 : 0;
    if (marked != 0 && (base == marked || base == 0)) {
      base = marked;
      text.remove_prefix(text[2] == '_' ? 3 : 2);
    }
  }
  if (base == 0) base = 10;
  if (base < 2 || base > 36) return std::nullopt;
  auto digits = without_underscores(text);
  if (!digits || digits->empty() || (*digits)[0] == '-') return std::nullopt;
  std::string signed_digits = (negative ? "-" : "") + *digits;
  int64_t value = 0;
  auto [end, code] = std::from_chars(signed_digits.data(), signed_digits.data() + signed_digits.size(), value, base);
  if (code == std::errc::result_out_of_range) fail("integer overflow; integers are limited to 64 bits");
  if (code != std::errc() || end != signed_digits.data() + signed_digits.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  text = trimmed(text);
  std::string_view body = text;
  if (!body.empty() && (body[0] == '-' || body[0] == '+')) body.remove_prefix(1);
  std::string lower;
  for (char c : body.substr(0, 9)) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  const double sign = !text.empty() && text[0] == '-' ? -1 : 1;
  if (lower == "inf" || lower == "infinity") return sign * INFINITY;
  if (lower == "nan") return NAN;
  auto digits = without_underscores(body);
  if (!digits || digits->find_first_not_of("0123456789.eE+-") != std::string::npos) return std::nullopt;
  if (digits->empty() || digits->find_first_of("0123456789") == std::string::npos) return std::nullopt;
  if ((*digits)[0] == '-' || (*digits)[0] == '+') return std::nullopt;
  char* end = nullptr;
  double value = std::strtod(digits->c_str(), &end);
  if (end != digits->c_str() + digits->size()) return std::nullopt;
  return sign * value;
}

Value float_to_int(double v) {
  if (std::isnan(v)) fail("cannot convert float NaN to integer");
  if (!(std::abs(v) < kTwoTo63)) fail("integer overflow; integers are limited to 64 bits");
  return Value(static_cast<int64_t>(v));
}

}  // namespace motley::jinja
