// "..." % values and "...".format(...), as Python's.
#include <algorithm>
#include <cmath>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
using Kind = Sequence::Kind;

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

// One conversion, from either language of formats.
struct Spec {
  std::string fill = " ";
  char align = 0;   // '<', '>', '^', '=' or 0: the type's own
  char sign = '-';  // '+', '-' or ' '
  bool alternate = false;
  char group = 0;  // ',' or '_' between every three digits
  size_t width = 0;
  std::optional<size_t> precision;
  char type = 0;
};

size_t take_count(std::string_view text, size_t& pos) {
  size_t n = 0;
  while (pos < text.size() && is_ascii_digit(text[pos])) {
    n = n * 10 + static_cast<size_t>(text[pos++] - '0');
    if (n > kFormatWidthMax) fail("width and precision in a format are limited to {}", kFormatWidthMax);
  }
  return n;
}

void append_padded(MarkedText& out, const MarkedText& text, const Spec& spec, char own_align) {
  const size_t n = count_chars(text.view());
  const size_t pad = spec.width > n ? spec.width - n : 0;
  const char align = spec.align ? spec.align : own_align;
  const size_t left = align == '>' ? pad : align == '^' ? pad / 2 : 0;
  for (size_t i = 0; i < left; ++i) out.append(spec.fill, true);
  out.append(text);
  for (size_t i = left; i < pad; ++i) out.append(spec.fill, true);
}

void append_number(MarkedText& out, bool negative, std::string_view prefix, std::string digits, const Spec& spec) {
  if (spec.group != 0) {
    size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
    for (size_t i = end; i > 3;) digits.insert(i -= 3, 1, spec.group);
  }
  std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  const size_t n = sign.size() + prefix.size() + digits.size();
  if (spec.align == '=' && spec.width > n) {
    std::string padding;
    for (size_t i = n; i < spec.width; ++i) padding += spec.fill;
    digits = padding + digits;
  }
  append_padded(out, MarkedText(sign.append(prefix).append(digits), true), spec, '>');
}

void append_integer(MarkedText& out, int64_t v, const Spec& spec) {
  const uint64_t magnitude = v < 0 ? 0 - static_cast<uint64_t>(v) : static_cast<uint64_t>(v);
  std::string digits, prefix;
  switch (spec.type) {
    case 'x':
      digits = fmt::format("{:x}", magnitude);
      prefix = "0x";
      break;
    case 'X':
      digits = fmt::format("{:X}", magnitude);
      prefix = "0X";
      break;
    case 'o':
      digits = fmt::format("{:o}", magnitude);
      prefix = "0o";
      break;
    case 'b':
      digits = fmt::format("{:b}", magnitude);
      prefix = "0b";
      break;
    default: digits = std::to_string(magnitude);
  }
  if (spec.precision && digits.size() < *spec.precision) digits.insert(0, *spec.precision - digits.size(), '0');
  append_number(out, v < 0, spec.alternate ? prefix : "", digits, spec);
}

