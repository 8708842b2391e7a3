#include "text/jinja/interpreter.hpp"

#include <algorithm>

#include "text/jinja/builtin.hpp"
#include "text/jinja/objects.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {

using Type = Value::Type;

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent_.get()) {
    for (const auto& [key, value] : scope->names_) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Scope::set(std::string_view name, Value value) {
  for (auto& [key, old] : names_) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  names_.emplace_back(name, std::move(value));
}

// Counts nested evaluations.
struct Interpreter::Deeper {
  explicit Deeper(Interpreter& in) : in_(in) {
    if (in_.depth_ >= in_.limits_.depth) fail("evaluation nested deeper than {} levels", in_.limits_.depth);
    ++in_.depth_;
  }
  ~Deeper() { --in_.depth_; }
  Interpreter& in_;
};

Interpreter::~Interpreter() {
  for (const ObjectPtr& object : kept_) object->clear();
}

MarkedText Interpreter::run(const Body& body, const Dict& variables) {
  scope_ = std::make_shared<Scope>(nullptr);
  for (const auto& [name, value] : variables.entries()) scope_->set(name.view(), value);
  scope_ = std::make_shared<Scope>(scope_);
  MarkedText out;
  out_ = &out;
  exec(body);
  return out;
}

// --- values ---

Value Interpreter::text(MarkedText text) {
  charge_text(text.size());
  return Value(std::make_shared<const MarkedText>(std::move(text)));
}

Value Interpreter::sequence(Sequence::Kind kind, List items) {
  charge(2 + items.size());
  auto sequence = std::make_shared<Sequence>();
  for (const Value& item : items) sequence->shape.include(item);
  sequence->kind = kind;
  sequence->items = std::move(items);
  return Value(SequencePtr(std::move(sequence)));
}

Value Interpreter::dict(Dict entries) {
  charge(2 + 2 * entries.size());
  return Value(DictPtr(std::make_shared<const Dict>(std::move(entries))));
}

Value Interpreter::undefined(std::string why) const {
  return Value(Undefined{std::make_shared<const std::string>(std::move(why))});
}

Value Interpreter::keep(ObjectPtr object) {
  charge(8);
  kept_.push_back(object);
  return Value(std::move(object));
}

MarkedText Interpreter::str(const Value& v) {
  MarkedText out;
  append_str(out, v);
  charge_text(out.size());
  return out;
}

List Interpreter::items_of(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined: return {};
    case Type::kString: {
      List chars;
      const MarkedText& s = v.text();
      for (size_t pos = 0; pos < s.size();) {
        size_t n = char_length(s.view(), pos);
        chars.push_back(text(s.sub(pos, pos + n)));
        pos += n;
      }
      return chars;
    }
    case Type::kDict: {
      charge(v.dict().size());
      List keys;
      for (const auto& entry : v.dict().entries()) keys.push_back(entry.first);
      return keys;
    }
    case Type::kSequence: {
      const Sequence& s = v.sequence();
      charge(s.items.size());
      if (s.kind != Sequence::Kind::kGenerator) return s.items;
      List rest(s.items.begin() + static_cast<std::ptrdiff_t>(s.taken), s.items.end());
      s.taken = s.items.size();
      return rest;
    }
    default: fail("'{}' object is not iterable", type_name(v));
  }
}

// --- expressions ---

Value Interpreter::eval(const Expr& e) {
  Deeper deeper(*this);
  charge(1);
  line_ = e.line;
  switch (e.kind) {
    case ExprKind::kConstant: return e.value;
    case ExprKind::kBlockValue: return *block_value_;
    case ExprKind::kName: return eval_name(e.name);
    case ExprKind::kList: return list(eval_items(e));
    case ExprKind::kTuple: return tuple(eval_items(e));
    case ExprKind::kDict: return eval_dict(e);
    case ExprKind::kConcat: return eval_concat(e);
    case ExprKind::kAttribute: {
      Value object = eval(*e.items[0]);
      return attribute(object, e.name);
    }
    case ExprKind::kItem: return eval_item(e);
    case ExprKind::kSlice: fail("a slice stands directly in [] only");
    case ExprKind::kNeg:
    case ExprKind::kPos:
    case ExprKind::kNot: return eval_unary(e);
    case ExprKind::kBinary: {
      Value left = eval(*e.items[0]);
      Value right = eval(*e.items[1]);
      line_ = e.line;
      return binary(e.ops[0], left, right);
    }
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      Value left = eval(*e.items[0]);
      return truthy(left) == (e.kind == ExprKind::kOr) ? left : eval(*e.items[1]);
    }
    case ExprKind::kCompare: return eval_compare(e);
    case ExprKind::kCondition: return eval_condition(e);
    case ExprKind::kCall: return eval_call(e);
    case ExprKind::kFilter: {
      Value value = eval(*e.items[0]);
      CallArgs args = arguments(e);
      line_ = e.line;
      return filter(e.name, value, args);
    }
    case ExprKind::kTest: {
      Value value = eval(*e.items[0]);
      CallArgs args = arguments(e);
      line_ = e.line;
      return Value(test(e.name, value, args));
    }
    case ExprKind::kNamespaceRef: break;
  }
  fail("this expression has no value");
}

