// Operators, attributes and subscripts with Python's meaning.
#include <algorithm>
#include <cmath>
#include <limits>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
using Kind = Sequence::Kind;

constexpr std::string_view kSymbols[] = {
    "+", "-", "*", "/", "//", "%", "** or pow()", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
std::string_view symbol(Op op) { return kSymbols[static_cast<size_t>(op)]; }

[[noreturn]] void fail_operands(Op op, const Value& a, const Value& b) {
  fail("unsupported operand type(s) for {}: '{}' and '{}'", symbol(op), type_name(a), type_name(b));
}

// `v` is a reference: it is read after the operation that `overflow` tells of has written it.
int64_t checked(bool overflow, const int64_t& v) {
  if (overflow) fail("integer overflow; integers are limited to 64 bits");
  return v;
}

int64_t floor_div(int64_t a, int64_t b) {
  if (b == 0) fail("integer division or modulo by zero");
  if (b == -1)
    return checked(a == std::numeric_limits<int64_t>::min(), static_cast<int64_t>(-static_cast<uint64_t>(a)));
  int64_t q = a / b;
  return a % b != 0 && ((a < 0) != (b < 0)) ? q - 1 : q;
}

int64_t floor_mod(int64_t a, int64_t b) {
  if (b == 0) fail("integer modulo by zero");
  if (b == -1) return 0;
  int64_t r = a % b;
  return r != 0 && ((r < 0) != (b < 0)) ? r + b : r;
}

Value int_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) fail("0.0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = checked(__builtin_mul_overflow(result, base, &result), result);
    if (exponent > 1) base = checked(__builtin_mul_overflow(base, base, &base), base);
  }
  return Value(result);
}

Value int_binary(Op op, int64_t a, int64_t b) {
  int64_t r = 0;
  switch (op) {
    case Op::kAdd: return Value(checked(__builtin_add_overflow(a, b, &r), r));
    case Op::kSub: return Value(checked(__builtin_sub_overflow(a, b, &r), r));
    case Op::kMul: return Value(checked(__builtin_mul_overflow(a, b, &r), r));
    case Op::kDiv:
      if (b == 0) fail("division by zero");
      return Value(static_cast<double>(a) / static_cast<double>(b));
    case Op::kFloorDiv: return Value(floor_div(a, b));
    case Op::kMod: return Value(floor_mod(a, b));
    default: return int_power(a, b);
  }
}

Value float_power(double a, double b) {
  if (a == 0 && b < 0) fail("0.0 cannot be raised to a negative power");
  if (a < 0 && std::isfinite(b) && b != std::floor(b)) fail("complex numbers are not supported");
  double r = std::pow(a, b);
  if (std::isinf(r) && std::isfinite(a) && std::isfinite(b)) fail("numerical result out of range");
  return Value(r);
}

Value float_binary(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd: return Value(a + b);
    case Op::kSub: return Value(a - b);
    case Op::kMul: return Value(a * b);
    case Op::kPow: return float_power(a, b);
    default: break;
  }
  if (b == 0) fail("float division by zero");
  if (op == Op::kDiv) return Value(a / b);
  double r = std::fmod(a, b);
  if (r != 0 && ((r < 0) != (b < 0))) r += b;
  if (op == Op::kMod) return Value(r == 0 ? std::copysign(0.0, b) : r);
  double q = (a - r) / b;
  double floored = std::floor(q);
  return Value(q - floored > 0.5 ? floored + 1 : floored);
}

Value repeat(Interpreter& in, const Value& what, int64_t times) {
  const auto n = static_cast<uint64_t>(std::max<int64_t>(times, 0));
  if (what.is_string()) {
    const MarkedText& s = what.text();
    if (s.size() != 0 && n > in.limits().text_bytes / s.size())
      fail("a text is longer than {} bytes", in.limits().text_bytes);
    in.charge(s.runs().size() * n);
    MarkedText out;
    for (uint64_t i = 0; i < n && !s.empty(); ++i) out.append(s);
    return in.text(std::move(out));
  }
  const Sequence& s = what.sequence();
  if (!s.items.empty()) {
    if (n > in.limits().steps / s.items.size()) fail("a list is longer than {} elements", in.limits().steps);
    in.charge(n * s.items.size());
  }
  List items;
  for (uint64_t i = 0; i < n && !s.items.empty(); ++i) items.insert(items.end(), s.items.begin(), s.items.end());
  return in.sequence(s.kind, std::move(items));
}

bool is_concatenable(const Value& v) {
  return v.is(Type::kSequence) && (v.sequence().kind == Kind::kList || v.sequence().kind == Kind::kTuple);
}

