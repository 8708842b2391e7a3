#include "text/jinja/objects.hpp"

#include "text/jinja/builtin.hpp"

namespace motley::jinja {
namespace {

Value loop_cycle(Interpreter&, const Value& self, Slots& slots) {
  const auto& loop = static_cast<const Loop&>(self.object());
  const List& values = slots.rest.positional;
  if (values.empty()) fail("no items for cycling given");
  return values[loop.index() % values.size()];
}

Value loop_changed(Interpreter& in, const Value& self, Slots& slots) {
  Value values = in.tuple(slots.rest.positional);
  charge_walk(in, values);
  return Value(static_cast<Loop&>(self.object()).changed(values));
}

constexpr Builtin kLoopMethods[] = {{"cycle", "*", 0, loop_cycle}, {"changed", "*", 0, loop_changed}};

}  // namespace

std::optional<Value> Namespace::attribute(Interpreter&, std::string_view name) {
  const Value* value = values_.find(name);
  return value ? std::optional<Value>(*value) : std::nullopt;
}

void Namespace::repr(MarkedText& out, uint32_t depth) const {
  out.append("<Namespace ", true);
  append_repr(out, Value(std::make_shared<const Dict>(values_)), depth + 1);
  out.append(">", true);
}

std::optional<Value> Macro::attribute(Interpreter& in, std::string_view name) {
  if (name == "name") return in.text(MarkedText(signature_.name, true));
  if (name == "caller") return Value(signature_.uses_caller);
  if (name == "catch_kwargs") return Value(signature_.uses_kwargs);
  if (name == "catch_varargs") return Value(signature_.uses_varargs);
  if (name != "arguments") return std::nullopt;
  List names;
  for (const StringPtr& param : signature_.params) names.emplace_back(param);
  return in.tuple(std::move(names));
}

void Macro::repr(MarkedText& out, uint32_t) const { out.append(fmt::format("<Macro '{}'>", signature_.name), true); }

bool Loop::changed(const Value& values) {
  if (last_changed_ && equal(*last_changed_, values)) return false;
  last_changed_ = values;
  return true;
}

std::optional<Value> Loop::attribute(Interpreter& in, std::string_view name) {
  const size_t n = items_.size();
  if (name == "index") return make_int(index_ + 1);
  if (name == "index0") return make_int(index_);
  if (name == "revindex") return make_int(n - index_);
  if (name == "revindex0") return make_int(n - index_ - 1);
  if (name == "first") return Value(index_ == 0);
  if (name == "last") return Value(index_ + 1 == n);
  if (name == "length") return make_int(n);
  if (name == "depth") return Value(int64_t{depth0_} + 1);
  if (name == "depth0") return Value(int64_t{depth0_});
  if (name == "previtem") return index_ > 0 ? items_[index_ - 1] : in.undefined("there is no previous item");
  if (name == "nextitem") return index_ + 1 < n ? items_[index_ + 1] : in.undefined("there is no next item");
  for (const Builtin& method : kLoopMethods) {
    // A bound method refers to its loop; the loop is kept until the end of the rendering and so outlives it.
    if (method.name == name) {
      return Value(std::make_shared<BuiltinFunction>(method, Value(ObjectPtr(ObjectPtr(), this))));
    }
  }
  return std::nullopt;
}

Value Loop::call(Interpreter& in, CallArgs& args) {
  if (statement_ == nullptr) fail("the loop must have the 'recursive' marker to be called");
  if (args.positional.size() != 1 || !args.keywords.empty()) fail("loop() takes one argument: what to go over");
  return in.recurse(*statement_, scope_, args.positional[0], depth0_ + 1);
}

void Loop::repr(MarkedText& out, uint32_t) const {
  out.append(fmt::format("<LoopContext {}/{}>", index_ + 1, items_.size()), true);
}

void Loop::clear() {
  items_.clear();
  scope_.reset();
  last_changed_.reset();
}

}  // namespace motley::jinja
