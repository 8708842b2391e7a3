// Filters over sequences and dicts.
#include <algorithm>
#include <bit>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
using Kind = Sequence::Kind;

// The path "a.b.0" applied to items, as the `attribute` parameter of many filters.
class Getter {
 public:
  Getter(Interpreter& in, const Value& attribute, std::optional<Value> fallback = std::nullopt)
      : in_(in), fallback_(std::move(fallback)) {
    if (attribute.is_none()) return;
    if (!attribute.is_string()) {
      parts_.push_back(attribute);
      return;
    }
    std::string_view path = attribute.view();
    for (;;) {
      size_t dot = std::min(path.find('.'), path.size());
      std::string_view part = path.substr(0, dot);
      const bool digits = !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos;
      std::optional<int64_t> index;
      if (digits) index = parse_int(part, 10);
      parts_.push_back(index ? Value(*index) : Value::literal(part));
      if (dot == path.size()) break;
      path.remove_prefix(dot + 1);
    }
  }

  Value operator()(const Value& item) const {
    Value v = item;
    for (const Value& part : parts_) {
      in_.charge(1);
      v = in_.item(v, part);
      if (fallback_ && !fallback_->is_none() && v.is_undefined()) v = *fallback_;
    }
    return v;
  }

 private:
  Interpreter& in_;
  std::vector<Value> parts_;
  std::optional<Value> fallback_;
};

Value folded(Interpreter& in, const Value& v, bool case_sensitive) {
  if (case_sensitive || !v.is_string()) return v;
  return in.text(change_case(v.text(), Case::kLower));
}

// Items with the key they are ordered by, sorted; equal keys keep their order.
using Keyed = std::pair<Value, Value>;
void sort_keyed(Interpreter& in, std::vector<Keyed>& items, bool reverse) {
  uint64_t weight = items.size();
  for (const Keyed& item : items) weight += shape_of(item.first).weight;
  in.charge(weight * std::bit_width(items.size()));
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? less(b.first, a.first) : less(a.first, b.first);
  });
}

List second_of(std::vector<Keyed> items) {
  List out;
  for (Keyed& item : items) out.push_back(std::move(item.second));
  return out;
}

Value filter_length(Interpreter& in, const Value& v, Slots&) {
  if (auto n = length(v)) return make_int(*n);
  static_cast<void>(in);
  fail("object of type '{}' has no len()", type_name(v));
}

Value filter_first(Interpreter& in, const Value& v, Slots&) {
  if (v.is(Type::kSequence)) {
    const Sequence& s = v.sequence();
    const size_t i = s.kind == Kind::kGenerator ? s.taken : 0;
    if (i < s.items.size()) {
      if (s.kind == Kind::kGenerator) ++s.taken;
      return s.items[i];
    }
  } else {
    List items = in.items_of(v);
    if (!items.empty()) return items.front();
  }
  return in.undefined("No first item, sequence was empty.");
}

Value filter_last(Interpreter& in, const Value& v, Slots&) {
  if (v.is(Type::kSequence)) {
    const Sequence& s = v.sequence();
    if (s.kind == Kind::kGenerator) fail("'generator' object is not reversible");
    if (!s.items.empty()) return s.items.back();
  } else {
    List items = in.items_of(v);
    if (!items.empty()) return items.back();
  }
  return in.undefined("No last item, sequence was empty.");
}

Value filter_list(Interpreter& in, const Value& v, Slots&) { return in.list(in.items_of(v)); }

Value filter_items(Interpreter& in, const Value& v, Slots&) {
  if (v.is_undefined()) return in.generator({});
  if (!v.is(Type::kDict)) fail("Can only get item pairs from a mapping.");
  List items;
  for (const auto& [key, value] : v.dict().entries()) items.push_back(in.tuple({key, value}));
  return in.generator(std::move(items));
}

Value filter_dictsort(Interpreter& in, const Value& v, Slots& a) {
  if (v.is_undefined()) fail_undefined(v);
  if (!v.is(Type::kDict)) fail("'{}' object has no attribute 'items'", type_name(v));
  const bool case_sensitive = a.flag(0, false);
  const std::string_view by = a.has(1) ? a.text(1).view() : "key";
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  std::vector<Keyed> items;
  for (const auto& [key, value] : v.dict().entries()) {
    items.emplace_back(folded(in, by == "key" ? key : value, case_sensitive), in.tuple({key, value}));
  }
  sort_keyed(in, items, a.flag(2, false));
  return in.list(second_of(std::move(items)));
}

