// The functions every chat template finds: those of Jinja2 and the two that transformers adds.
#include <cstring>
#include <ctime>
#include <unordered_map>

#include "text/jinja/builtin.hpp"
#include "text/jinja/objects.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
constexpr size_t kTimeBytesMax = 1024;

Value global_range(Interpreter& in, const Value&, Slots& a) {
  int64_t start = 0, stop = 0;
  for (const auto& v : a.values) {
    if (v && !v->is_integral()) fail("range() takes integers, not {}", type_name(*v));
  }
  if (a.has(1)) {
    start = a.integer(0, 0);
    stop = a.integer(1, 0);
  } else {
    stop = a.integer(0, 0);
  }
  const int64_t step = a.integer(2, 1);
  if (step == 0) fail("range() arg 3 must not be zero");
  const bool empty = step > 0 ? start >= stop : start <= stop;
  const uint64_t low = static_cast<uint64_t>(step > 0 ? start : stop),
                 high = static_cast<uint64_t>(step > 0 ? stop : start);
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
  const uint64_t count = empty ? 0 : (high - low - 1) / stride + 1;
  if (count > static_cast<uint64_t>(kRangeMax)) fail("range() is limited to {} elements", kRangeMax);
  in.charge(count);
  auto range = std::make_shared<Sequence>();
  range->kind = Sequence::Kind::kRange;
  range->start = start;
  range->stop = stop;
  range->step = step;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) range->items.emplace_back(start + i * step);
  range->shape = {1, 1 + count};
  return Value(SequencePtr(std::move(range)));
}

// dict(mapping or pairs, **more).
Dict build_dict(Interpreter& in, Slots& a) {
  Dict entries;
  if (a.has(0) && a.at(0).is(Type::kDict)) {
    in.charge(shape_of(a.at(0)).weight);
    entries = a.at(0).dict();
  } else if (a.has(0)) {
    for (const Value& pair : in.items_of(a.at(0))) {
      List parts = in.items_of(pair);
      if (parts.size() != 2) fail("dict() takes pairs; got {} values", parts.size());
      charge_walk(in, parts[0]);
      entries.set(parts[0], parts[1]);
    }
  }
  for (const Keyword& keyword : a.rest.keywords) entries.set(Value(keyword.name), keyword.value);
  return entries;
}

Value global_dict(Interpreter& in, const Value&, Slots& a) { return in.dict(build_dict(in, a)); }
Value global_namespace(Interpreter& in, const Value&, Slots& a) {
  return in.keep(std::make_shared<Namespace>(build_dict(in, a)));
}

Value global_raise(Interpreter& in, const Value&, Slots& a) {
  throw Error{.message = in.str(a.at(0)).bytes(), .refused = true};
}

Value global_strftime_now(Interpreter& in, const Value&, Slots& a) {
  const std::string& format = a.text(0).bytes();
  if (format.size() > kTimeBytesMax) fail("strftime_now: the format is longer than {} bytes", kTimeBytesMax);
  const auto now = static_cast<time_t>(in.unix_time_s());
  struct tm local = {};
  localtime_r(&now, &local);
  char buffer[8 * kTimeBytesMax];
  size_t n = std::strftime(buffer, sizeof buffer, format.c_str(), &local);
  // The format's own letters come out too, so the text is trusted only as far as the format is.
  bool trusted = true;
  for (const MarkedText::Run& run : a.text(0).runs()) trusted = trusted && run.trusted;
  return in.text(MarkedText(std::string_view(buffer, n), trusted));
}

// cycler(...): .next(), .current, .reset().
class Cycler : public Object {
 public:
  explicit Cycler(List items) : items_(std::move(items)) {}
  std::string_view type_name() const override { return "Cycler"; }
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override;
  Value advance() {
    Value v = items_[at_];
    at_ = (at_ + 1) % items_.size();
    return v;
  }
  void reset() { at_ = 0; }
  void clear() override { items_.clear(); }

 private:
  List items_;
  size_t at_ = 0;
};

Value cycler_next(Interpreter&, const Value& self, Slots&) { return static_cast<Cycler&>(self.object()).advance(); }
Value cycler_reset(Interpreter&, const Value& self, Slots&) {
  return static_cast<Cycler&>(self.object()).reset(), Value();
}
constexpr Builtin kCyclerMethods[] = {{"next", "", 0, cycler_next}, {"reset", "", 0, cycler_reset}};

std::optional<Value> Cycler::attribute(Interpreter&, std::string_view name) {
  if (name == "current") return items_[at_];
  for (const Builtin& method : kCyclerMethods) {
    // Not owning: a cycler is kept until the end of the rendering.
    if (method.name == name)
      return Value(ObjectPtr(std::make_shared<BuiltinFunction>(method, Value(ObjectPtr(ObjectPtr(), this)))));
  }
  return std::nullopt;
}

Value global_cycler(Interpreter& in, const Value&, Slots& a) {
  if (a.rest.positional.empty()) fail("cycler() needs at least one item");
  return in.keep(std::make_shared<Cycler>(std::move(a.rest.positional)));
}

// joiner(sep): nothing on the first call, then the separator.
class Joiner : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string_view type_name() const override { return "Joiner"; }
  bool callable() const override { return true; }
  Value call(Interpreter& in, CallArgs&) override { return std::exchange(used_, true) ? separator_ : in.text({}); }
  void clear() override { separator_ = Value(); }

 private:
  Value separator_;
  bool used_ = false;
};

Value global_joiner(Interpreter& in, const Value&, Slots& a) {
  return in.keep(std::make_shared<Joiner>(a.value_or(0, Value::literal(", "))));
}

constexpr Builtin kGlobals[] = {
    {"range", "start stop step", 1, global_range},
    {"dict", "mapping **", 0, global_dict},
    {"namespace", "mapping **", 0, global_namespace},
    {"raise_exception", "message", 1, global_raise},
    {"strftime_now", "format", 1, global_strftime_now},
    {"cycler", "*", 0, global_cycler},
    {"joiner", "sep", 0, global_joiner},
};

}  // namespace

const Value* find_global(std::string_view name) {
  // Immutable after the first call, and without state: shared by all renderings.
  static const auto table = [] {
    std::unordered_map<std::string_view, Value> functions;
    for (const Builtin& global : kGlobals) {
      functions.emplace(global.name, Value(ObjectPtr(std::make_shared<BuiltinFunction>(global, Value()))));
    }
    return functions;
  }();
  auto it = table.find(name);
  return it == table.end() ? nullptr : &it->second;
}

}  // namespace motley::jinja
