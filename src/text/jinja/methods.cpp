// Methods of strings, dicts and lists, as Python's.
#include <algorithm>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
using Kind = Sequence::Kind;
constexpr size_t kNone = std::string_view::npos;

template <bool kLeft, bool kRight>
Value str_strip(Interpreter& in, const Value& self, Slots& a) {
  if (a.set(0) && a.text(0).empty()) return self;
  std::string_view chars = a.set(0) ? a.text(0).view() : std::string_view();
  in.charge(self.text().size() * chars.size() / 64);
  return in.text(strip_text(self.text(), chars, kLeft, kRight));
}

template <Case kCase>
Value str_case(Interpreter& in, const Value& self, Slots&) {
  in.charge(self.text().size() / 8);
  return in.text(change_case(self.text(), kCase));
}

Value texts(Interpreter& in, std::vector<MarkedText> parts) {
  List items;
  for (MarkedText& part : parts) items.push_back(in.text(std::move(part)));
  return in.list(std::move(items));
}

// Pieces between runs of white space.
std::vector<MarkedText> split_blank(const MarkedText& s, int64_t count) {
  std::vector<MarkedText> parts;
  size_t pos = 0;
  auto skip = [&](bool space) {
    while (pos < s.size() && is_space(code_point_at(s.view(), pos)) == space) pos += char_length(s.view(), pos);
  };
  for (skip(true); pos < s.size(); skip(true)) {
    const size_t begin = pos;
    if (count-- == 0) {
      parts.push_back(s.sub(begin, s.size()));
      break;
    }
    skip(false);
    parts.push_back(s.sub(begin, pos));
  }
  return parts;
}