Value filter_sort(Interpreter& in, const Value& v, Slots& a) {
  const bool case_sensitive = a.flag(1, false);
  std::vector<Getter> getters;
  if (a.set(2) && a.at(2).is_string()) {
    std::string_view names = a.text(2).view();
    for (;;) {
      size_t comma = std::min(names.find(','), names.size());
      getters.emplace_back(in, Value::literal(names.substr(0, comma)));
      if (comma == names.size()) break;
      names.remove_prefix(comma + 1);
    }
  } else {
    getters.emplace_back(in, a.value_or(2, Value()));
  }
  std::vector<Keyed> items;
  for (const Value& item : in.items_of(v)) {
    List key;
    for (const Getter& getter : getters) key.push_back(folded(in, getter(item), case_sensitive));
    items.emplace_back(in.list(std::move(key)), item);
  }
  sort_keyed(in, items, a.flag(0, false));
  return in.list(second_of(std::move(items)));
}

Value filter_unique(Interpreter& in, const Value& v, Slots& a) {
  Getter getter(in, a.value_or(1, Value()));
  Dict seen;
  List out;
  for (const Value& item : in.items_of(v)) {
    Value key = folded(in, getter(item), a.flag(0, false));
    charge_walk(in, key);
    size_t before = seen.size();
    seen.set(key, Value());
    if (seen.size() > before) out.push_back(item);
  }
  return in.generator(std::move(out));
}

template <bool kMax>
Value filter_extreme(Interpreter& in, const Value& v, Slots& a) {
  Getter getter(in, a.value_or(1, Value()));
  std::optional<Keyed> best;
  for (const Value& item : in.items_of(v)) {
    Value key = folded(in, getter(item), a.flag(0, false));
    if (best) charge_walk(in, key);
    if (!best || (kMax ? less(best->first, key, ">") : less(key, best->first, "<"))) best.emplace(std::move(key), item);
  }
  return best ? best->second : in.undefined("No aggregated item, sequence was empty.");
}

Value filter_reverse(Interpreter& in, const Value& v, Slots&) {
  if (v.is_string()) return slice(in, v, Value(), Value(), Value(int64_t{-1}));
  List items = in.items_of(v);
  std::reverse(items.begin(), items.end());
  const bool one_way = v.is(Type::kSequence) && v.sequence().kind == Kind::kGenerator;
  return one_way ? in.list(std::move(items)) : in.generator(std::move(items));
}

Value filter_join(Interpreter& in, const Value& v, Slots& a) {
  MarkedText separator;
  if (a.has(0)) separator = soft_text(in, a.at(0));
  List items = in.items_of(v);
  if (a.set(1)) {
    Getter getter(in, a.at(1));
    for (Value& item : items) item = getter(item);
  }
  return in.text(join_text(in, items, separator));
}

