// Filters over one value: texts and numbers.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;

template <Case kCase>
Value filter_case(Interpreter& in, const Value& v, Slots&) {
  MarkedText text = soft_text(in, v);
  in.charge(text.size() / 8);
  return in.text(change_case(text, kCase));
}

// Jinja's own idea of words: they begin after white space, '-' and opening brackets.
Value filter_title(Interpreter& in, const Value& v, Slots&) {
  MarkedText text = soft_text(in, v), out;
  in.charge(text.size() / 8);
  bool word_start = true;
  size_t pos = 0;
  for (const MarkedText::Run& run : text.runs()) {
    std::string piece;
    for (; pos < run.end; pos += char_length(text.view(), pos)) {
      const char32_t c = code_point_at(text.view(), pos);
      const bool breaks = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
      word_start ? append_upper(piece, c) : append_lower(piece, c);
      word_start = breaks;
    }
    out.append(piece, run.trusted);
  }
  return in.text(std::move(out));
}

Value filter_trim(Interpreter& in, const Value& v, Slots& a) {
  MarkedText text = soft_text(in, v);
  if (a.set(0) && a.text(0).empty()) return in.text(std::move(text));
  std::string_view chars = a.set(0) ? a.text(0).view() : std::string_view();
  in.charge(text.size() / 64 * (1 + chars.size()));
  return in.text(strip_text(text, chars, true, true));
}

Value filter_replace(Interpreter& in, const Value& v, Slots& a) {
  MarkedText text = soft_text(in, v), from = soft_text(in, a.at(0)), to = soft_text(in, a.at(1));
  return in.text(replace_text(in, text, from, to, a.integer(2, -1)));
}