std::vector<MarkedText> rsplit_blank(const MarkedText& s, int64_t count) {
  std::vector<MarkedText> parts;
  size_t end = s.size();
  auto previous = [&](size_t at) {
    do --at;
    while (at > 0 && (static_cast<unsigned char>(s.bytes()[at]) & 0xC0) == 0x80);
    return at;
  };
  auto skip = [&](bool space) {
    while (end > 0 && is_space(code_point_at(s.view(), previous(end))) == space) end = previous(end);
  };
  for (skip(true); end > 0; skip(true)) {
    const size_t stop = end;
    if (count-- == 0) {
      parts.push_back(s.sub(0, stop));
      break;
    }
    skip(false);
    parts.push_back(s.sub(end, stop));
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Value str_split(Interpreter& in, const Value& self, Slots& a) {
  const MarkedText& s = self.text();
  int64_t count = a.integer(1, -1);
  if (!a.set(0)) return texts(in, split_blank(s, count));
  const MarkedText& separator = a.text(0);
  if (separator.empty()) fail("empty separator");
  std::vector<MarkedText> parts;
  size_t pos = 0;
  for (; count != 0; --count) {
    size_t hit = find_text(in, s.view(), separator.view(), pos);
    if (hit == kNone) break;
    in.charge(2);
    parts.push_back(s.sub(pos, hit));
    pos = hit + separator.size();
  }
  parts.push_back(s.sub(pos, s.size()));
  return texts(in, std::move(parts));
}

size_t rfind_text(Interpreter& in, std::string_view text, std::string_view needle) {
  in.charge(1 + text.size() / 64 * (1 + std::min<size_t>(needle.size(), 4096) / 16));
  return text.rfind(needle);
}

Value str_rsplit(Interpreter& in, const Value& self, Slots& a) {
  const MarkedText& s = self.text();
  int64_t count = a.integer(1, -1);
  if (count < 0) return str_split(in, self, a);
  if (!a.set(0)) return texts(in, rsplit_blank(s, count));
  const MarkedText& separator = a.text(0);
  if (separator.empty()) fail("empty separator");
  std::vector<MarkedText> parts;
  size_t end = s.size();
  for (; count != 0; --count) {
    size_t hit = rfind_text(in, s.view().substr(0, end), separator.view());
    if (hit == kNone) break;
    parts.push_back(s.sub(hit + separator.size(), end));
    end = hit;
  }
  parts.push_back(s.sub(0, end));
  std::reverse(parts.begin(), parts.end());
  return texts(in, std::move(parts));
}

Value str_splitlines(Interpreter& in, const Value& self, Slots& a) {
  in.charge(self.text().size() / 8);
  return texts(in, split_lines(self.text(), a.flag(0, false)));
}

// The bytes of self[start:stop] for the methods that take them as arguments 1 and 2; nullopt: start beyond the end.
struct Window {
  size_t begin, end;
  int64_t first_char;
};
std::optional<Window> window(const Value& self, const Slots& a) {
  std::string_view s = self.view();
  if (!a.set(1) && !a.set(2)) return Window{0, s.size(), 0};
  const auto n = static_cast<int64_t>(count_chars(s));
  int64_t start = a.integer(1, 0), stop = a.integer(2, n);
  if (start < 0) start = std::max<int64_t>(0, start + n);
  if (stop < 0) stop = std::max<int64_t>(0, stop + n);
  stop = std::min(stop, n);
  if (start > stop) return std::nullopt;
  Window w{0, 0, start};
  size_t pos = 0;
  for (int64_t i = 0; i < stop; ++i) {
    if (i == start) w.begin = pos;
    pos += char_length(s, pos);
  }
  if (start == stop) w.begin = pos;
  w.end = pos;
  return w;
}

template <bool kStart>
Value str_affix(Interpreter& in, const Value& self, Slots& a) {
  List candidates;
  if (a.at(0).is(Type::kSequence) && a.at(0).sequence().kind == Kind::kTuple)
    candidates = a.at(0).sequence().items;
  else
    candidates.push_back(a.at(0));
  auto w = window(self, a);
  for (const Value& affix : candidates) {
    in.charge(1);
    if (affix.is_undefined()) fail_undefined(affix);
    if (!affix.is_string()) fail("startswith and endswith take a str or a tuple of str, not {}", type_name(affix));
    if (!w) continue;
    std::string_view part = self.view().substr(w->begin, w->end - w->begin);
    if (kStart ? part.starts_with(affix.view()) : part.ends_with(affix.view())) return Value(true);
  }
  return Value(false);
}

template <bool kReverse, bool kMustFind>
Value str_find(Interpreter& in, const Value& self, Slots& a) {
  auto w = window(self, a);
  size_t hit = kNone;
  std::string_view needle = a.text(0).view();
  std::string_view part;
  if (w) {
    part = self.view().substr(w->begin, w->end - w->begin);
    hit = kReverse ? rfind_text(in, part, needle) : find_text(in, part, needle, 0);
  }
  if (hit != kNone) return Value(w->first_char + static_cast<int64_t>(count_chars(part.substr(0, hit))));
  if (kMustFind) fail("substring not found");
  return Value(int64_t{-1});
}

Value str_count(Interpreter& in, const Value& self, Slots& a) {
  auto w = window(self, a);
  if (!w) return Value(int64_t{0});
  std::string_view part = self.view().substr(w->begin, w->end - w->begin), needle = a.text(0).view();
  if (needle.empty()) return make_int(count_chars(part) + 1);
  size_t n = 0;
  for (size_t pos = find_text(in, part, needle, 0); pos != kNone;
       pos = find_text(in, part, needle, pos + needle.size()))
    ++n;
  return make_int(n);
}

Value str_replace(Interpreter& in, const Value& self, Slots& a) {
  return in.text(replace_text(in, self.text(), a.text(0), a.text(1), a.integer(2, -1)));
}

Value str_join(Interpreter& in, const Value& self, Slots& a) {
  if (a.at(0).is_undefined()) return in.text({});
  List items = in.items_of(a.at(0));
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string()) fail("sequence item {}: expected str instance, {} found", i, type_name(items[i]));
  }
  return in.text(join_text(in, items, self.text()));
}