Value add(Interpreter& in, const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    in.charge_text(a.text().size() + b.text().size());
    MarkedText out;
    out.reserve(a.text().size() + b.text().size());
    out.append(a.text());
    out.append(b.text());
    return in.text(std::move(out));
  }
  if (is_concatenable(a) && is_concatenable(b) && a.sequence().kind == b.sequence().kind) {
    in.charge(a.sequence().items.size() + b.sequence().items.size());
    List items = a.sequence().items;
    items.insert(items.end(), b.sequence().items.begin(), b.sequence().items.end());
    return in.sequence(a.sequence().kind, std::move(items));
  }
  if (a.is_string()) fail("can only concatenate str (not \"{}\") to str", type_name(b));
  fail_operands(Op::kAdd, a, b);
}

std::optional<size_t> index_in(const Value& key, size_t size) {
  if (!key.is_integral()) return std::nullopt;
  int64_t i = key.integer();
  if (i < 0) i += static_cast<int64_t>(size);
  if (i < 0 || static_cast<uint64_t>(i) >= size) return std::nullopt;
  return static_cast<size_t>(i);
}

// Byte offset of character `index`, which is at most the number of characters.
size_t byte_offset(std::string_view text, size_t index) {
  size_t pos = 0;
  for (; index > 0; --index) pos += char_length(text, pos);
  return pos;
}

// v[key] where that is defined.
std::optional<Value> subscript(Interpreter& in, const Value& v, const Value& key) {
  if (v.is(Type::kDict)) {
    if (key.is(Type::kDict) || (key.is(Type::kSequence) && key.sequence().kind != Kind::kTuple)) return std::nullopt;
    charge_walk(in, key);
    const Value* found = v.dict().find(key);
    return found ? std::optional<Value>(*found) : std::nullopt;
  }
  if (v.is_string()) {
    in.charge(1 + v.text().size() / 64);
    auto i = index_in(key, count_chars(v.view()));
    if (!i) return std::nullopt;
    size_t begin = byte_offset(v.view(), *i);
    return in.text(v.text().sub(begin, begin + char_length(v.view(), begin)));
  }
  if (v.is(Type::kSequence) && v.sequence().indexable()) {
    auto i = index_in(key, v.sequence().items.size());
    if (i) return v.sequence().items[*i];
  }
  return std::nullopt;
}

// What Python finds as an attribute: methods, attributes of objects. Undefined for what the sandbox hides.
std::optional<Value> own_attribute(Interpreter& in, const Value& v, std::string_view name) {
  static constexpr std::string_view kListChanges[] = {"append", "clear",  "extend",  "insert",
                                                      "pop",    "remove", "reverse", "sort"};
  static constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};
  auto is_in = [&](auto& names) { return std::find(std::begin(names), std::end(names), name) != std::end(names); };
  const bool changes = (v.is(Type::kDict) && is_in(kDictChanges)) ||
                       (v.is(Type::kSequence) && v.sequence().kind == Kind::kList && is_in(kListChanges));
  if (changes) {
    return in.undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(v)));
  }
  if (v.is(Type::kObject)) return v.object().attribute(in, name);
  if (v.is(Type::kSequence) && v.sequence().group) {
    if (name == "grouper") return v.sequence().items[0];
    if (name == "list") return v.sequence().items[1];
  }
  return bound_method(in, v, name);
}

Value missing(Interpreter& in, const Value& v, const Value& key) {
  if (key.is_string()) return in.undefined(fmt::format("'{} object' has no attribute '{}'", type_name(v), key.view()));
  MarkedText shown;
  append_repr(shown, key);
  in.charge_text(shown.size());
  return in.undefined(fmt::format("{} object has no element {}", type_name(v), shown.bytes()));
}

}  // namespace

Value Interpreter::attribute(const Value& v, std::string_view name) {
  if (v.is_undefined()) fail_undefined(v);
  if (auto found = own_attribute(*this, v, name)) return *std::move(found);
  if (v.is(Type::kDict)) {
    if (const Value* found = v.dict().find(name)) return *found;
  }
  return undefined(fmt::format("'{} object' has no attribute '{}'", type_name(v), name));
}

Value Interpreter::item(const Value& v, const Value& key) {
  if (v.is_undefined()) fail_undefined(v);
  if (auto found = subscript(*this, v, key)) return *std::move(found);
  if (key.is_string()) {
    if (auto found = own_attribute(*this, v, key.view())) return *std::move(found);
  }
  return missing(*this, v, key);
}

