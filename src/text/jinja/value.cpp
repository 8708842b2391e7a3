#include "text/jinja/value.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
constexpr size_t kLinearSearchMax = 8;  // entries; above it a dict has an index
constexpr double kTwoTo63 = 9223372036854775808.0;

// A string that is equal exactly for equal keys.
std::string hash_key(const Value& v) {
  switch (v.type()) {
    case Type::kNone: return "n";
    case Type::kUndefined: return "u";
    case Type::kBool:
    case Type::kInt: return "i" + std::to_string(v.integer());
    case Type::kFloat: {
      double d = v.number();
      if (d == std::floor(d) && d >= -kTwoTo63 && d < kTwoTo63) return "i" + std::to_string(static_cast<int64_t>(d));
      return "f" + float_repr(d);
    }
    case Type::kString: return "s" + v.text().bytes();
    case Type::kObject: return fmt::format("o{}", v.identity());
    case Type::kSequence: {
      const Sequence& s = v.sequence();
      if (s.kind != Sequence::Kind::kTuple) break;
      std::string key = "t";
      for (const Value& item : s.items) {
        std::string part = hash_key(item);
        key += std::to_string(part.size()) + ":" + part;
      }
      return key;
    }
    case Type::kDict: break;
  }
  fail("unhashable type: '{}'", type_name(v));
}

bool same_items(const List& a, const List& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal); }

bool sequences_equal(const Sequence& a, const Sequence& b) {
  if (&a == &b) return true;
  using Kind = Sequence::Kind;
  if (a.kind != b.kind || a.kind == Kind::kGenerator || a.kind == Kind::kDictValues) return false;
  return same_items(a.items, b.items);
}

bool dicts_equal(const Dict& a, const Dict& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [key, value] : a.entries()) {
    const Value* other = b.find(key);
    if (other == nullptr || !equal(value, *other)) return false;
  }
  return true;
}

void append_string_repr(MarkedText& out, const MarkedText& s) {
  bool has_single = s.bytes().find('\'') != std::string::npos;
  bool has_double = s.bytes().find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.append(std::string_view(&quote, 1), true);
  size_t begin = 0;
  for (const MarkedText::Run& run : s.runs()) {
    std::string piece;
    std::string_view part = s.view().substr(begin, run.end - begin);
    for (size_t pos = 0; pos < part.size();) {
      char32_t c = code_point_at(part, pos);
      size_t n = char_length(part, pos);
      if (c == '\n')
        piece += "\\n";
      else if (c == '\r')
        piece += "\\r";
      else if (c == '\t')
        piece += "\\t";
      else if (c == '\\' || c == static_cast<unsigned char>(quote))
        (piece += '\\') += static_cast<char>(c);
      else if (is_printable(c))
        piece += part.substr(pos, n);
      else if (c < 0x100)
        piece += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
      else if (c < 0x10000)
        piece += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
      else
        piece += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
      pos += n;
    }
    out.append(piece, run.trusted);
    begin = run.end;
  }
  out.append(std::string_view(&quote, 1), true);
}

void append_items(MarkedText& out, const List& items, uint32_t depth) {
  bool first = true;
  for (const Value& item : items) {
    if (!std::exchange(first, false)) out.append(", ", true);
    append_repr(out, item, depth + 1);
  }
}

void append_sequence_repr(MarkedText& out, const Sequence& s, uint32_t depth) {
  using Kind = Sequence::Kind;
  switch (s.kind) {
    case Kind::kRange:
      out.append(s.step == 1 ? fmt::format("range({}, {})", s.start, s.stop)
                             : fmt::format("range({}, {}, {})", s.start, s.stop, s.step),
                 true);
      return;
    case Kind::kGenerator: out.append("<generator object>", true); return;
    case Kind::kTuple:
      out.append("(", true);
      append_items(out, s.items, depth);
      out.append(s.items.size() == 1 ? ",)" : ")", true);
      return;
    case Kind::kDictKeys: out.append("dict_keys(", true); break;
    case Kind::kDictValues: out.append("dict_values(", true); break;
    case Kind::kDictItems: out.append("dict_items(", true); break;
    case Kind::kList: break;
  }
  out.append("[", true);
  append_items(out, s.items, depth);
  out.append(s.kind == Kind::kList ? "]" : "])", true);
}

}  // namespace