Value str_format(Interpreter& in, const Value& self, Slots& a) { return brace_format(in, self.text(), a.rest); }

Value str_format_map(Interpreter& in, const Value& self, Slots& a) {
  if (!a.at(0).is(Type::kDict)) fail("format_map() takes a mapping, not {}", type_name(a.at(0)));
  in.charge(a.at(0).dict().size());
  CallArgs args;
  for (const auto& [key, value] : a.at(0).dict().entries()) {
    if (key.is_string()) args.keywords.push_back({key.string_ptr(), value});
  }
  return brace_format(in, self.text(), args);
}

Value str_expandtabs(Interpreter& in, const Value& self, Slots& a) {
  constexpr int64_t kTabMax = 1000;
  const int64_t width = a.integer(0, 8);
  if (width > kTabMax) fail("expandtabs() is limited to {} columns", kTabMax);
  const MarkedText& s = self.text();
  in.charge(s.size() / 8);
  MarkedText out;
  int64_t column = 0;
  for (size_t pos = 0; pos < s.size();) {
    const size_t n = char_length(s.view(), pos);
    const char c = s.bytes()[pos];
    if (c == '\t') {
      const int64_t blanks = width > 0 ? width - column % width : 0;
      in.charge(1 + static_cast<uint64_t>(blanks));
      out.append(std::string(static_cast<size_t>(blanks), ' '), s.trusted_at(pos));
      column += blanks;
    } else {
      out.append(s, pos, pos + n);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    if (out.size() > in.limits().text_bytes) in.charge_text(out.size());
    pos += n;
  }
  return in.text(std::move(out));
}

template <bool (*kIs)(char32_t)>
Value str_all(Interpreter& in, const Value& self, Slots&) {
  std::string_view s = self.view();
  in.charge(s.size() / 8);
  for (size_t pos = 0; pos < s.size(); pos += char_length(s, pos)) {
    if (!kIs(code_point_at(s, pos))) return Value(false);
  }
  return Value(!s.empty());
}
bool is_alnum(char32_t c) { return is_alpha(c) || is_digit(c); }
bool is_ascii(char32_t c) { return c < 0x80; }

// isupper, islower: at least one cased character and none of the other case.
template <bool (*kWanted)(char32_t), bool (*kOther)(char32_t)>
Value str_cased(Interpreter& in, const Value& self, Slots&) {
  std::string_view s = self.view();
  in.charge(s.size() / 8);
  bool any = false;
  for (size_t pos = 0; pos < s.size(); pos += char_length(s, pos)) {
    const char32_t c = code_point_at(s, pos);
    if (kOther(c)) return Value(false);
    any = any || kWanted(c);
  }
  return Value(any);
}

// Words begin in upper case and go on in lower case.
Value str_istitle(Interpreter& in, const Value& self, Slots&) {
  std::string_view s = self.view();
  in.charge(s.size() / 8);
  bool any = false, inside = false;
  for (size_t pos = 0; pos < s.size(); pos += char_length(s, pos)) {
    const char32_t c = code_point_at(s, pos);
    const bool upper = is_upper(c), lower = is_lower(c);
    if ((upper && inside) || (lower && !inside)) return Value(false);
    inside = upper || lower;
    any |= inside;
  }
  return Value(any);
}

Value str_isprintable(Interpreter& in, const Value& self, Slots& a) {
  return self.text().empty() ? Value(true) : str_all<is_printable>(in, self, a);
}

Value str_isidentifier(Interpreter& in, const Value& self, Slots&) {
  std::string_view s = self.view();
  in.charge(s.size() / 8);
  for (size_t pos = 0; pos < s.size(); pos += char_length(s, pos)) {
    const char32_t c = code_point_at(s, pos);
    if (c != '_' && !is_alpha(c) && (pos == 0 || !is_decimal(c))) return Value(false);
  }
  return Value(!s.empty());
}

Value str_removeprefix(Interpreter& in, const Value& self, Slots& a) {
  const MarkedText& s = self.text();
  return s.view().starts_with(a.text(0).view()) ? in.text(s.sub(a.text(0).size(), s.size())) : self;
}
Value str_removesuffix(Interpreter& in, const Value& self, Slots& a) {
  const MarkedText& s = self.text();
  return s.view().ends_with(a.text(0).view()) ? in.text(s.sub(0, s.size() - a.text(0).size())) : self;
}

enum class Align { kLeft, kRight, kCenter };
template <Align kAlign>
Value str_pad(Interpreter& in, const Value& self, Slots& a) {
  const int64_t width = a.integer(0, 0), n = static_cast<int64_t>(count_chars(self.view()));
  MarkedText fill(" ", true);
  if (a.has(1)) fill = a.text(1);
  if (count_chars(fill.view()) != 1) fail("the fill character must be exactly one character long");
  if (width <= n) return self;
  const auto total = static_cast<size_t>(width - n);
  size_t left = kAlign == Align::kLeft ? 0 : total;
  if (kAlign == Align::kCenter) left = total / 2 + (total & static_cast<size_t>(width) & 1);
  return in.text(pad_text(in, self.text(), left, total - left, fill));
}

Value str_zfill(Interpreter& in, const Value& self, Slots& a) {
  const int64_t width = a.integer(0, 0), n = static_cast<int64_t>(count_chars(self.view()));
  if (width <= n) return self;
  const MarkedText& s = self.text();
  const size_t sign = !s.empty() && (s.bytes()[0] == '-' || s.bytes()[0] == '+') ? 1 : 0;
  MarkedText out = s.sub(0, sign);
  out.append(pad_text(in, s.sub(sign, s.size()), static_cast<size_t>(width - n), 0, MarkedText("0", true)));
  return in.text(std::move(out));
}

template <bool kReverse>
Value str_partition(Interpreter& in, const Value& self, Slots& a) {
  const MarkedText &s = self.text(), &separator = a.text(0);
  if (separator.empty()) fail("empty separator");
  size_t hit = kReverse ? rfind_text(in, s.view(), separator.view()) : find_text(in, s.view(), separator.view(), 0);
  MarkedText empty;
  if (hit == kNone) {
    return kReverse ? in.tuple({in.text(empty), in.text(empty), self})
                    : in.tuple({self, in.text(empty), in.text(empty)});
  }
  size_t after = hit + separator.size();
  return in.tuple({in.text(s.sub(0, hit)), in.text(s.sub(hit, after)), in.text(s.sub(after, s.size()))});
}

constexpr Builtin kStringMethods[] = {
    {"strip", "chars", 0, str_strip<true, true>},
    {"lstrip", "chars", 0, str_strip<true, false>},
    {"rstrip", "chars", 0, str_strip<false, true>},
    {"split", "sep maxsplit", 0, str_split},
    {"rsplit", "sep maxsplit", 0, str_rsplit},
    {"splitlines", "keepends", 0, str_splitlines},
    {"upper", "", 0, str_case<Case::kUpper>},
    {"lower", "", 0, str_case<Case::kLower>},
    {"casefold", "", 0, str_case<Case::kFold>},
    {"title", "", 0, str_case<Case::kTitle>},
    {"capitalize", "", 0, str_case<Case::kCapitalize>},
    {"swapcase", "", 0, str_case<Case::kSwap>},
    {"startswith", "prefix start end", 1, str_affix<true>},
    {"endswith", "suffix start end", 1, str_affix<false>},
    {"find", "sub start end", 1, str_find<false, false>},
    {"rfind", "sub start end", 1, str_find<true, false>},
    {"index", "sub start end", 1, str_find<false, true>},
    {"rindex", "sub start end", 1, str_find<true, true>},
    {"count", "sub start end", 1, str_count},
    {"replace", "old new count", 2, str_replace},
    {"join", "iterable", 1, str_join},
    {"format", "* **", 0, str_format},
    {"format_map", "mapping", 1, str_format_map},
    {"expandtabs", "tabsize", 0, str_expandtabs},
    {"isdigit", "", 0, str_all<is_digit>},
    {"isdecimal", "", 0, str_all<is_decimal>},
    {"isnumeric", "", 0, str_all<is_numeric>},
    {"isalpha", "", 0, str_all<is_alpha>},
    {"isalnum", "", 0, str_all<is_alnum>},
    {"isspace", "", 0, str_all<is_space>},
    {"isascii", "", 0, str_all<is_ascii>},
    {"isupper", "", 0, str_cased<is_upper, is_lower>},
    {"islower", "", 0, str_cased<is_lower, is_upper>},
    {"istitle", "", 0, str_istitle},
    {"isprintable", "", 0, str_isprintable},
    {"isidentifier", "", 0, str_isidentifier},
    {"removeprefix", "prefix", 1, str_removeprefix},
    {"removesuffix", "suffix", 1, str_removesuffix},
    {"ljust", "width fillchar", 1, str_pad<Align::kLeft>},
    {"rjust", "width fillchar", 1, str_pad<Align::kRight>},
    {"center", "width fillchar", 1, str_pad<Align::kCenter>},
    {"zfill", "width", 1, str_zfill},
    {"partition", "sep", 1, str_partition<false>},
    {"rpartition", "sep", 1, str_partition<true>},
};

// --- dicts ---

Value dict_get(Interpreter& in, const Value& self, Slots& a) {
  charge_walk(in, a.at(0));
  const Value* found = self.dict().find(a.at(0));
  return found ? *found : a.value_or(1, Value());
}

template <Kind kKind>
Value dict_view(Interpreter& in, const Value& self, Slots&) {
  List items;
  for (const auto& [key, value] : self.dict().entries()) {
    if (kKind == Kind::kDictItems)
      items.push_back(in.tuple({key, value}));
    else
      items.push_back(kKind == Kind::kDictKeys ? key : value);
  }
  return in.sequence(kKind, std::move(items));
}

Value copy_of(Interpreter&, const Value& self, Slots&) { return self; }

constexpr Builtin kDictMethods[] = {
    {"get", "key default", 1, dict_get},
    {"items", "", 0, dict_view<Kind::kDictItems>},
    {"keys", "", 0, dict_view<Kind::kDictKeys>},
    {"values", "", 0, dict_view<Kind::kDictValues>},
    {"copy", "", 0, copy_of},
};

// --- lists, tuples, ranges ---

Value sequence_count(Interpreter& in, const Value& self, Slots& a) {
  size_t n = 0;
  for (const Value& item : self.sequence().items) n += in.compare(Op::kEq, item, a.at(0)) ? 1 : 0;
  return make_int(n);
}

Value sequence_index(Interpreter& in, const Value& self, Slots& a) {
  const List& items = self.sequence().items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (in.compare(Op::kEq, items[i], a.at(0))) return make_int(i);
  }
  fail("the value is not in the {}", type_name(self));
}

constexpr Builtin kSequenceMethods[] = {
    {"count", "value", 1, sequence_count},
    {"index", "value", 1, sequence_index},
    {"copy", "", 0, copy_of},
};

}  // namespace

std::span<const Builtin> string_methods() { return kStringMethods; }

std::optional<Value> bound_method(Interpreter& in, const Value& self, std::string_view name) {
  std::span<const Builtin> table;
  if (self.is_string())
    table = kStringMethods;
  else if (self.is(Type::kDict))
    table = kDictMethods;
  else if (self.is(Type::kSequence) && self.sequence().indexable())
    table = kSequenceMethods;
  if (self.is(Type::kSequence) && name == "copy" && self.sequence().kind != Kind::kList) return std::nullopt;
  for (const Builtin& method : table) {
    if (method.name != name) continue;
    in.charge(1);
    return Value(ObjectPtr(std::make_shared<BuiltinFunction>(method, self)));
  }
  return std::nullopt;
}

}  // namespace motley::jinja