Value filter_sum(Interpreter& in, const Value& v, Slots& a) {
  Getter getter(in, a.value_or(0, Value()));
  Value total = a.value_or(1, Value(int64_t{0}));
  if (total.is_string()) fail("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : in.items_of(v)) total = in.binary(Op::kAdd, total, getter(item));
  return total;
}

int64_t positive(const Slots& a, size_t i, std::string_view what) {
  const int64_t n = a.integer(i, 0);
  if (n <= 0) fail("{} must be greater than zero", what);
  return n;
}

Value filter_batch(Interpreter& in, const Value& v, Slots& a) {
  const auto size = static_cast<size_t>(positive(a, 0, "batch: the line count"));
  List out, line;
  for (const Value& item : in.items_of(v)) {
    if (line.size() == size) out.push_back(in.list(std::exchange(line, {})));
    line.push_back(item);
  }
  if (!line.empty()) {
    if (a.set(1)) {
      in.charge(size - line.size());
      line.resize(size, a.at(1));
    }
    out.push_back(in.list(std::move(line)));
  }
  return in.generator(std::move(out));
}

Value filter_slice(Interpreter& in, const Value& v, Slots& a) {
  const auto slices = static_cast<size_t>(positive(a, 0, "slice: the number of slices"));
  in.charge(slices);
  List items = in.items_of(v), out;
  const size_t each = items.size() / slices, longer = items.size() % slices;
  size_t offset = 0;
  for (size_t i = 0; i < slices; ++i) {
    size_t n = each + (i < longer ? 1 : 0);
    auto begin = items.begin() + static_cast<std::ptrdiff_t>(offset);
    List part(begin, begin + static_cast<std::ptrdiff_t>(n));
    if (a.set(1) && i >= longer) part.push_back(a.at(1));
    out.push_back(in.list(std::move(part)));
    offset += n;
  }
  return in.generator(std::move(out));
}

Value filter_map(Interpreter& in, const Value& v, Slots& a) {
  List items = in.items_of(v);
  CallArgs& given = a.rest;
  if (given.positional.empty()) {
    std::optional<Value> attribute, fallback;
    for (Keyword& keyword : given.keywords) {
      if (keyword.name->view() == "attribute")
        attribute = keyword.value;
      else if (keyword.name->view() == "default")
        fallback = keyword.value;
      else
        fail("map: unexpected keyword argument '{}'", keyword.name->view());
    }
    if (!attribute) fail("map requires a filter argument");
    Getter getter(in, *attribute, fallback);
    for (Value& item : items) item = getter(item);
    return in.generator(std::move(items));
  }
  if (!given.positional[0].is_string()) fail("map: the name of a filter must be a string");
  const Value name = given.positional[0];
  given.positional.erase(given.positional.begin());
  for (Value& item : items) {
    in.charge(1 + given.positional.size());
    CallArgs args = given;
    item = in.filter(name.view(), item, args);
  }
  return in.generator(std::move(items));
}

template <bool kKeep, bool kAttribute>
Value filter_select(Interpreter& in, const Value& v, Slots& a) {
  CallArgs& given = a.rest;
  std::optional<Getter> getter;
  if (kAttribute) {
    if (given.positional.empty()) fail("Missing parameter for attribute name");
    getter.emplace(in, given.positional[0]);
    given.positional.erase(given.positional.begin());
  }
  std::optional<Value> name;
  if (!given.positional.empty()) {
    name = given.positional[0];
    if (!name->is_string()) fail("the name of a test must be a string");
    given.positional.erase(given.positional.begin());
  }
  List out;
  if (!truthy(v)) return in.generator({});
  for (const Value& item : in.items_of(v)) {
    in.charge(1 + given.positional.size());
    Value subject = getter ? (*getter)(item) : item;
    CallArgs args = given;
    if ((name ? in.test(name->view(), subject, args) : truthy(subject)) == kKeep) out.push_back(item);
  }
  return in.generator(std::move(out));
}

Value group(Interpreter& in, Value key, List items) {
  auto tuple = std::make_shared<Sequence>();
  tuple->kind = Kind::kTuple;
  tuple->group = true;
  tuple->items = {std::move(key), in.list(std::move(items))};
  for (const Value& item : tuple->items) tuple->shape.include(item);
  return Value(SequencePtr(std::move(tuple)));
}

Value filter_groupby(Interpreter& in, const Value& v, Slots& a) {
  const bool case_sensitive = a.flag(2, false);
  std::optional<Value> fallback;
  if (a.has(1)) fallback = a.at(1);
  Getter getter(in, a.at(0), fallback);
  std::vector<Keyed> items;
  for (const Value& item : in.items_of(v)) items.emplace_back(folded(in, getter(item), case_sensitive), item);
  sort_keyed(in, items, false);
  List out;
  for (size_t i = 0; i < items.size();) {
    size_t end = i;
    List members;
    while (end < items.size() && in.compare(Op::kEq, items[end].first, items[i].first))
      members.push_back(items[end++].second);
    end = std::max(end, i + 1);  // NaN is a group of its own
    if (members.empty()) members.push_back(items[i].second);
    out.push_back(group(in, case_sensitive ? items[i].first : getter(items[i].second), std::move(members)));
    i = end;
  }
  return in.list(std::move(out));
}

constexpr Builtin kSequenceFilters[] = {
    {"length", "", 0, filter_length},
    {"count", "", 0, filter_length},
    {"first", "", 0, filter_first},
    {"last", "", 0, filter_last},
    {"list", "", 0, filter_list},
    {"items", "", 0, filter_items},
    {"dictsort", "case_sensitive by reverse", 0, filter_dictsort},
    {"sort", "reverse case_sensitive attribute", 0, filter_sort},
    {"unique", "case_sensitive attribute", 0, filter_unique},
    {"min", "case_sensitive attribute", 0, filter_extreme<false>},
    {"max", "case_sensitive attribute", 0, filter_extreme<true>},
    {"reverse", "", 0, filter_reverse},
    {"join", "d attribute", 0, filter_join},
    {"sum", "attribute start", 0, filter_sum},
    {"batch", "linecount fill_with", 1, filter_batch},
    {"slice", "slices fill_with", 1, filter_slice},
    {"map", "* **", 0, filter_map},
    {"select", "* **", 0, filter_select<true, false>},
    {"reject", "* **", 0, filter_select<false, false>},
    {"selectattr", "* **", 0, filter_select<true, true>},
    {"rejectattr", "* **", 0, filter_select<false, true>},
    {"groupby", "attribute default case_sensitive", 1, filter_groupby},
};

}  // namespace

std::span<const Builtin> sequence_filters() { return kSequenceFilters; }

}  // namespace motley::jinja