const void* Value::identity() const {
  switch (type()) {
    case Type::kString: return std::get<StringPtr>(state_).get();
    case Type::kSequence: return std::get<SequencePtr>(state_).get();
    case Type::kDict: return std::get<DictPtr>(state_).get();
    case Type::kObject: return std::get<ObjectPtr>(state_).get();
    default: return nullptr;
  }
}

size_t Dict::locate(const std::string& key) const {
  if (!index_.empty()) {
    auto it = index_.find(key);
    return it == index_.end() ? entries_.size() : it->second;
  }
  size_t i = 0;
  while (i < entries_.size() && hash_key(entries_[i].first) != key) ++i;
  return i;
}

const Value* Dict::find(std::string_view key) const {
  if (!index_.empty()) {
    auto it = index_.find("s" + std::string(key));
    return it == index_.end() ? nullptr : &entries_[it->second].second;
  }
  for (const auto& [k, v] : entries_) {
    if (k.is_string() && k.view() == key) return &v;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  if (key.is_string()) return find(key.view());
  size_t i = locate(hash_key(key));
  return i < entries_.size() ? &entries_[i].second : nullptr;
}

void Dict::set(const Value& key, Value value) {
  std::string hash = hash_key(key);
  size_t i = locate(hash);
  if (i < entries_.size()) {
    shape_.weight -= shape_of(entries_[i].second).weight;
    shape_.include(value);
    entries_[i].second = std::move(value);
    return;
  }
  shape_.include(key);
  shape_.include(value);
  entries_.emplace_back(key, std::move(value));
  if (!index_.empty()) {
    index_.emplace(std::move(hash), i);
  } else if (entries_.size() > kLinearSearchMax) {
    for (size_t k = 0; k < entries_.size(); ++k) index_.emplace(hash_key(entries_[k].first), k);
  }
}

void Dict::remove(const Value& key) {
  size_t i = locate(hash_key(key));
  if (i == entries_.size()) return;
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(i));
  index_.clear();
  if (entries_.size() > kLinearSearchMax) {
    for (size_t k = 0; k < entries_.size(); ++k) index_.emplace(hash_key(entries_[k].first), k);
  }
}

void Dict::clear() {
  entries_.clear();
  index_.clear();
}

std::string_view type_name(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined: return "Undefined";
    case Type::kNone: return "NoneType";
    case Type::kBool: return "bool";
    case Type::kInt: return "int";
    case Type::kFloat: return "float";
    case Type::kString: return "str";
    case Type::kDict: return "dict";
    case Type::kObject: return v.object().type_name();
    case Type::kSequence: break;
  }
  static constexpr std::string_view kNames[] = {"list",      "tuple",       "range",     "generator",
                                                "dict_keys", "dict_values", "dict_items"};
  return kNames[static_cast<size_t>(v.sequence().kind)];
}

Shape shape_of(const Value& v) {
  if (v.is(Type::kSequence)) return v.sequence().shape;
  if (v.is(Type::kDict)) return v.dict().shape();
  return {0, v.is_string() ? 1 + v.text().size() / 64 : 1};
}

void Shape::include(const Value& part) {
  Shape other = shape_of(part);
  depth = std::max(depth, other.depth + 1);
  weight += other.weight;
  if (depth > kValueDepthMax) fail("a value is nested deeper than {} levels", kValueDepthMax);
  if (weight > kValueWeightMax) fail("a value has more than {} parts", kValueWeightMax);
}

void fail_undefined(const Value& v) {
  throw Error{v.undefined().why ? *v.undefined().why : std::string("value is undefined")};
}