Value filter_indent(Interpreter& in, const Value& v, Slots& a) {
  MarkedText text = soft_text(in, v), indent;
  if (a.has(0) && a.at(0).is_string()) {
    indent = a.at(0).text();
  } else {
    const int64_t width = a.integer(0, 4);
    if (width > int64_t{kFormatWidthMax}) fail("indent is limited to {} characters", kFormatWidthMax);
    indent = MarkedText(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '), true);
  }
  text.append("\n", true);
  const bool first = a.flag(1, false), blank = a.flag(2, false);
  MarkedText out;
  size_t index = 0;
  for (const MarkedText& line : split_lines(text, false)) {
    if (index > 0) out.append("\n", true);
    if (index == 0 ? first : blank || !line.empty()) {
      in.charge(1 + indent.size() / 64);
      out.append(indent);
    }
    out.append(line);
    if (out.size() > in.limits().text_bytes) in.charge_text(out.size());
    ++index;
  }
  return in.text(std::move(out));
}

Value filter_format(Interpreter& in, const Value& v, Slots& a) {
  if (!a.rest.positional.empty() && !a.rest.keywords.empty())
    fail("format takes positional or keyword arguments, not both");
  MarkedText text = soft_text(in, v);
  if (a.rest.keywords.empty()) return percent_format(in, text, in.tuple(std::move(a.rest.positional)));
  Dict values;
  for (const Keyword& keyword : a.rest.keywords) values.set(Value(keyword.name), keyword.value);
  return percent_format(in, text, in.dict(std::move(values)));
}

Value filter_string(Interpreter& in, const Value& v, Slots&) { return v.is_string() ? v : in.text(in.str(v)); }

Value filter_escape(Interpreter& in, const Value& v, Slots&) {
  static constexpr std::string_view kFrom = "&<>\"'";
  static constexpr std::string_view kTo[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
  MarkedText text = soft_text(in, v), out;
  in.charge(text.size() / 8);
  size_t pos = 0;
  for (const MarkedText::Run& run : text.runs()) {
    std::string piece;
    for (; pos < run.end; ++pos) {
      size_t i = kFrom.find(text.bytes()[pos]);
      if (i == std::string_view::npos)
        piece += text.bytes()[pos];
      else
        piece += kTo[i];
    }
    out.append(piece, run.trusted);
  }
  return in.text(std::move(out));
}

// `query`: a part of a query string, in which a blank is '+' and '/' is not plain.
void append_quoted(Interpreter& in, MarkedText& out, const MarkedText& text, bool query) {
  in.charge(text.size() / 8);
  const std::string_view signs = query ? "_.-~" : "_.-~/";
  size_t pos = 0;
  for (const MarkedText::Run& run : text.runs()) {
    std::string piece;
    for (; pos < run.end; ++pos) {
      const auto c = static_cast<unsigned char>(text.bytes()[pos]);
      const bool plain =
          c < 0x80 && (is_digit(c) || is_alpha(c) || signs.find(static_cast<char>(c)) != std::string_view::npos);
      piece += plain ? std::string(1, static_cast<char>(c)) : query && c == ' ' ? "+" : fmt::format("%{:02X}", c);
    }
    out.append(piece, run.trusted);
  }
  if (out.size() > in.limits().text_bytes) in.charge_text(out.size());
}

Value filter_urlencode(Interpreter& in, const Value& v, Slots&) {
  MarkedText out;
  if (!v.is(Type::kDict) && !v.is(Type::kSequence)) {
    append_quoted(in, out, soft_text(in, v), false);
    return in.text(std::move(out));
  }
  List pairs;
  if (v.is(Type::kDict)) {
    for (const auto& [key, value] : v.dict().entries()) pairs.push_back(in.tuple({key, value}));
  } else {
    pairs = in.items_of(v);
  }
  for (const Value& pair : pairs) {
    const List parts = in.items_of(pair);
    if (parts.size() != 2) fail("urlencode takes pairs; got {} values", parts.size());
    if (!out.empty()) out.append("&", true);
    append_quoted(in, out, soft_text(in, parts[0]), true);
    out.append("=", true);
    append_quoted(in, out, soft_text(in, parts[1]), true);
  }
  return in.text(std::move(out));
}

Value filter_wordcount(Interpreter& in, const Value& v, Slots&) {
  MarkedText text = soft_text(in, v);
  in.charge(text.size() / 8);
  size_t words = 0;
  bool inside = false;
  for (size_t pos = 0; pos < text.size(); pos += char_length(text.view(), pos)) {
    const char32_t c = code_point_at(text.view(), pos);
    const bool part = c == '_' || is_alpha(c) || is_digit(c);
    words += part && !inside ? 1 : 0;
    inside = part;
  }
  return make_int(words);
}

Value filter_center(Interpreter& in, const Value& v, Slots& a) {
  Value text = in.text(soft_text(in, v));
  CallArgs args;
  args.positional.push_back(Value(a.integer(0, 80)));
  return in.call(*bound_method(in, text, "center"), args);
}

Value filter_truncate(Interpreter& in, const Value& v, Slots& a) {
  const int64_t length = a.integer(0, 255), leeway = a.integer(3, 5);
  const MarkedText end = a.has(2) ? a.text(2) : MarkedText("...", true);
  const auto end_length = static_cast<int64_t>(count_chars(end.view()));
  if (length < end_length) fail("truncate: expected a length of at least {}, got {}", end_length, length);
  if (leeway < 0) fail("truncate: expected a leeway of at least 0, got {}", leeway);
  const auto size = jinja::length(v);
  if (!size) fail("object of type '{}' has no len()", type_name(v));
  if (*size <= static_cast<uint64_t>(length) || *size - static_cast<uint64_t>(length) <= static_cast<uint64_t>(leeway))
    return v;
  if (!v.is_string()) fail("truncate cannot cut a '{}'", type_name(v));
  MarkedText out = slice(in, v, Value(), Value(length - end_length), Value()).text();
  if (!a.flag(1, false)) {
    size_t blank = out.bytes().rfind(' ');
    if (blank != std::string::npos) out = out.sub(0, blank);
  }
  out.append(end);
  return in.text(std::move(out));
}

Value filter_wordwrap(Interpreter& in, const Value& v, Slots& a) {
  const int64_t width = a.integer(0, 79);
  if (width <= 0) fail("wordwrap: invalid width {} (must be > 0)", width);
  WrapStyle style;
  style.width = static_cast<size_t>(width);
  style.break_long_words = a.flag(1, true);
  style.separator = a.set(2) ? a.text(2) : MarkedText("\n", true);
  style.break_on_hyphens = a.flag(3, true);
  return in.text(wrap_text(in, soft_text(in, v), style));
}

MarkedText json_indent(const Slots& a) {
  if (a.at(1).is_string()) {
    if (a.at(1).text().size() > kFormatWidthMax) fail("tojson: indent is limited to {} characters", kFormatWidthMax);
    return a.at(1).text();
  }
  const int64_t width = a.integer(1, 0);
  if (width > int64_t{kFormatWidthMax}) fail("tojson: indent is limited to {} characters", kFormatWidthMax);
  return MarkedText(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '), true);
}

Value filter_tojson(Interpreter& in, const Value& v, Slots& a) {
  JsonStyle style;
  style.ascii = a.flag(0, false);
  if (a.set(1)) style.indent = json_indent(a);
  style.item_separator = MarkedText(style.indent ? "," : ", ", true);
  style.key_separator = MarkedText(": ", true);
  if (a.set(2)) {
    List parts = in.items_of(a.at(2));
    if (parts.size() != 2 || !parts[0].is_string() || !parts[1].is_string())
      fail("tojson: separators must be two strings");
    style.item_separator = parts[0].text();
    style.key_separator = parts[1].text();
  }
  style.sort_keys = a.flag(3, false);
  return in.text(to_json(in, v, style));
}

// --- numbers ---

Value filter_filesizeformat(Interpreter& in, const Value& v, Slots& a) {
  constexpr std::string_view kDecimal[] = {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
  constexpr std::string_view kBinary[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"};
  std::optional<double> parsed;
  if (v.is_number()) parsed = v.number();
  if (v.is_string()) parsed = parse_float(v.view());
  if (!parsed) fail("filesizeformat takes a number, not {}", type_name(v));
  const bool binary = a.flag(0, false);
  const double base = binary ? 1024 : 1000, bytes = *parsed;
  if (bytes == 1) return in.text(MarkedText("1 Byte", true));
  if (std::isnan(bytes)) fail("cannot convert float NaN to integer");
  if (bytes < base) return in.text(MarkedText(fmt::format("{} Bytes", float_to_int(bytes).integer()), true));
  size_t i = 0;
  double unit = base * base;
  for (; i + 1 < std::size(kDecimal) && bytes >= unit; ++i) unit *= base;
  const std::string_view prefix = binary ? kBinary[i] : kDecimal[i];
  return in.text(MarkedText(fmt::format("{:.1f} {}", base * bytes / unit, prefix), true));
}

Value filter_int(Interpreter&, const Value& v, Slots& a) {
  if (v.is_undefined()) fail_undefined(v);
  Value fallback = a.value_or(0, Value(int64_t{0}));
  if (v.is_integral()) return Value(v.integer());
  double number = NAN;
  if (v.is_string()) {
    if (auto parsed = parse_int(v.view(), static_cast<int>(std::clamp<int64_t>(a.integer(1, 10), -1, 37))))
      return Value(*parsed);
    number = parse_float(v.view()).value_or(NAN);
  } else if (v.is(Type::kFloat)) {
    number = v.number();
  }
  return std::isfinite(number) ? float_to_int(number) : fallback;
}

Value filter_float(Interpreter&, const Value& v, Slots& a) {
  if (v.is_undefined()) fail_undefined(v);
  if (v.is_number()) return Value(v.number());
  std::optional<double> parsed;
  if (v.is_string()) parsed = parse_float(v.view());
  return parsed ? Value(*parsed) : a.value_or(0, Value(0.0));
}

Value filter_abs(Interpreter& in, const Value& v, Slots&) {
  if (v.is_undefined()) fail_undefined(v);
  if (v.is(Type::kFloat)) return Value(std::abs(v.number()));
  if (!v.is_integral()) fail("bad operand type for abs(): '{}'", type_name(v));
  return v.integer() < 0 ? in.binary(Op::kSub, Value(int64_t{0}), v) : Value(v.integer());
}

// Correctly rounded to `precision` decimals, ties to even, as round().
double round_decimal(double v, int64_t precision) {
  constexpr int64_t kDecimalsMax = 330;
  if (!std::isfinite(v) || precision > kDecimalsMax) return v;
  if (precision < 0) {
    double scale = std::pow(10.0, static_cast<double>(-std::max<int64_t>(precision, -kDecimalsMax)));
    return std::isinf(scale) ? std::copysign(0.0, v) : std::nearbyint(v / scale) * scale;
  }
  return std::strtod(fmt::format("{:.{}f}", v, static_cast<int>(precision)).c_str(), nullptr);
}

Value filter_round(Interpreter& in, const Value& v, Slots& a) {
  if (v.is_undefined()) fail_undefined(v);
  const int64_t precision = a.integer(0, 0);
  const std::string_view method = a.has(1) ? a.text(1).view() : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    fail("round: the method must be common, ceil or floor");
  if (!v.is_number()) fail("type {} doesn't define __round__ method", type_name(v));
  if (method == "common") {
    if (v.is_integral()) {
      return precision >= 0 ? Value(v.integer()) : float_to_int(round_decimal(v.number(), precision));
    }
    return Value(round_decimal(v.number(), precision));
  }
  Value scale = in.binary(Op::kPow, Value(int64_t{10}), Value(precision));
  const double scaled = in.binary(Op::kMul, v, scale).number();
  if (!std::isfinite(scaled)) fail("round: cannot round {}", float_repr(scaled));
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale.number());
}

Value filter_default(Interpreter&, const Value& v, Slots& a) {
  const bool replace = v.is_undefined() || (a.flag(1, false) && !truthy(v));
  return replace ? a.value_or(0, Value::literal("")) : v;
}

Value filter_attr(Interpreter& in, const Value& v, Slots& a) {
  if (v.is_undefined()) fail_undefined(v);
  // Attributes only: a dict's entries are not found.
  if (v.is(Type::kDict)) {
    auto method = bound_method(in, v, a.text(0).view());
    return method ? *method : in.undefined(fmt::format("'dict object' has no attribute '{}'", a.text(0).view()));
  }
  return in.attribute(v, a.text(0).view());
}

constexpr Builtin kTextFilters[] = {
    {"upper", "", 0, filter_case<Case::kUpper>},
    {"lower", "", 0, filter_case<Case::kLower>},
    {"capitalize", "", 0, filter_case<Case::kCapitalize>},
    {"title", "", 0, filter_title},
    {"trim", "chars", 0, filter_trim},
    {"replace", "old new count", 2, filter_replace},
    {"indent", "width first blank", 0, filter_indent},
    {"format", "* **", 0, filter_format},
    {"string", "", 0, filter_string},
    {"safe", "", 0, filter_string},
    {"e", "", 0, filter_escape},
    {"escape", "", 0, filter_escape},
    {"forceescape", "", 0, filter_escape},
    {"urlencode", "", 0, filter_urlencode},
    {"wordcount", "", 0, filter_wordcount},
    {"center", "width", 0, filter_center},
    {"truncate", "length killwords end leeway", 0, filter_truncate},
    {"wordwrap", "width break_long_words wrapstring break_on_hyphens", 0, filter_wordwrap},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, filter_tojson},
    {"int", "default base", 0, filter_int},
    {"float", "default", 0, filter_float},
    {"abs", "", 0, filter_abs},
    {"round", "precision method", 0, filter_round},
    {"filesizeformat", "binary", 0, filter_filesizeformat},
    {"default", "default_value boolean", 0, filter_default},
    {"d", "default_value boolean", 0, filter_default},
    {"attr", "name", 1, filter_attr},
};

}  // namespace

std::span<const Builtin> text_filters() { return kTextFilters; }

}  // namespace motley::jinja