Value Interpreter::eval_name(const std::string& name) {
  if (const Value* value = scope_->find(name)) return *value;
  if (const Value* value = find_global(name)) return *value;
  return undefined(fmt::format("'{}' is undefined", name));
}

List Interpreter::eval_items(const Expr& e) {
  List items;
  items.reserve(e.items.size());
  for (const ExprPtr& part : e.items) items.push_back(eval(*part));
  return items;
}

Value Interpreter::eval_dict(const Expr& e) {
  Dict entries;
  for (size_t i = 0; i < e.items.size(); i += 2) {
    Value key = eval(*e.items[i]);
    entries.set(key, eval(*e.items[i + 1]));
  }
  return dict(std::move(entries));
}

Value Interpreter::eval_concat(const Expr& e) {
  MarkedText out;
  for (const ExprPtr& part : e.items) {
    Value value = eval(*part);
    if (value.is_string()) charge_text(out.size() + value.text().size());
    append_str(out, value);
  }
  return text(std::move(out));
}

Value Interpreter::eval_item(const Expr& e) {
  Value object = eval(*e.items[0]);
  const Expr& index = *e.items[1];
  if (index.kind != ExprKind::kSlice) {
    Value key = eval(index);
    line_ = e.line;
    return item(object, key);
  }
  Value start = eval_part(index.items[0]);
  Value stop = eval_part(index.items[1]);
  Value step = eval_part(index.items[2]);
  line_ = e.line;
  return slice(*this, object, start, stop, step);
}

