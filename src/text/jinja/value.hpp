// Value: what a template computes with; Python's types as far as templates can see them.
//
// Strings, sequences and dicts are immutable once they are in a Value (the sandbox that published templates run in
// refuses list.append and its like), so Values share them freely. One rendering is one thread's; nothing is shared
// between renderings. Inside the engine errors are thrown as Error and become a Status at its border (template.cpp).
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja/marked_text.hpp"

namespace motley::jinja {

class Interpreter;
class Dict;
class Object;
class Value;
struct Sequence;

// Lines and columns count from 1; 0: not known here, filled in by whoever knows.
// `refused`: what the template was given is at fault (raise_exception, text that is not valid); else it is the
// template.
struct Error {
  std::string message;
  uint32_t line = 0;
  uint32_t column = 0;
  bool refused = false;
};
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error{fmt::format(format, std::forward<Args>(args)...)};
}

using List = std::vector<Value>;
using StringPtr = std::shared_ptr<const MarkedText>;
using SequencePtr = std::shared_ptr<const Sequence>;
using DictPtr = std::shared_ptr<const Dict>;
using ObjectPtr = std::shared_ptr<Object>;

struct None {};
// `why`: the text of the error that most uses of the value give.
struct Undefined {
  std::shared_ptr<const std::string> why;
};

class Value {
 public:
  enum class Type { kUndefined, kNone, kBool, kInt, kFloat, kString, kSequence, kDict, kObject };

  Value() : state_(None{}) {}
  explicit Value(Undefined v) : state_(std::move(v)) {}
  explicit Value(bool v) : state_(v) {}
  explicit Value(int64_t v) : state_(v) {}
  explicit Value(double v) : state_(v) {}
  explicit Value(StringPtr v) : state_(std::move(v)) {}
  explicit Value(SequencePtr v) : state_(std::move(v)) {}
  explicit Value(DictPtr v) : state_(std::move(v)) {}
  explicit Value(ObjectPtr v) : state_(std::move(v)) {}
  // A string of the template's author.
  static Value literal(std::string_view text) { return Value(std::make_shared<const MarkedText>(text, true)); }

  Type type() const { return static_cast<Type>(state_.index()); }
  bool is(Type t) const { return type() == t; }
  bool is_undefined() const { return is(Type::kUndefined); }
  bool is_none() const { return is(Type::kNone); }
  bool is_string() const { return is(Type::kString); }
  bool is_number() const { return is(Type::kBool) || is(Type::kInt) || is(Type::kFloat); }
  // bool counts as an integer, as in Python.
  bool is_integral() const { return is(Type::kBool) || is(Type::kInt); }

  // Each requires the matching type.
  const Undefined& undefined() const { return std::get<Undefined>(state_); }
  bool boolean() const { return std::get<bool>(state_); }
  int64_t integer() const { return is(Type::kBool) ? int64_t{boolean()} : std::get<int64_t>(state_); }
  double number() const { return is(Type::kFloat) ? std::get<double>(state_) : static_cast<double>(integer()); }
  const MarkedText& text() const { return *std::get<StringPtr>(state_); }
  std::string_view view() const { return text().view(); }
  const StringPtr& string_ptr() const { return std::get<StringPtr>(state_); }
  const Sequence& sequence() const { return *std::get<SequencePtr>(state_); }
  const Dict& dict() const { return *std::get<DictPtr>(state_); }
  Object& object() const { return *std::get<ObjectPtr>(state_); }
  const ObjectPtr& object_ptr() const { return std::get<ObjectPtr>(state_); }
  // The address of what is shared, null for scalars.
  const void* identity() const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, StringPtr, SequencePtr, DictPtr, ObjectPtr> state_;
};

// How much there is to walk through in a value: levels of nesting, and nodes (a string counts one per 64 bytes), shared
// parts counted as often as they are reached. Interpreter keeps both below limits, so that walks end.
struct Shape {
  uint32_t depth = 0;
  uint64_t weight = 1;
  void include(const Value& part);
};
inline constexpr uint32_t kValueDepthMax = 128;
inline constexpr uint64_t kValueWeightMax = uint64_t{1} << 21;
inline constexpr size_t kTextBytesMax = size_t{64} << 20;

// Everything Python iterates over in order.
struct Sequence {
  enum class Kind { kList, kTuple, kRange, kGenerator, kDictKeys, kDictValues, kDictItems };
  Kind kind = Kind::kList;
  List items;
  Shape shape{1, 1};
  int64_t start = 0, stop = 0, step = 1;  // kRange, for its repr
  bool group = false;                     // kTuple made by groupby: .grouper and .list
  mutable size_t taken = 0;               // kGenerator: items already consumed

  // Has [] and slices.
  bool indexable() const { return kind == Kind::kList || kind == Kind::kTuple || kind == Kind::kRange; }
};

// A dict in insertion order. Keys are hashable values; equal keys are one (1, 1.0 and true).
class Dict {
 public:
  using Entry = std::pair<Value, Value>;
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  // A known key keeps its place. Throws Error for a key that cannot be hashed.
  void set(const Value& key, Value value);
  void remove(const Value& key);
  void clear();
  const Shape& shape() const { return shape_; }

 private:
  size_t locate(const std::string& hash_key) const;

  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
  Shape shape_{1, 1};
};

struct Keyword {
  StringPtr name;
  Value value;
};
struct CallArgs {
  List positional;
  std::vector<Keyword> keywords;
};

// A callable or a thing with attributes: namespaces, macros, loops, bound methods, global functions.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string_view type_name() const = 0;
  virtual bool callable() const { return false; }
  virtual std::optional<Value> attribute(Interpreter&, std::string_view) { return std::nullopt; }
  virtual Value call(Interpreter&, CallArgs&) { fail("'{}' object is not callable", type_name()); }
  virtual void repr(MarkedText& out, uint32_t) const { out.append(fmt::format("<{}>", type_name()), true); }
  // Drops everything that could lead back to this object.
  virtual void clear() {}
};

// Python's names: "str", "list", "NoneType", "Undefined", ...
std::string_view type_name(const Value& v);
Shape shape_of(const Value& v);
bool truthy(const Value& v);
// Python's ==; never fails except beyond the nesting limit.
bool equal(const Value& a, const Value& b);
// Python's < (`a` before `b`); throws Error for types that have no order. `symbol` names the operator in the error.
bool less(const Value& a, const Value& b, std::string_view symbol = "<");
// Number of elements; nullopt for what has no len().
std::optional<size_t> length(const Value& v);

// str() and repr(), appended.
void append_str(MarkedText& out, const Value& v);
void append_repr(MarkedText& out, const Value& v, uint32_t depth = 0);
// repr of a float: the shortest digits that read back, Python's choice of notation.
std::string float_repr(double v);

// Throws the error that using an undefined value gives.
[[noreturn]] void fail_undefined(const Value& v);

}  // namespace motley::jinja
