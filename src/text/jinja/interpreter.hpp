// Interpreter: one rendering of one template. Evaluates the tree, keeps the budget, makes values.
//
// Not thread-safe; made for one rendering and thrown away. Throws Error.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/ast.hpp"
#include "text/jinja/limits.hpp"
#include "text/jinja/value.hpp"

namespace motley::jinja {

// Names of one block; looked up from the inside out.
class Scope {
 public:
  explicit Scope(std::shared_ptr<Scope> parent) : parent_(std::move(parent)) {}
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);
  void clear() { names_.clear(); }

 private:
  std::shared_ptr<Scope> parent_;
  std::vector<std::pair<std::string, Value>> names_;
};

class Interpreter {
 public:
  Interpreter(const Limits& limits, int64_t unix_time_s) : limits_(limits), unix_time_s_(unix_time_s) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // Renders `body` with `variables` (a dict with string keys) over the globals. Once.
  MarkedText run(const Body& body, const Dict& variables);
  // The line of the expression or tag evaluated last.
  uint32_t line() const { return line_; }

  // --- budget: throws Error when it is spent ---
  void charge(uint64_t steps) {
    if (steps > steps_left_) fail("more than {} steps executed", limits_.steps);
    steps_left_ -= steps;
  }
  // Before making a text of `bytes`.
  void charge_text(size_t bytes) {
    if (bytes > limits_.text_bytes) fail("a text is longer than {} bytes", limits_.text_bytes);
    charge(1 + bytes / 64);
  }
  const Limits& limits() const { return limits_; }
  int64_t unix_time_s() const { return unix_time_s_; }

  // --- making values, within the budget ---
  Value text(MarkedText text);
  Value sequence(Sequence::Kind kind, List items);
  Value list(List items) { return sequence(Sequence::Kind::kList, std::move(items)); }
  Value tuple(List items) { return sequence(Sequence::Kind::kTuple, std::move(items)); }
  Value generator(List items) { return sequence(Sequence::Kind::kGenerator, std::move(items)); }
  Value dict(Dict entries);
  Value undefined(std::string why) const;
  // Objects that may refer to themselves are cleared when the rendering ends.
  Value keep(ObjectPtr object);

  // --- Python's protocols ---
  MarkedText str(const Value& v);                          // str(v)
  List items_of(const Value& v);                           // list(v); consumes a generator
  Value attribute(const Value& v, std::string_view name);  // v.name as Jinja looks it up
  Value item(const Value& v, const Value& key);            // v[key] as Jinja looks it up
  Value call(const Value& callee, CallArgs& args);
  Value filter(std::string_view name, const Value& v, CallArgs& args);
  bool test(std::string_view name, const Value& v, CallArgs& args);
  Value binary(Op op, const Value& a, const Value& b);
  bool compare(Op op, const Value& a, const Value& b);
  // A macro's or call block's function applied.
  Value call_function(const Signature& signature, const Body& body, const std::shared_ptr<Scope>& closure,
                      CallArgs& args);
  // loop(iterable) in a recursive loop: what the loop `s`, seen from `scope`, prints over `iterable`.
  Value recurse(const Stmt& s, const std::shared_ptr<Scope>& scope, const Value& iterable, uint32_t depth0);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  struct Deeper;

  Value eval(const Expr& e);
  Value eval_part(const ExprPtr& e) { return e ? eval(*e) : Value(); }
  Value eval_name(const std::string& name);
  Value eval_dict(const Expr& e);
  Value eval_concat(const Expr& e);
  Value eval_item(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_unary(const Expr& e);
  Value eval_condition(const Expr& e);
  Value eval_call(const Expr& e);
  CallArgs arguments(const Expr& e);
  List eval_items(const Expr& e);

  Flow exec(const Body& body);
  Flow exec(const Stmt& s);
  Flow exec_if(const Stmt& s);
  Flow exec_for(const Stmt& s, const Value& iterable, uint32_t depth0);
  Flow exec_with(const Stmt& s);
  Flow exec_set_block(const Stmt& s);
  Flow exec_call(const Stmt& s);
  Flow exec_filter_block(const Stmt& s);
  List loop_items(const Stmt& s, const Value& iterable);
  // Runs `body` in a scope of its own; `out` receives what it prints.
  Flow exec_inner(const Body& body, MarkedText* out);
  void assign(const Expr& target, const Value& value);
  void print(const Value& v);
  void print(const MarkedText& text, size_t begin, size_t end);

  const Limits limits_;
  const int64_t unix_time_s_;
  uint64_t steps_left_ = limits_.steps;
  uint32_t depth_ = 0;
  uint32_t line_ = 0;
  MarkedText* out_ = nullptr;
  std::shared_ptr<Scope> scope_;
  const Value* block_value_ = nullptr;
  std::vector<ObjectPtr> kept_;
};

// The functions a template finds without being given them (range, namespace, raise_exception, ...); null: none such.
const Value* find_global(std::string_view name);
// A method of a string, dict or list as a bound function; nullopt: no such method.
std::optional<Value> bound_method(Interpreter& in, const Value& self, std::string_view name);

}  // namespace motley::jinja
