// The objects that statements make: namespaces, macros, loops.
#pragma once

#include <memory>

#include "text/jinja/interpreter.hpp"

namespace motley::jinja {

// namespace(...): the one thing that {% set a.b = ... %} may change.
class Namespace : public Object {
 public:
  explicit Namespace(Dict values) : values_(std::move(values)) {}
  std::string_view type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(Interpreter&, std::string_view name) override;
  void set(const std::string& name, Value value) { values_.set(Value::literal(name), std::move(value)); }
  void repr(MarkedText& out, uint32_t depth) const override;
  void clear() override { values_.clear(); }

 private:
  Dict values_;
};

// A macro or the body of a call block. Refers to the tree, which outlives the rendering.
class Macro : public Object {
 public:
  Macro(const Signature& signature, const Body& body, std::shared_ptr<Scope> closure)
      : signature_(signature), body_(body), closure_(std::move(closure)) {}
  std::string_view type_name() const override { return "Macro"; }
  bool callable() const override { return true; }
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override;
  Value call(Interpreter& in, CallArgs& args) override { return in.call_function(signature_, body_, closure_, args); }
  void repr(MarkedText& out, uint32_t depth) const override;
  void clear() override { closure_.reset(); }

 private:
  const Signature& signature_;
  const Body& body_;
  std::shared_ptr<Scope> closure_;
};

// The variable `loop`. A recursive one refers to its statement, which outlives the rendering, and can be called.
class Loop : public Object {
 public:
  Loop(List items, uint32_t depth0) : items_(std::move(items)), depth0_(depth0) {}
  void make_recursive(const Stmt& statement, std::shared_ptr<Scope> scope) {
    statement_ = &statement;
    scope_ = std::move(scope);
  }
  const List& items() const { return items_; }
  void set_index(size_t index) { index_ = index; }
  // loop.changed(values): whether they differ from those of the last call.
  bool changed(const Value& values);
  size_t index() const { return index_; }

  std::string_view type_name() const override { return "LoopContext"; }
  bool callable() const override { return true; }
  Value call(Interpreter& in, CallArgs& args) override;
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override;
  void repr(MarkedText& out, uint32_t depth) const override;
  void clear() override;

 private:
  List items_;
  const uint32_t depth0_;
  const Stmt* statement_ = nullptr;
  std::shared_ptr<Scope> scope_;
  size_t index_ = 0;
  std::optional<Value> last_changed_;
};

}  // namespace motley::jinja
