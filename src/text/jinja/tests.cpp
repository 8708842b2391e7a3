// What may stand after `is`.
#include "text/jinja/builtin.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;

template <Type kType>
Value test_type(Interpreter&, const Value& v, Slots&) {
  return Value(v.is(kType));
}
Value test_defined(Interpreter&, const Value& v, Slots&) { return Value(!v.is_undefined()); }
Value test_number(Interpreter&, const Value& v, Slots&) { return Value(v.is_number()); }
Value test_iterable(Interpreter&, const Value& v, Slots&) {
  return Value(v.is_undefined() || v.is_string() || v.is(Type::kDict) || v.is(Type::kSequence));
}
Value test_sequence(Interpreter&, const Value& v, Slots&) {
  return Value(v.is_undefined() || v.is_string() || v.is(Type::kDict) ||
               (v.is(Type::kSequence) && v.sequence().indexable()));
}
Value test_callable(Interpreter&, const Value& v, Slots&) {
  return Value(v.is_undefined() || (v.is(Type::kObject) && v.object().callable()));
}
template <bool kWanted>
Value test_boolean_value(Interpreter&, const Value& v, Slots&) {
  return Value(v.is(Type::kBool) && v.boolean() == kWanted);
}
template <Op kOp>
Value test_compare(Interpreter& in, const Value& v, Slots& a) {
  return Value(in.compare(kOp, v, a.at(0)));
}

template <int64_t kRemainder>
Value test_parity(Interpreter& in, const Value& v, Slots&) {
  return Value(in.compare(Op::kEq, in.binary(Op::kMod, v, Value(int64_t{2})), Value(kRemainder)));
}
Value test_divisible(Interpreter& in, const Value& v, Slots& a) {
  return Value(in.compare(Op::kEq, in.binary(Op::kMod, v, a.at(0)), Value(int64_t{0})));
}
Value test_same(Interpreter&, const Value& v, Slots& a) {
  const Value& other = a.at(0);
  if (v.type() != other.type()) return Value(false);
  return Value(v.identity() != nullptr ? v.identity() == other.identity() : equal(v, other));
}
Value test_escaped(Interpreter&, const Value&, Slots&) { return Value(false); }

// isupper() or islower() of the text.
Value test_case(Interpreter& in, const Value& v, const char* method) {
  Value text = in.text(soft_text(in, v));
  CallArgs none;
  return in.call(*bound_method(in, text, method), none);
}
Value test_upper(Interpreter& in, const Value& v, Slots&) { return test_case(in, v, "isupper"); }
Value test_lower(Interpreter& in, const Value& v, Slots&) { return test_case(in, v, "islower"); }

Value test_filter(Interpreter&, const Value& v, Slots&) {
  return Value(v.is_string() && find_filter(v.view()) != nullptr);
}
Value test_test(Interpreter&, const Value& v, Slots&) { return Value(v.is_string() && find_test(v.view()) != nullptr); }

constexpr Builtin kTests[] = {
    {"defined", "", 0, test_defined},
    {"undefined", "", 0, test_type<Type::kUndefined>},
    {"none", "", 0, test_type<Type::kNone>},
    {"string", "", 0, test_type<Type::kString>},
    {"number", "", 0, test_number},
    {"integer", "", 0, test_type<Type::kInt>},
    {"float", "", 0, test_type<Type::kFloat>},
    {"boolean", "", 0, test_type<Type::kBool>},
    {"mapping", "", 0, test_type<Type::kDict>},
    {"iterable", "", 0, test_iterable},
    {"sequence", "", 0, test_sequence},
    {"callable", "", 0, test_callable},
    {"true", "", 0, test_boolean_value<true>},
    {"false", "", 0, test_boolean_value<false>},
    {"odd", "", 0, test_parity<1>},
    {"even", "", 0, test_parity<0>},
    {"divisibleby", "num", 1, test_divisible},
    {"sameas", "other", 1, test_same},
    {"escaped", "", 0, test_escaped},
    {"upper", "", 0, test_upper},
    {"lower", "", 0, test_lower},
    {"filter", "", 0, test_filter},
    {"test", "", 0, test_test},
    {"in", "seq", 1, test_compare<Op::kIn>},
    {"eq", "other", 1, test_compare<Op::kEq>},
    {"equalto", "other", 1, test_compare<Op::kEq>},
    {"==", "other", 1, test_compare<Op::kEq>},
    {"ne", "other", 1, test_compare<Op::kNe>},
    {"!=", "other", 1, test_compare<Op::kNe>},
    {"lt", "other", 1, test_compare<Op::kLt>},
    {"lessthan", "other", 1, test_compare<Op::kLt>},
    {"<", "other", 1, test_compare<Op::kLt>},
    {"le", "other", 1, test_compare<Op::kLe>},
    {"<=", "other", 1, test_compare<Op::kLe>},
    {"gt", "other", 1, test_compare<Op::kGt>},
    {"greaterthan", "other", 1, test_compare<Op::kGt>},
    {">", "other", 1, test_compare<Op::kGt>},
    {"ge", "other", 1, test_compare<Op::kGe>},
    {">=", "other", 1, test_compare<Op::kGe>},
};

}  // namespace

std::span<const Builtin> tests() { return kTests; }

}  // namespace motley::jinja
