#include "text/jinja/builtin.hpp"

#include <algorithm>
#include <unordered_map>

namespace motley::jinja {
namespace {

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    size_t end = std::min(text.find(' '), text.size());
    out.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

using Index = std::unordered_map<std::string_view, const Builtin*>;
Index index_of(std::initializer_list<std::span<const Builtin>> tables) {
  Index index;
  for (auto table : tables) {
    for (const Builtin& builtin : table) index.emplace(builtin.name, &builtin);
  }
  return index;
}

const Builtin* look_up(const Index& index, std::string_view name) {
  auto it = index.find(name);
  return it == index.end() ? nullptr : it->second;
}

}  // namespace

int64_t Slots::integer(size_t i, int64_t fallback) const {
  if (!set(i)) return fallback;
  if (at(i).is_undefined()) fail_undefined(at(i));
  if (!at(i).is_integral()) fail("'{}' object cannot be interpreted as an integer", type_name(at(i)));
  return at(i).integer();
}

const MarkedText& Slots::text(size_t i) const {
  if (at(i).is_undefined()) fail_undefined(at(i));
  if (!at(i).is_string()) fail("expected a string, not {}", type_name(at(i)));
  return at(i).text();
}

Slots bind(const Builtin& builtin, CallArgs& args) {
  std::vector<std::string_view> names = words(builtin.params);
  auto take = [&](std::string_view mark) {
    bool present = !names.empty() && names.back() == mark;
    if (present) names.pop_back();
    return present;
  };
  const bool more_keywords = take("**");
  const bool more_positional = take("*");
  Slots slots;
  slots.values.resize(names.size());
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (i < names.size())
      slots.values[i] = std::move(args.positional[i]);
    else if (more_positional)
      slots.rest.positional.push_back(std::move(args.positional[i]));
    else
      fail("{}() takes at most {} argument(s), got {}", builtin.name, names.size(), args.positional.size());
  }
  for (Keyword& keyword : args.keywords) {
    size_t i = static_cast<size_t>(std::find(names.begin(), names.end(), keyword.name->view()) - names.begin());
    if (i < names.size()) {
      if (slots.values[i]) fail("{}() got multiple values for argument '{}'", builtin.name, keyword.name->view());
      slots.values[i] = std::move(keyword.value);
    } else if (more_keywords) {
      slots.rest.keywords.push_back(std::move(keyword));
    } else {
      fail("{}() got an unexpected keyword argument '{}'", builtin.name, keyword.name->view());
    }
  }
  for (size_t i = 0; i < builtin.required; ++i) {
    if (!slots.has(i)) fail("{}() is missing its argument '{}'", builtin.name, names[i]);
  }
  return slots;
}

Value call_builtin(Interpreter& in, const Builtin& builtin, const Value& self, CallArgs& args) {
  if (self.is_string()) in.charge(1 + self.text().size() / 64);
  Slots slots = bind(builtin, args);
  return builtin.function(in, self, slots);
}

const Builtin* find_filter(std::string_view name) {
  static const Index index = index_of({text_filters(), sequence_filters()});
  return look_up(index, name);
}

const Builtin* find_test(std::string_view name) {
  static const Index index = index_of({tests()});
  return look_up(index, name);
}

Value Interpreter::filter(std::string_view name, const Value& v, CallArgs& args) {
  const Builtin* builtin = find_filter(name);
  if (builtin == nullptr) fail("no filter named '{}'", name);
  return call_builtin(*this, *builtin, v, args);
}

bool Interpreter::test(std::string_view name, const Value& v, CallArgs& args) {
  const Builtin* builtin = find_test(name);
  if (builtin == nullptr) fail("no test named '{}'", name);
  return truthy(call_builtin(*this, *builtin, v, args));
}

}  // namespace motley::jinja