bool truthy(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
    case Type::kNone: return false;
    case Type::kBool:
    case Type::kInt: return v.integer() != 0;
    case Type::kFloat: return v.number() != 0;
    case Type::kString: return !v.text().empty();
    case Type::kSequence: return v.sequence().kind == Sequence::Kind::kGenerator || !v.sequence().items.empty();
    case Type::kDict: return v.dict().size() != 0;
    case Type::kObject: return true;
  }
  return false;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_integral() && b.is_integral() ? a.integer() == b.integer() : a.number() == b.number();
  }
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kUndefined:
    case Type::kNone: return true;
    case Type::kString: return a.view() == b.view();
    case Type::kSequence: return sequences_equal(a.sequence(), b.sequence());
    case Type::kDict: return dicts_equal(a.dict(), b.dict());
    default: return a.identity() == b.identity();
  }
}

bool less(const Value& a, const Value& b, std::string_view symbol) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_number() && b.is_number()) {
    return a.is_integral() && b.is_integral() ? a.integer() < b.integer() : a.number() < b.number();
  }
  if (a.is_string() && b.is_string()) return a.view() < b.view();
  if (a.is(Type::kSequence) && b.is(Type::kSequence)) {
    const Sequence &x = a.sequence(), &y = b.sequence();
    if (x.kind == y.kind && (x.kind == Sequence::Kind::kList || x.kind == Sequence::Kind::kTuple)) {
      size_t n = std::min(x.items.size(), y.items.size());
      for (size_t i = 0; i < n; ++i) {
        if (!equal(x.items[i], y.items[i])) return less(x.items[i], y.items[i], symbol);
      }
      return x.items.size() < y.items.size();
    }
  }
  fail("'{}' not supported between instances of '{}' and '{}'", symbol, type_name(a), type_name(b));
}

std::optional<size_t> length(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined: return 0;
    case Type::kString: return count_chars(v.view());
    case Type::kDict: return v.dict().size();
    case Type::kSequence:
      if (v.sequence().kind == Sequence::Kind::kGenerator) return std::nullopt;
      return v.sequence().items.size();
    default: return std::nullopt;
  }
}

std::string float_repr(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v < 0 ? "-inf" : "inf";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  std::string sign;
  if (text[0] == '-') {
    sign = "-";
    text.remove_prefix(1);
  }
  size_t e = text.find('e');
  std::string_view exponent_text = text.substr(text[e + 1] == '+' ? e + 2 : e + 1);
  int exponent = 0;
  std::from_chars(exponent_text.data(), exponent_text.data() + exponent_text.size(), exponent);
  std::string digits(text.substr(0, 1));
  if (e > 2) digits += text.substr(2, e - 2);
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    std::string mantissa = digits.substr(0, 1) + (count > 1 ? "." + digits.substr(1) : "");
    return fmt::format("{}{}e{}{:02d}", sign, mantissa, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) return sign + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return sign + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

void append_str(MarkedText& out, const Value& v) {
  if (v.is_string()) {
    out.append(v.text());
  } else if (!v.is_undefined()) {
    append_repr(out, v);
  }
}

void append_repr(MarkedText& out, const Value& v, uint32_t depth) {
  if (depth > kValueDepthMax) fail("a value is nested deeper than {} levels", kValueDepthMax);
  if (out.size() > kTextBytesMax) fail("a text is longer than {} bytes", kTextBytesMax);
  switch (v.type()) {
    case Type::kUndefined: out.append("Undefined", true); return;
    case Type::kNone: out.append("None", true); return;
    case Type::kBool: out.append(v.boolean() ? "True" : "False", true); return;
    case Type::kInt: out.append(std::to_string(v.integer()), true); return;
    case Type::kFloat: out.append(float_repr(v.number()), true); return;
    case Type::kString: append_string_repr(out, v.text()); return;
    case Type::kSequence: append_sequence_repr(out, v.sequence(), depth); return;
    case Type::kObject: v.object().repr(out, depth); return;
    case Type::kDict: break;
  }
  out.append("{", true);
  bool first = true;
  for (const auto& [key, value] : v.dict().entries()) {
    if (!std::exchange(first, false)) out.append(", ", true);
    append_repr(out, key, depth + 1);
    out.append(": ", true);
    append_repr(out, value, depth + 1);
  }
  out.append("}", true);
}

}  // namespace motley::jinja