void append_float(MarkedText& out, double v, const Spec& spec) {
  const bool upper = spec.type >= 'A' && spec.type <= 'Z';
  const double magnitude = std::abs(v);
  std::string digits;
  if (!std::isfinite(v)) {
    digits = std::isnan(v) ? (upper ? "NAN" : "nan") : (upper ? "INF" : "inf");
  } else if (spec.type == 0 && !spec.precision) {
    digits = float_repr(magnitude);
  } else {
    const int precision = static_cast<int>(spec.precision.value_or(6));
    switch (spec.type | 0x20) {
      case 'f':
        digits = spec.alternate ? fmt::format("{:#.{}f}", magnitude, precision)
                                : fmt::format("{:.{}f}", magnitude, precision);
        break;
      case 'e': digits = fmt::format("{:.{}e}", magnitude, precision); break;
      case '%': digits = fmt::format("{:.{}f}%", magnitude * 100, precision); break;
      default:
        digits = spec.alternate ? fmt::format("{:#.{}g}", magnitude, std::max(precision, 1))
                                : fmt::format("{:.{}g}", magnitude, std::max(precision, 1));
    }
    if (upper)
      std::transform(digits.begin(), digits.end(), digits.begin(),
                     [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  }
  append_number(out, std::signbit(v) && !std::isnan(v), "", digits, spec);
}

bool is_float_type(char c) { return std::string_view("eEfFgG%").find(c) != std::string_view::npos; }

MarkedText cut(const MarkedText& text, const std::optional<size_t>& precision) {
  if (!precision) return text;
  size_t pos = 0;
  for (size_t i = 0; i < *precision && pos < text.size(); ++i) pos += char_length(text.view(), pos);
  return text.sub(0, pos);
}

MarkedText repr_of(Interpreter& in, const Value& v) {
  MarkedText text;
  append_repr(text, v);
  in.charge_text(text.size());
  return text;
}

MarkedText char_of(int64_t c) {
  std::string bytes;
  if (c < 0 || c > 0x10FFFF || !append_utf8(bytes, static_cast<char32_t>(c))) fail("%c arg not in range(0x110000)");
  return MarkedText(bytes, true);
}

// --- percent formats ---

class PercentFormatter {
 public:
  PercentFormatter(Interpreter& in, const MarkedText& format, const Value& values)
      : in_(in), format_(format), values_(values) {
    if (values.is(Type::kSequence) && values.sequence().kind == Kind::kTuple)
      items_ = in.items_of(values);
    else
      items_.push_back(values);
  }

  MarkedText run() {
    std::string_view text = format_.view();
    while (pos_ < text.size()) {
      size_t percent = std::min(text.find('%', pos_), text.size());
      out_.append(format_, pos_, percent);
      pos_ = percent;
      if (pos_ < text.size()) convert();
      if (out_.size() > in_.limits().text_bytes) in_.charge_text(out_.size());
    }
    const bool leftovers_allowed =
        named_ || values_.is(Type::kDict) || (values_.is(Type::kSequence) && values_.sequence().kind != Kind::kTuple);
    if (used_ < items_.size() && !leftovers_allowed) fail("not all arguments converted during string formatting");
    return std::move(out_);
  }

 private:
  char peek() const {
    if (pos_ >= format_.size()) fail("incomplete format");
    return format_.bytes()[pos_];
  }

  Value next_value() {
    if (used_ >= items_.size()) fail("not enough arguments for format string");
    return items_[used_++];
  }

  void convert() {
    in_.charge(1);
    ++pos_;
    Value value;
    bool have = false;
    if (peek() == '(') {
      size_t close = format_.bytes().find(')', pos_);
      if (close == std::string::npos) fail("incomplete format key");
      if (!values_.is(Type::kDict)) fail("format requires a mapping");
      const Value* found = values_.dict().find(format_.view().substr(pos_ + 1, close - pos_ - 1));
      if (found == nullptr) fail("the format names a key that is missing");
      value = *found;
      have = named_ = true;
      pos_ = close + 1;
    }
    Spec spec;
    read_flags(spec);
    const char type = peek();
    ++pos_;
    if (type == '%') return out_.append("%", true);
    if (!have) value = next_value();
    emit(type, spec, value);
  }

  void read_flags(Spec& spec) {
    for (;; ++pos_) {
      const char c = peek();
      if (c == '-')
        spec.align = '<';
      else if (c == '+')
        spec.sign = '+';
      else if (c == ' ')
        spec.sign = spec.sign == '+' ? '+' : ' ';
      else if (c == '#')
        spec.alternate = true;
      else if (c == '0')
        zero_ = true;
      else
        break;
    }
    const int64_t width = read_count();
    if (width < 0) spec.align = '<';
    spec.width = static_cast<size_t>(std::abs(width));
    if (peek() == '.') {
      ++pos_;
      spec.precision = static_cast<size_t>(std::max<int64_t>(read_count(), 0));
    }
    while (peek() == 'l' || peek() == 'h' || peek() == 'L') ++pos_;
    if (std::exchange(zero_, false) && spec.align != '<') zero_padded_ = true;
  }

  // Digits, or '*': the next value.
  int64_t read_count() {
    if (peek() != '*') return static_cast<int64_t>(take_count(format_.view(), pos_));
    ++pos_;
    const Value v = next_value();
    if (!v.is_integral()) fail("* wants int");
    if (v.integer() < -int64_t{kFormatWidthMax} || v.integer() > int64_t{kFormatWidthMax}) {
      fail("width and precision in a format are limited to {}", kFormatWidthMax);
    }
    return v.integer();
  }

  void emit(char type, Spec& spec, const Value& value) {
    const bool zero = std::exchange(zero_padded_, false);
    if (type == 's' || type == 'r' || type == 'a') {
      MarkedText text = type == 's' ? in_.str(value) : repr_of(in_, value);
      return append_padded(out_, cut(text, spec.precision), spec, '>');
    }
    if (type == 'c') return emit_char(spec, value);
    if (zero) {
      spec.fill = "0";
      spec.align = '=';
    }
    if (value.is_undefined()) fail_undefined(value);
    const bool integer_type = std::string_view("diuxXo").find(type) != std::string_view::npos;
    if (!integer_type && !is_float_type(type)) fail("unsupported format character '{}'", type);
    if (!value.is_number()) fail("%{} format: a number is required, not {}", type, type_name(value));
    if (!integer_type) {
      spec.type = type;
      return append_float(out_, value.number(), spec);
    }
    const bool decimal = type == 'd' || type == 'i' || type == 'u';
    if (!decimal && value.is(Type::kFloat)) fail("%{} format: an integer is required, not float", type);
    spec.type = decimal ? 'd' : type;
    append_integer(out_, (value.is(Type::kFloat) ? float_to_int(value.number()) : value).integer(), spec);
  }

  void emit_char(const Spec& spec, const Value& value) {
    MarkedText text;
    if (value.is_integral()) {
      text = char_of(value.integer());
    } else if (value.is_string() && count_chars(value.view()) == 1) {
      text = value.text();
    } else {
      fail("%c requires int or char");
    }
    append_padded(out_, text, spec, '>');
  }

  Interpreter& in_;
  const MarkedText& format_;
  const Value& values_;
  List items_;
  MarkedText out_;
  size_t pos_ = 0, used_ = 0;
  bool named_ = false, zero_ = false, zero_padded_ = false;
};

// --- brace formats ---

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t pos = 0;
  auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!text.empty()) {
    size_t first = char_length(text, 0);
    if (first < text.size() && is_align(text[first])) {
      spec.fill = text.substr(0, first);
      spec.align = text[first];
      pos = first + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      pos = 1;
    }
  }
  auto take = [&](char c) { return pos < text.size() && text[pos] == c ? (++pos, true) : false; };
  for (char c : {'+', '-', ' '}) {
    if (take(c)) {
      spec.sign = c;
      break;
    }
  }
  spec.alternate = take('#');
  if (take('0') && spec.align == 0) {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = take_count(text, pos);
  for (char c : {',', '_'}) {
    if (spec.group == 0 && take(c)) spec.group = c;
  }
  if (take('.')) {
    if (pos >= text.size() || !is_ascii_digit(text[pos])) fail("Format specifier missing precision");
    spec.precision = take_count(text, pos);
  }
  if (pos < text.size()) spec.type = text[pos++];
  if (pos != text.size()) fail("Invalid format specifier");
  return spec;
}

void append_formatted(Interpreter& in, MarkedText& out, const Value& v, std::string_view spec_text) {
  if (spec_text.empty()) return append_str(out, v);
  Spec spec = parse_spec(spec_text);
  if (v.is_string()) {
    if ((spec.type != 0 && spec.type != 's') || spec.align == '=') fail("Unknown format code for object of type 'str'");
    return append_padded(out, cut(v.text(), spec.precision), spec, '<');
  }
  if (!v.is_number()) fail("unsupported format string passed to {}.__format__", type_name(v));
  static_cast<void>(in);
  if (spec.type == 'c' && v.is_integral()) return append_padded(out, char_of(v.integer()), spec, '<');
  const bool integer = v.is_integral() && !is_float_type(spec.type);
  if (integer) {
    if (spec.precision) fail("Precision not allowed in integer format specifier");
    if (spec.type != 0 && std::string_view("dxXobn").find(spec.type) == std::string_view::npos)
      fail("Unknown format code '{}' for object of type 'int'", spec.type);
    return append_integer(out, v.integer(), spec);
  }
  if (spec.type != 0 && !is_float_type(spec.type))
    fail("Unknown format code '{}' for object of type 'float'", spec.type);
  append_float(out, v.number(), spec);
}

class BraceFormatter {
 public:
  BraceFormatter(Interpreter& in, const MarkedText& format, const CallArgs& args)
      : in_(in), format_(format), args_(args) {}

  MarkedText run() {
    std::string_view text = format_.view();
    for (size_t pos = 0; pos < text.size();) {
      size_t brace = std::min(text.find_first_of("{}", pos), text.size());
      out_.append(format_, pos, brace);
      pos = brace;
      if (pos == text.size()) break;
      in_.charge(1);
      if (text.substr(pos, 2) == "{{" || text.substr(pos, 2) == "}}") {
        out_.append(format_, pos, pos + 1);
        pos += 2;
        continue;
      }
      if (text[pos] == '}') fail("Single '}}' encountered in format string");
      const size_t close = close_of(text, pos);
      field(text.substr(pos + 1, close - pos - 1));
      if (out_.size() > in_.limits().text_bytes) in_.charge_text(out_.size());
      pos = close + 1;
    }
    return std::move(out_);
  }

 private:
  // The '}' of the '{' at `open`.
  static size_t close_of(std::string_view text, size_t open) {
    size_t depth = 0;
    for (size_t i = open; i < text.size(); ++i) {
      if (text[i] == '{') ++depth;
      if (text[i] == '}' && --depth == 0) return i;
    }
    fail("expected '}}' before end of string");
  }

  // A format's own fields stand for parts of it; they have none in turn.
  std::string expanded(std::string_view spec) {
    std::string out;
    for (size_t pos = 0; pos < spec.size();) {
      if (spec[pos] != '{') {
        out += spec[pos++];
        continue;
      }
      in_.charge(1);
      const size_t close = close_of(spec, pos);
      const std::string_view inner = spec.substr(pos + 1, close - pos - 1);
      if (inner.find_first_of("{:!") != std::string_view::npos) fail("a field within a format must be a plain name");
      MarkedText text;
      append_str(text, resolve(inner));
      if (text.size() > kFormatWidthMax) fail("a format is limited to {} characters", kFormatWidthMax);
      out += text.bytes();
      pos = close + 1;
    }
    return out;
  }

  void field(std::string_view text) {
    size_t colon = std::min(text.find(':'), text.size());
    std::string_view head = text.substr(0, colon);
    size_t bang = std::min(head.find('!'), head.size());
    std::string_view conversion = head.substr(bang);
    Value v = resolve(head.substr(0, bang));
    if (conversion == "!r")
      v = in_.text(repr_of(in_, v));
    else if (conversion == "!s")
      v = in_.text(in_.str(v));
    else if (!conversion.empty())
      fail("Unknown conversion specifier");
    append_formatted(in_, out_, v, expanded(text.substr(std::min(colon + 1, text.size()))));
  }

  Value resolve(std::string_view path) {
    size_t end = std::min(path.find_first_of(".["), path.size());
    Value v = argument(path.substr(0, end));
    path.remove_prefix(end);
    while (!path.empty()) {
      in_.charge(1);
      const bool bracket = path[0] == '[';
      size_t stop = bracket ? path.find(']') : std::min(path.find_first_of(".[", 1), path.size());
      if (stop == std::string_view::npos) fail("Missing ']' in format string");
      std::string_view name = path.substr(1, stop - 1);
      path.remove_prefix(bracket ? stop + 1 : stop);
      if (name.empty()) fail("Empty attribute in format string");
      if (!bracket) {
        v = in_.attribute(v, name);
      } else {
        auto index = is_ascii_digit(name[0]) ? parse_int(name, 10) : std::nullopt;
        v = in_.item(v, index ? Value(*index) : Value::literal(name));
      }
      if (v.is_undefined()) fail_undefined(v);
    }
    return v;
  }

  Value argument(std::string_view name) {
    const bool automatic = name.empty();
    if (automatic || is_ascii_digit(name[0])) {
      if (used_automatic_ && *used_automatic_ != automatic) fail("cannot mix automatic and manual field numbering");
      used_automatic_ = automatic;
      const int64_t i = automatic ? next_++ : parse_int(name, 10).value_or(-1);
      if (i < 0 || static_cast<uint64_t>(i) >= args_.positional.size()) {
        fail("Replacement index {} out of range for positional args tuple", i);
      }
      return args_.positional[static_cast<size_t>(i)];
    }
    for (const Keyword& keyword : args_.keywords) {
      if (keyword.name->view() == name) return keyword.value;
    }
    fail("the format names the argument '{}', which is missing", name);
  }

  Interpreter& in_;
  const MarkedText& format_;
  const CallArgs& args_;
  MarkedText out_;
  int64_t next_ = 0;
  std::optional<bool> used_automatic_;
};

}  // namespace

Value percent_format(Interpreter& in, const MarkedText& format, const Value& values) {
  return in.text(PercentFormatter(in, format, values).run());
}

Value brace_format(Interpreter& in, const MarkedText& format, const CallArgs& args) {
  return in.text(BraceFormatter(in, format, args).run());
}

}  // namespace motley::jinja
