// Built-in functions: how filters, tests, methods and globals are described, and how calls are matched to parameters.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "text/jinja/interpreter.hpp"

namespace motley::jinja {

// The arguments of one call, by the place of their parameter.
class Slots {
 public:
  std::vector<std::optional<Value>> values;
  CallArgs rest;  // what "*" (positional) and "**" (keywords) take

  bool has(size_t i) const { return i < values.size() && values[i].has_value(); }
  // Given and not None.
  bool set(size_t i) const { return has(i) && !values[i]->is_none(); }
  const Value& at(size_t i) const { return *values[i]; }
  Value value_or(size_t i, const Value& fallback) const { return has(i) ? *values[i] : fallback; }
  // Each throws Error for a value of another type; absent (or, for integer, None): `fallback`.
  bool flag(size_t i, bool fallback) const { return has(i) ? truthy(at(i)) : fallback; }
  int64_t integer(size_t i, int64_t fallback) const;
  const MarkedText& text(size_t i) const;  // must be given
};

// `params`: names separated by blanks; a last "*" takes further positional arguments, "**" further keywords.
// The first `required` must be given. `self`: the filtered or tested value, or the object of a method.
struct Builtin {
  std::string_view name;
  std::string_view params;
  size_t required;
  Value (*function)(Interpreter&, const Value& self, Slots&);
};

Slots bind(const Builtin& builtin, CallArgs& args);
Value call_builtin(Interpreter& in, const Builtin& builtin, const Value& self, CallArgs& args);

// A global function or bound method as a value.
class BuiltinFunction : public Object {
 public:
  BuiltinFunction(const Builtin& builtin, Value self) : builtin_(builtin), self_(std::move(self)) {}
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Interpreter& in, CallArgs& args) override { return call_builtin(in, builtin_, self_, args); }

 private:
  const Builtin& builtin_;
  Value self_;
};

// The tables; each in the file of its name.
std::span<const Builtin> text_filters();
std::span<const Builtin> sequence_filters();
std::span<const Builtin> tests();
std::span<const Builtin> string_methods();

const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);

// --- shared pieces ---
Value slice(Interpreter& in, const Value& object, const Value& start, const Value& stop, const Value& step);
bool contains(Interpreter& in, const Value& container, const Value& value);
// Charges for walking all of `v`.
inline void charge_walk(Interpreter& in, const Value& v) { in.charge(shape_of(v).weight); }
inline Value make_int(size_t n) { return Value(static_cast<int64_t>(n)); }

// The string itself, or str() of anything else, as Jinja's filters take their text.
MarkedText soft_text(Interpreter& in, const Value& v);
// First occurrence of `needle` at or after `from`; npos: none. Linear, charged.
size_t find_text(Interpreter& in, std::string_view text, std::string_view needle, size_t from);
MarkedText replace_text(Interpreter& in, const MarkedText& text, const MarkedText& from, const MarkedText& to,
                        int64_t count);
// `chars` empty: white space.
MarkedText strip_text(const MarkedText& text, std::string_view chars, bool left, bool right);
enum class Case { kUpper, kLower, kFold, kCapitalize, kTitle, kSwap };
MarkedText change_case(const MarkedText& text, Case what);
std::vector<MarkedText> split_lines(const MarkedText& text, bool keep_ends);
MarkedText pad_text(Interpreter& in, const MarkedText& text, size_t left, size_t right, const MarkedText& fill);
MarkedText join_text(Interpreter& in, const List& items, const MarkedText& separator);
struct WrapStyle {
  size_t width = 0;  // in characters, not 0
  bool break_long_words = true, break_on_hyphens = true;
  MarkedText separator;  // between lines
};
MarkedText wrap_text(Interpreter& in, const MarkedText& text, const WrapStyle& style);
// int(text, base) and float(text); nullopt where Python raises ValueError.
std::optional<int64_t> parse_int(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);
Value float_to_int(double v);

// `format % values` and format.format(...).
Value percent_format(Interpreter& in, const MarkedText& format, const Value& values);
Value brace_format(Interpreter& in, const MarkedText& format, const CallArgs& args);

struct JsonStyle {
  std::optional<MarkedText> indent;
  MarkedText item_separator, key_separator;
  bool sort_keys = false, ascii = false;
};
MarkedText to_json(Interpreter& in, const Value& v, const JsonStyle& style);

}  // namespace motley::jinja