Value Interpreter::eval_compare(const Expr& e) {
  Value left = eval(*e.items[0]);
  for (size_t i = 0; i < e.ops.size(); ++i) {
    Value right = eval(*e.items[i + 1]);
    line_ = e.line;
    if (!compare(e.ops[i], left, right)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::eval_unary(const Expr& e) {
  Value v = eval(*e.items[0]);
  if (e.kind == ExprKind::kNot) return Value(!truthy(v));
  if (v.is_undefined()) fail_undefined(v);
  const char* sign = e.kind == ExprKind::kNeg ? "-" : "+";
  if (!v.is_number()) fail("bad operand type for unary {}: '{}'", sign, type_name(v));
  if (e.kind == ExprKind::kPos) return v.is(Type::kFloat) ? v : Value(v.integer());
  return v.is(Type::kFloat) ? Value(-v.number()) : binary(Op::kSub, Value(int64_t{0}), v);
}

Value Interpreter::eval_condition(const Expr& e) {
  if (truthy(eval(*e.items[0]))) return eval(*e.items[1]);
  if (e.items[2]) return eval(*e.items[2]);
  return undefined("the inline if-expression evaluated to false and no else section was defined.");
}

CallArgs Interpreter::arguments(const Expr& e) {
  CallArgs args;
  for (size_t i = 1; i < e.items.size(); ++i) args.positional.push_back(eval(*e.items[i]));
  for (const auto& [name, value] : e.keywords) args.keywords.push_back({name, eval(*value)});
  if (e.star) {
    List more = items_of(eval(*e.star));
    args.positional.insert(args.positional.end(), more.begin(), more.end());
  }
  if (e.double_star) {
    Value more = eval(*e.double_star);
    if (!more.is(Type::kDict)) fail("argument after ** must be a mapping, not {}", type_name(more));
    charge(more.dict().size());
    for (const auto& [key, value] : more.dict().entries()) {
      if (!key.is_string()) fail("keywords must be strings");
      args.keywords.push_back({key.string_ptr(), value});
    }
  }
  return args;
}

Value Interpreter::eval_call(const Expr& e) {
  Value callee = eval(*e.items[0]);
  CallArgs args = arguments(e);
  line_ = e.line;
  return call(callee, args);
}

Value Interpreter::call(const Value& callee, CallArgs& args) {
  if (callee.is_undefined()) fail_undefined(callee);
  if (!callee.is(Type::kObject)) fail("'{}' object is not callable", type_name(callee));
  return callee.object().call(*this, args);
}

// --- statements ---

void Interpreter::print(const MarkedText& text, size_t begin, size_t end) {
  charge_text(end - begin);
  if (out_->size() + (end - begin) > limits_.text_bytes) fail("the output is longer than {} bytes", limits_.text_bytes);
  out_->append(text, begin, end);
}

void Interpreter::print(const Value& v) {
  if (v.is_string()) return print(v.text(), 0, v.text().size());
  MarkedText text = str(v);
  print(text, 0, text.size());
}

Interpreter::Flow Interpreter::exec(const Body& body) {
  for (const Stmt& s : body) {
    if (Flow flow = exec(s); flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec(const Stmt& s) {
  Deeper deeper(*this);
  charge(1);
  line_ = s.line;
  switch (s.kind) {
    case StmtKind::kData:
      charge_text(s.data.size());
      if (out_->size() + s.data.size() > limits_.text_bytes)
        fail("the output is longer than {} bytes", limits_.text_bytes);
      out_->append(s.data, true);
      return Flow::kNormal;
    case StmtKind::kOutput: print(eval(*s.expr)); return Flow::kNormal;
    case StmtKind::kIf: return exec_if(s);
    case StmtKind::kFor: return exec_for(s, eval(*s.expr), 0);
    case StmtKind::kSet: assign(*s.target, eval(*s.expr)); return Flow::kNormal;
    case StmtKind::kSetBlock: return exec_set_block(s);
    case StmtKind::kWith: return exec_with(s);
    case StmtKind::kMacro:
      scope_->set(s.signature->name, keep(std::make_shared<Macro>(*s.signature, s.body, scope_)));
      return Flow::kNormal;
    case StmtKind::kCall: return exec_call(s);
    case StmtKind::kFilterBlock: return exec_filter_block(s);
    case StmtKind::kScope: return exec_inner(s.body, out_);
    case StmtKind::kBreak: return Flow::kBreak;
    case StmtKind::kContinue: return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec_if(const Stmt& s) {
  for (const Branch& branch : s.branches) {
    if (!branch.test || truthy(eval(*branch.test))) return exec(branch.body);
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec_inner(const Body& body, MarkedText* out) {
  auto outer_scope = scope_;
  MarkedText* outer_out = std::exchange(out_, out);
  scope_ = std::make_shared<Scope>(outer_scope);
  Flow flow = exec(body);
  scope_ = std::move(outer_scope);
  out_ = outer_out;
  return flow;
}

// The elements the loop goes over, those that fail its `if` left out.
List Interpreter::loop_items(const Stmt& s, const Value& iterable) {
  List items = items_of(iterable);
  if (!s.test) return items;
  auto outer = scope_;
  List kept;
  for (Value& item : items) {
    charge(4);
    scope_ = std::make_shared<Scope>(outer);
    assign(*s.target, item);
    if (truthy(eval(*s.test))) kept.push_back(std::move(item));
  }
  scope_ = std::move(outer);
  return kept;
}

// `depth0`: loops of the same statement around this one.
Interpreter::Flow Interpreter::exec_for(const Stmt& s, const Value& iterable, uint32_t depth0) {
  auto loop = std::make_shared<Loop>(loop_items(s, iterable), depth0);
  if (s.recursive) loop->make_recursive(s, scope_);
  Value loop_value = keep(loop);
  auto outer = scope_;
  bool completed = false;
  for (size_t i = 0; i < loop->items().size(); ++i) {
    charge(4);
    loop->set_index(i);
    scope_ = std::make_shared<Scope>(outer);
    scope_->set("loop", loop_value);
    assign(*s.target, loop->items()[i]);
    const Flow flow = exec(s.body);
    completed |= flow == Flow::kNormal;
    if (flow == Flow::kBreak) break;
  }
  scope_ = std::move(outer);
  // Jinja2's rule: `else` runs unless one round came to its end.
  return completed || s.otherwise.empty() ? Flow::kNormal : exec_inner(s.otherwise, out_);
}

Value Interpreter::recurse(const Stmt& s, const std::shared_ptr<Scope>& scope, const Value& iterable, uint32_t depth0) {
  MarkedText out;
  auto outer_scope = std::exchange(scope_, scope);
  MarkedText* outer_out = std::exchange(out_, &out);
  exec_for(s, iterable, depth0);
  out_ = outer_out;
  scope_ = std::move(outer_scope);
  return text(std::move(out));
}

Interpreter::Flow Interpreter::exec_with(const Stmt& s) {
  // The values see the names outside; the assignments come after all of them.
  List values;
  for (const auto& assignment : s.assignments) values.push_back(eval(*assignment.second));
  auto outer = scope_;
  scope_ = std::make_shared<Scope>(outer);
  for (size_t i = 0; i < values.size(); ++i) assign(*s.assignments[i].first, values[i]);
  Flow flow = exec(s.body);
  scope_ = std::move(outer);
  return flow;
}

Interpreter::Flow Interpreter::exec_set_block(const Stmt& s) {
  MarkedText captured;
  Flow flow = exec_inner(s.body, &captured);
  if (flow != Flow::kNormal) return flow;
  Value value = text(std::move(captured));
  if (s.expr) {
    const Value* outer = std::exchange(block_value_, &value);
    Value filtered = eval(*s.expr);
    block_value_ = outer;
    value = std::move(filtered);
  }
  assign(*s.target, value);
  return flow;
}

Interpreter::Flow Interpreter::exec_filter_block(const Stmt& s) {
  MarkedText captured;
  Flow flow = exec_inner(s.body, &captured);
  if (flow != Flow::kNormal) return flow;
  Value value = text(std::move(captured));
  const Value* outer = std::exchange(block_value_, &value);
  Value filtered = eval(*s.expr);
  block_value_ = outer;
  print(filtered);
  return flow;
}

Interpreter::Flow Interpreter::exec_call(const Stmt& s) {
  Value callee = eval(*s.expr->items[0]);
  CallArgs args = arguments(*s.expr);
  Value caller = keep(std::make_shared<Macro>(*s.signature, s.body, scope_));
  args.keywords.push_back({std::make_shared<const MarkedText>("caller", true), std::move(caller)});
  line_ = s.line;
  print(call(callee, args));
  return Flow::kNormal;
}

void Interpreter::assign(const Expr& target, const Value& value) {
  if (target.kind == ExprKind::kName) {
    scope_->set(target.name, value);
    return;
  }
  if (target.kind == ExprKind::kNamespaceRef) {
    Value object = eval_name(target.name);
    auto* space = object.is(Type::kObject) ? dynamic_cast<Namespace*>(&object.object()) : nullptr;
    if (space == nullptr) fail("cannot assign attribute on non-namespace object");
    space->set(target.attribute, value);
    return;
  }
  List parts = items_of(value);
  if (parts.size() < target.items.size()) {
    fail("not enough values to unpack (expected {}, got {})", target.items.size(), parts.size());
  }
  if (parts.size() > target.items.size()) fail("too many values to unpack (expected {})", target.items.size());
  for (size_t i = 0; i < parts.size(); ++i) assign(*target.items[i], parts[i]);
}

Value Interpreter::call_function(const Signature& signature, const Body& body, const std::shared_ptr<Scope>& closure,
                                 CallArgs& args) {
  const size_t count = signature.params.size();
  std::vector<std::optional<Value>> values(count);
  for (size_t i = 0; i < std::min(count, args.positional.size()); ++i) values[i] = std::move(args.positional[i]);
  std::optional<Value> caller;
  Dict extra;
  for (Keyword& keyword : args.keywords) {
    size_t i = 0;
    while (i < count && signature.params[i]->view() != keyword.name->view()) ++i;
    if (i < count) {
      if (values[i]) fail("macro '{}' got multiple values for argument '{}'", signature.name, keyword.name->view());
      values[i] = std::move(keyword.value);
    } else if (signature.uses_caller && keyword.name->view() == "caller") {
      caller = std::move(keyword.value);
    } else if (signature.uses_kwargs) {
      extra.set(Value(keyword.name), std::move(keyword.value));
    } else {
      fail("macro '{}' takes no keyword argument '{}'", signature.name, keyword.name->view());
    }
  }
  if (args.positional.size() > count && !signature.uses_varargs) {
    fail("macro '{}' takes not more than {} argument(s)", signature.name, count);
  }

  auto outer_scope = std::exchange(scope_, std::make_shared<Scope>(closure));
  MarkedText out;
  MarkedText* outer_out = std::exchange(out_, &out);
  const size_t first_default = count - signature.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    const std::string_view name = signature.params[i]->view();
    scope_->set(name, values[i] ? *values[i] : undefined(fmt::format("parameter '{}' was not provided", name)));
  }
  // A default sees the parameters: those given, and those before it.
  for (size_t i = first_default; i < count; ++i) {
    if (!values[i]) scope_->set(signature.params[i]->view(), eval(*signature.defaults[i - first_default]));
  }
  if (signature.uses_caller) {
    scope_->set("caller", caller ? *caller : undefined("No caller defined"));
  }
  if (signature.uses_kwargs) scope_->set("kwargs", dict(std::move(extra)));
  if (signature.uses_varargs) {
    List rest;
    for (size_t i = count; i < args.positional.size(); ++i) rest.push_back(std::move(args.positional[i]));
    scope_->set("varargs", tuple(std::move(rest)));
  }
  exec(body);
  out_ = outer_out;
  scope_ = std::move(outer_scope);
  return text(std::move(out));
}

}  // namespace motley::jinja