Value slice(Interpreter& in, const Value& v, const Value& start, const Value& stop, const Value& step) {
  if (v.is_undefined()) fail_undefined(v);
  // Jinja compiles slices to Python's own, so that what other subscripts make undefined is an error here.
  const bool indices = (start.is_none() || start.is_integral()) && (stop.is_none() || stop.is_integral()) &&
                       (step.is_none() || step.is_integral());
  const bool sliceable = v.is_string() || (v.is(Type::kSequence) && v.sequence().indexable());
  if (!sliceable) fail("'{}' object cannot be sliced", type_name(v));
  if (!indices) fail("slice indices must be integers or none");
  const int64_t by = step.is_none() ? 1 : step.integer();
  if (by == 0) fail("slice step cannot be zero");
  if (v.is_string()) in.charge(1 + v.text().size() / 64);
  const auto n = static_cast<int64_t>(*length(v));
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
  auto clamp = [&](const Value& bound, int64_t fallback) {
    if (bound.is_none()) return fallback;
    int64_t i = bound.integer();
    return std::clamp(i < 0 ? i + n : i, low, high);
  };
  const int64_t from = clamp(start, by > 0 ? low : high), to = clamp(stop, by > 0 ? high : low);
  auto more = [&](int64_t i) { return by > 0 ? i < to : i > to; };
  // The step is cut to the length: longer ones take one element and cannot overflow.
  const int64_t stride = std::clamp<int64_t>(by, -n - 1, n + 1);

  if (v.is_string()) {
    const MarkedText& s = v.text();
    if (by == 1) {
      size_t begin = byte_offset(s.view(), static_cast<size_t>(std::min(from, n)));
      size_t end = to > from ? begin + byte_offset(s.view().substr(begin), static_cast<size_t>(to - from)) : begin;
      return in.text(s.sub(begin, end));
    }
    in.charge(s.size());
    std::vector<size_t> offsets;
    for (size_t pos = 0; pos < s.size(); pos += char_length(s.view(), pos)) offsets.push_back(pos);
    MarkedText out;
    for (int64_t i = from; more(i); i += stride) {
      size_t pos = offsets[static_cast<size_t>(i)];
      out.append(s, pos, pos + char_length(s.view(), pos));
    }
    return in.text(std::move(out));
  }
  const Sequence& s = v.sequence();
  auto cut = std::make_shared<Sequence>();
  cut->kind = s.kind;
  for (int64_t i = from; more(i); i += stride) {
    in.charge(1);
    cut->items.push_back(s.items[static_cast<size_t>(i)]);
    cut->shape.include(cut->items.back());
  }
  if (s.kind == Kind::kRange) {
    cut->start = s.start + from * s.step;
    cut->stop = s.start + to * s.step;
    cut->step = s.step * stride;
  }
  return Value(SequencePtr(std::move(cut)));
}

Value Interpreter::binary(Op op, const Value& a, const Value& b) {
  if (op == Op::kMod && a.is_string()) return percent_format(*this, a.text(), b);
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_integral() && b.is_integral()) return int_binary(op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return float_binary(op, a.number(), b.number());
  if (op == Op::kAdd) return add(*this, a, b);
  if (op == Op::kMul) {
    if ((a.is_string() || is_concatenable(a)) && b.is_integral()) return repeat(*this, a, b.integer());
    if ((b.is_string() || is_concatenable(b)) && a.is_integral()) return repeat(*this, b, a.integer());
  }
  fail_operands(op, a, b);
}

bool contains(Interpreter& in, const Value& container, const Value& value) {
  switch (container.type()) {
    case Type::kString:
      if (!value.is_string()) {
        fail("'in <string>' requires string as left operand, not {}", type_name(value));
      }
      return find_text(in, container.view(), value.view(), 0) != std::string_view::npos;
    case Type::kDict: charge_walk(in, value); return container.dict().find(value) != nullptr;
    case Type::kUndefined: return false;
    case Type::kSequence: {
      const Sequence& s = container.sequence();
      const bool consumes = s.kind == Kind::kGenerator;
      for (size_t i = consumes ? s.taken : 0; i < s.items.size(); ++i) {
        if (consumes) s.taken = i + 1;
        if (in.compare(Op::kEq, s.items[i], value)) return true;
      }
      return false;
    }
    default: fail("argument of type '{}' is not iterable", type_name(container));
  }
}

bool Interpreter::compare(Op op, const Value& a, const Value& b) {
  if (op == Op::kIn) return contains(*this, b, a);
  if (op == Op::kNotIn) return !contains(*this, b, a);
  charge(std::min(shape_of(a).weight, shape_of(b).weight));
  if (op == Op::kEq || op == Op::kNe) return equal(a, b) == (op == Op::kEq);
  if (op == Op::kLt) return less(a, b, "<");
  if (op == Op::kGt) return less(b, a, ">");
  const bool strict = op == Op::kLe ? less(a, b, "<=") : less(b, a, ">=");
  return strict || equal(a, b);
}

}  // namespace motley::jinja
