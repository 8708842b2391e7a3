#include "text/jinja/parser.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <unordered_map>

#include "base/quote.hpp"
#include "text/jinja/lexer.hpp"

namespace motley::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Body run() {
    Body body = parse_body({});
    return body;
  }

 private:
  // --- tokens ---
  const Token& now() const { return tokens_[pos_]; }
  const Token& ahead() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  const Token& next() { return tokens_[pos_ + 1 < tokens_.size() ? pos_++ : pos_]; }
  bool skip_operator(std::string_view op) { return now().is_operator(op) ? (next(), true) : false; }
  bool skip_name(std::string_view name) { return now().is_name(name) ? (next(), true) : false; }
  [[noreturn]] void fail_here(const std::string& message) const { throw Error{message, now().line, now().column}; }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::kEnd: return "end of template";
      case TokenKind::kBlockEnd: return "end of the tag";
      case TokenKind::kVariableEnd: return "end of the expression";
      default: return in_quotes(token.text);
    }
  }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail_here(fmt::format("expected '{}', got {}", op, describe(now())));
  }
  std::string expect_name() {
    if (now().kind != TokenKind::kName) fail_here("expected a name, got " + describe(now()));
    return next().text;
  }
  void expect_block_end() {
    if (now().kind != TokenKind::kBlockEnd) fail_here("expected the end of the tag, got " + describe(now()));
    next();
  }

  // Counts recursion of the parser itself.
  class Level {
   public:
    explicit Level(Parser& parser) : parser_(parser) {
      if (++parser_.level_ > kNestingMax) parser_.fail_here(fmt::format("nested deeper than {} levels", kNestingMax));
    }
    ~Level() { --parser_.level_; }

   private:
    Parser& parser_;
  };

  // --- expressions ---
  ExprPtr make(ExprKind kind, uint32_t line) const {
    auto e = std::make_unique<Expr>();
    e->kind = kind;
    e->line = line;
    return e;
  }
  // Adds a part; part may be null where the kind allows it.
  void add(Expr& e, ExprPtr part) const {
    if (part) {
      e.depth = std::max(e.depth, part->depth + 1);
      if (e.depth > kNestingMax) fail_here(fmt::format("expression nested deeper than {} levels", kNestingMax));
    }
    e.items.push_back(std::move(part));
  }
  ExprPtr unary(ExprKind kind, uint32_t line, ExprPtr operand) const {
    ExprPtr e = make(kind, line);
    add(*e, std::move(operand));
    return e;
  }
  ExprPtr pair(ExprKind kind, uint32_t line, ExprPtr left, ExprPtr right) const {
    ExprPtr e = unary(kind, line, std::move(left));
    add(*e, std::move(right));
    return e;
  }
  ExprPtr constant(Value value, uint32_t line) const {
    ExprPtr e = make(ExprKind::kConstant, line);
    e->value = std::move(value);
    return e;
  }

  ExprPtr parse_expression() {
    Level level(*this);
    const uint32_t line = now().line;
    ExprPtr value = parse_or();
    while (skip_name("if")) {
      ExprPtr condition = pair(ExprKind::kCondition, line, parse_or(), std::move(value));
      add(*condition, skip_name("else") ? parse_expression() : nullptr);
      value = std::move(condition);
    }
    return value;
  }

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (now().is_name("or")) {
      const uint32_t line = next().line;
      left = pair(ExprKind::kOr, line, std::move(left), parse_and());
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (now().is_name("and")) {
      const uint32_t line = next().line;
      left = pair(ExprKind::kAnd, line, std::move(left), parse_not());
    }
    return left;
  }

  ExprPtr parse_not() {
    Level level(*this);
    if (!now().is_name("not")) return parse_compare();
    const uint32_t line = next().line;
    return unary(ExprKind::kNot, line, parse_not());
  }

  std::optional<Op> take_compare() {
    static const std::unordered_map<std::string_view, Op> ops = {{"==", Op::kEq}, {"!=", Op::kNe}, {"<", Op::kLt},
                                                                 {"<=", Op::kLe}, {">", Op::kGt},  {">=", Op::kGe}};
    if (now().kind == TokenKind::kOperator) {
      auto it = ops.find(now().text);
      if (it == ops.end()) return std::nullopt;
      next();
      return it->second;
    }
    if (skip_name("in")) return Op::kIn;
    if (!now().is_name("not") || !ahead().is_name("in")) return std::nullopt;
    next();
    next();
    return Op::kNotIn;
  }

  ExprPtr parse_compare() {
    const uint32_t line = now().line;
    ExprPtr first = parse_sum();
    std::optional<Op> op = take_compare();
    if (!op) return first;
    ExprPtr e = unary(ExprKind::kCompare, line, std::move(first));
    for (; op; op = take_compare()) {
      e->ops.push_back(*op);
      add(*e, parse_sum());
    }
    return e;
  }

  ExprPtr binary(Op op, uint32_t line, ExprPtr left, ExprPtr right) const {
    ExprPtr e = pair(ExprKind::kBinary, line, std::move(left), std::move(right));
    e->ops.push_back(op);
    return e;
  }

  ExprPtr parse_sum() {
    ExprPtr left = parse_concat();
    while (now().is_operator("+") || now().is_operator("-")) {
      const Token& token = next();
      Op op = token.text == "+" ? Op::kAdd : Op::kSub;
      left = binary(op, token.line, std::move(left), parse_concat());
    }
    return left;
  }

  ExprPtr parse_concat() {
    const uint32_t line = now().line;
    ExprPtr first = parse_product();
    if (!now().is_operator("~")) return first;
    ExprPtr e = unary(ExprKind::kConcat, line, std::move(first));
    while (skip_operator("~")) add(*e, parse_product());
    return e;
  }

  ExprPtr parse_product() {
    static constexpr std::pair<std::string_view, Op> kOps[] = {
        {"*", Op::kMul}, {"/", Op::kDiv}, {"//", Op::kFloorDiv}, {"%", Op::kMod}};
    ExprPtr left = parse_power();
    for (;;) {
      auto it = std::find_if(std::begin(kOps), std::end(kOps), [&](auto& o) { return now().is_operator(o.first); });
      if (it == std::end(kOps)) return left;
      const uint32_t line = next().line;
      left = binary(it->second, line, std::move(left), parse_power());
    }
  }

  // Jinja's ** leans to the left.
  ExprPtr parse_power() {
    ExprPtr left = parse_unary(true);
    while (now().is_operator("**")) {
      const uint32_t line = next().line;
      left = binary(Op::kPow, line, std::move(left), parse_unary(true));
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filter) {
    Level level(*this);
    const uint32_t line = now().line;
    ExprPtr e;
    if (skip_operator("-"))
      e = unary(ExprKind::kNeg, line, parse_unary(false));
    else if (skip_operator("+"))
      e = unary(ExprKind::kPos, line, parse_unary(false));
    else
      e = parse_primary();
    e = parse_postfix(std::move(e));
    return with_filter ? parse_filters_and_tests(std::move(e)) : std::move(e);
  }

  Value parse_integer(const Token& token) const {
    std::string_view digits = token.text;
    int base = 10;
    if (digits.size() > 2 && (digits[1] == 'x' || digits[1] == 'o' || digits[1] == 'b')) {
      base = digits[1] == 'x' ? 16 : digits[1] == 'o' ? 8 : 2;
      digits.remove_prefix(2);
    }
    int64_t value = 0;
    auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (code != std::errc() || end != digits.data() + digits.size()) {
      throw Error{"an integer is limited to 64 bits", token.line, token.column};
    }
    return Value(value);
  }

  ExprPtr parse_primary() {
    const Token& token = now();
    switch (token.kind) {
      case TokenKind::kName: return parse_name();
      case TokenKind::kInteger: next(); return constant(parse_integer(token), token.line);
      case TokenKind::kFloat: next(); return constant(Value(std::strtod(token.text.c_str(), nullptr)), token.line);
      case TokenKind::kString: {
        std::string text;
        while (now().kind == TokenKind::kString) text += next().text;
        return constant(Value::literal(text), token.line);
      }
      default: break;
    }
    if (skip_operator("(")) {
      ExprPtr e = parse_tuple({.explicit_parentheses = true});
      expect_operator(")");
      return e;
    }
    if (token.is_operator("[")) return parse_list();
    if (token.is_operator("{")) return parse_dict();
    fail_here("unexpected " + describe(token));
  }

  ExprPtr parse_name() {
    const Token& token = next();
    if (token.text == "true" || token.text == "True") return constant(Value(true), token.line);
    if (token.text == "false" || token.text == "False") return constant(Value(false), token.line);
    if (token.text == "none" || token.text == "None") return constant(Value(), token.line);
    for (Signature* macro : macros_) {
      macro->uses_caller |= token.text == "caller";
      macro->uses_varargs |= token.text == "varargs";
      macro->uses_kwargs |= token.text == "kwargs";
    }
    ExprPtr e = make(ExprKind::kName, token.line);
    e->name = token.text;
    return e;
  }

  ExprPtr parse_list() {
    ExprPtr e = make(ExprKind::kList, next().line);
    while (!now().is_operator("]")) {
      if (!e->items.empty()) expect_operator(",");
      if (now().is_operator("]")) break;
      add(*e, parse_expression());
    }
    expect_operator("]");
    return e;
  }

  ExprPtr parse_dict() {
    ExprPtr e = make(ExprKind::kDict, next().line);
    while (!now().is_operator("}")) {
      if (!e->items.empty()) expect_operator(",");
      if (now().is_operator("}")) break;
      add(*e, parse_expression());
      expect_operator(":");
      add(*e, parse_expression());
    }
    expect_operator("}");
    return e;
  }

  struct TupleRules {
    bool simplified = false;            // targets: primaries only
    bool conditions = true;             // x if y else z
    bool explicit_parentheses = false;  // () is the empty tuple
    std::string_view end_name = {};     // a name that ends it
  };
  bool tuple_ends(const TupleRules& rules) const {
    return now().kind == TokenKind::kBlockEnd || now().kind == TokenKind::kVariableEnd || now().is_operator(")") ||
           (!rules.end_name.empty() && now().is_name(rules.end_name));
  }

  ExprPtr parse_tuple(const TupleRules& rules) {
    Level level(*this);
    ExprPtr e = make(ExprKind::kTuple, now().line);
    bool is_tuple = false;
    for (;;) {
      if (!e->items.empty()) expect_operator(",");
      if (tuple_ends(rules)) break;
      add(*e, rules.simplified ? parse_target_part() : rules.conditions ? parse_expression() : parse_or());
      if (!now().is_operator(",")) break;
      is_tuple = true;
    }
    if (is_tuple) return e;
    if (!e->items.empty()) return std::move(e->items[0]);
    if (!rules.explicit_parentheses) fail_here("expected an expression, got " + describe(now()));
    return e;
  }

  ExprPtr parse_postfix(ExprPtr e) {
    for (;;) {
      if (now().is_operator(".") || now().is_operator("["))
        e = parse_subscript(std::move(e));
      else if (now().is_operator("("))
        e = parse_call(std::move(e));
      else
        return e;
    }
  }

  ExprPtr parse_filters_and_tests(ExprPtr e) {
    for (;;) {
      if (now().is_operator("|"))
        e = parse_filter(std::move(e), false);
      else if (now().is_name("is"))
        e = parse_test(std::move(e));
      else if (now().is_operator("("))
        e = parse_call(std::move(e));
      else
        return e;
    }
  }

  ExprPtr parse_subscript(ExprPtr object) {
    const Token& token = next();
    if (token.text == ".") {
      const Token& name = next();
      if (name.kind == TokenKind::kName) {
        ExprPtr e = unary(ExprKind::kAttribute, token.line, std::move(object));
        e->name = name.text;
        return e;
      }
      if (name.kind != TokenKind::kInteger) {
        throw Error{"expected a name or a number after '.', got " + describe(name), name.line, name.column};
      }
      return pair(ExprKind::kItem, token.line, std::move(object), constant(parse_integer(name), name.line));
    }
    ExprPtr index = make(ExprKind::kTuple, token.line);
    while (!now().is_operator("]")) {
      if (!index->items.empty()) expect_operator(",");
      add(*index, parse_index());
    }
    expect_operator("]");
    if (index->items.size() == 1) index = std::move(index->items[0]);
    return pair(ExprKind::kItem, token.line, std::move(object), std::move(index));
  }

  ExprPtr parse_index() {
    const uint32_t line = now().line;
    ExprPtr first = now().is_operator(":") ? nullptr : parse_expression();
    if (!now().is_operator(":")) return first;
    ExprPtr slice = unary(ExprKind::kSlice, line, std::move(first));
    for (int part = 0; part < 2; ++part) {
      const bool present =
          skip_operator(":") && !now().is_operator(":") && !now().is_operator("]") && !now().is_operator(",");
      add(*slice, present ? parse_expression() : nullptr);
    }
    return slice;
  }

  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr e = unary(ExprKind::kCall, now().line, std::move(callee));
    parse_arguments(*e);
    return e;
  }

  void parse_arguments(Expr& e) {
    expect_operator("(");
    bool first = true;
    while (!now().is_operator(")")) {
      if (!std::exchange(first, false)) expect_operator(",");
      if (now().is_operator(")")) break;
      parse_argument(e);
    }
    expect_operator(")");
  }

  void parse_argument(Expr& e) {
    auto keep = [&](ExprPtr& slot) {
      if (slot) fail_here("more than one * or ** argument");
      add(e, parse_expression());  // for the depth
      slot = std::move(e.items.back());
      e.items.pop_back();
    };
    if (!e.double_star && skip_operator("**")) return keep(e.double_star);
    if (!e.double_star && !e.star && skip_operator("*")) return keep(e.star);
    if (!e.double_star && now().kind == TokenKind::kName && ahead().is_operator("=")) {
      const bool repeated = std::any_of(e.keywords.begin(), e.keywords.end(),
                                        [&](const auto& keyword) { return keyword.first->view() == now().text; });
      if (repeated) fail_here("keyword argument repeated: " + now().text);
      auto name = std::make_shared<const MarkedText>(next().text, true);
      next();
      ExprPtr value;
      keep(value);
      e.keywords.emplace_back(std::move(name), std::move(value));
      return;
    }
    if (e.double_star || e.star || !e.keywords.empty()) fail_here("a positional argument must not follow others");
    add(e, parse_expression());
  }

  std::string parse_dotted_name() {
    std::string name = expect_name();
    while (skip_operator(".")) name += "." + expect_name();
    return name;
  }

  // One or more filters. `first_bare`: the first has no '|' before it.
  ExprPtr parse_filter(ExprPtr value, bool first_bare) {
    while (first_bare || now().is_operator("|")) {
      if (!std::exchange(first_bare, false)) next();
      ExprPtr e = unary(ExprKind::kFilter, now().line, std::move(value));
      e->column = now().column;
      e->name = parse_dotted_name();
      if (now().is_operator("(")) parse_arguments(*e);
      value = std::move(e);
    }
    return value;
  }

  ExprPtr parse_test(ExprPtr value) {
    const uint32_t line = next().line;
    const bool negated = skip_name("not");
    ExprPtr e = unary(ExprKind::kTest, line, std::move(value));
    e->column = now().column;
    e->name = parse_dotted_name();
    const Token& token = now();
    const bool starts_argument = token.kind == TokenKind::kName || token.kind == TokenKind::kString ||
                                 token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat ||
                                 token.is_operator("[") || token.is_operator("{");
    if (token.is_operator("(")) {
      parse_arguments(*e);
    } else if (starts_argument && !token.is_name("else") && !token.is_name("or") && !token.is_name("and")) {
      if (token.is_name("is")) fail_here("tests cannot be chained with 'is'");
      add(*e, parse_postfix(parse_primary()));
    }
    return negated ? unary(ExprKind::kNot, line, std::move(e)) : std::move(e);
  }

  // --- targets of assignments ---
  ExprPtr parse_target_part() {
    if (skip_operator("(")) {
      ExprPtr e = parse_tuple({.simplified = true, .explicit_parentheses = true});
      expect_operator(")");
      return e;
    }
    const Token& token = now();
    static constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None"};
    std::string name = expect_name();
    if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
      throw Error{"can't assign to '" + name + "'", token.line, token.column};
    }
    ExprPtr e = make(ExprKind::kName, token.line);
    e->name = std::move(name);
    if (skip_operator(".")) {
      e->kind = ExprKind::kNamespaceRef;
      e->attribute = expect_name();
    }
    return e;
  }
  ExprPtr parse_target(std::string_view end_name) { return parse_tuple({.simplified = true, .end_name = end_name}); }
  ExprPtr parse_name_target() {
    ExprPtr e = parse_target_part();
    if (e->kind != ExprKind::kName) fail_here("expected a name to assign to");
    return e;
  }

  // --- statements ---
  bool at_end_tag(Names names) const {
    return std::any_of(names.begin(), names.end(), [&](std::string_view name) { return now().is_name(name); });
  }

  static Stmt statement(StmtKind kind, uint32_t line) {
    Stmt s;
    s.kind = kind;
    s.line = line;
    return s;
  }

  // Statements up to a tag named in `ends`, whose "{%" is taken and whose name is next; to the end if `ends` is empty.
  Body parse_body(Names ends) {
    Level level(*this);
    Body body;
    while (now().kind != TokenKind::kEnd) {
      const Token& token = next();
      if (token.kind == TokenKind::kData) {
        body.push_back(statement(StmtKind::kData, token.line));
        body.back().data = token.text;
      } else if (token.kind == TokenKind::kVariableBegin) {
        body.push_back(statement(StmtKind::kOutput, token.line));
        body.back().expr = parse_tuple({});
        if (now().kind != TokenKind::kVariableEnd)
          fail_here("expected the end of the expression, got " + describe(now()));
        next();
      } else {
        if (at_end_tag(ends)) return body;
        body.push_back(parse_tag());
        expect_block_end();
      }
    }
    if (ends.size() > 0)
      fail_here(fmt::format("unexpected end of template; a tag is missing its '{}'", *(ends.end() - 1)));
    return body;
  }

  Body parse_body_to(std::string_view end) {
    expect_block_end();
    Body body = parse_body({end});
    next();
    return body;
  }

  // From the tag's name to just before "%}" of its last tag.
  Stmt parse_tag() {
    using Rule = Stmt (Parser::*)(uint32_t);
    static const std::unordered_map<std::string_view, Rule> tags = {{"if", &Parser::parse_if},
                                                                    {"for", &Parser::parse_for},
                                                                    {"set", &Parser::parse_set},
                                                                    {"with", &Parser::parse_with},
                                                                    {"macro", &Parser::parse_macro},
                                                                    {"call", &Parser::parse_call_block},
                                                                    {"filter", &Parser::parse_filter_block},
                                                                    {"generation", &Parser::parse_generation},
                                                                    {"print", &Parser::parse_print},
                                                                    {"break", &Parser::parse_break},
                                                                    {"continue", &Parser::parse_continue}};
    if (now().kind != TokenKind::kName) fail_here("expected the name of a tag, got " + describe(now()));
    auto it = tags.find(now().text);
    if (it == tags.end()) {
      fail_here("tag " + describe(now()) + " is unknown here or not supported in a chat template");
    }
    const uint32_t line = next().line;
    return (this->*it->second)(line);
  }

  Stmt parse_if(uint32_t line) {
    Stmt s = statement(StmtKind::kIf, line);
    ExprPtr test = parse_tuple({.conditions = false});
    for (;;) {
      expect_block_end();
      Body body = parse_body({"elif", "else", "endif"});
      const bool was_else = test == nullptr;
      s.branches.push_back({std::move(test), std::move(body)});
      if (skip_name("endif")) return s;
      if (was_else) fail_here("expected 'endif' after 'else'");
      test = next().text == "elif" ? parse_tuple({.conditions = false}) : nullptr;
    }
  }

  static bool binds(const Expr& target, std::string_view name) {
    if (target.kind == ExprKind::kName) return target.name == name;
    return std::any_of(target.items.begin(), target.items.end(), [&](const ExprPtr& e) { return binds(*e, name); });
  }

  Stmt parse_for(uint32_t line) {
    Stmt s = statement(StmtKind::kFor, line);
    s.target = parse_target("in");
    if (binds(*s.target, "loop")) fail_here("can't assign to 'loop' as the target of a loop");
    if (!skip_name("in")) fail_here("expected 'in', got " + describe(now()));
    s.expr = parse_tuple({.conditions = false, .end_name = "recursive"});
    if (skip_name("if")) s.test = parse_expression();
    s.recursive = skip_name("recursive");
    expect_block_end();
    ++loops_;
    s.body = parse_body({"else", "endfor"});
    --loops_;
    if (next().text == "else") s.otherwise = parse_body_to("endfor");
    return s;
  }

  Stmt parse_set(uint32_t line) {
    Stmt s = statement(StmtKind::kSet, line);
    s.target = parse_target({});
    if (skip_operator("=")) {
      s.expr = parse_tuple({});
      return s;
    }
    s.kind = StmtKind::kSetBlock;
    if (now().is_operator("|")) s.expr = parse_filter(make(ExprKind::kBlockValue, line), false);
    s.body = parse_body_to("endset");
    return s;
  }

  Stmt parse_with(uint32_t line) {
    Stmt s = statement(StmtKind::kWith, line);
    while (now().kind != TokenKind::kBlockEnd) {
      if (!s.assignments.empty()) expect_operator(",");
      ExprPtr target = parse_target_part();
      expect_operator("=");
      s.assignments.emplace_back(std::move(target), parse_expression());
    }
    s.body = parse_body_to("endwith");
    return s;
  }

  void parse_signature(Signature& signature) {
    expect_operator("(");
    while (!now().is_operator(")")) {
      if (!signature.params.empty()) expect_operator(",");
      signature.params.push_back(std::make_shared<const MarkedText>(parse_name_target()->name, true));
      if (skip_operator("="))
        signature.defaults.push_back(parse_expression());
      else if (!signature.defaults.empty())
        fail_here("a parameter without default follows one with a default");
    }
    expect_operator(")");
    const size_t with_default = signature.params.size() - signature.defaults.size();
    if (param_index(signature, "caller").value_or(with_default) < with_default) {
      fail_here("a parameter named 'caller' needs a default");
    }
  }

  // The body of a macro or call block: its own function, so no loop around it can be left from inside.
  void parse_function_body(Stmt& s, std::string_view end) {
    const uint32_t loops = std::exchange(loops_, 0);
    macros_.push_back(s.signature.get());
    s.body = parse_body_to(end);
    macros_.pop_back();
    loops_ = loops;
    // A parameter of that name takes the caller's place.
    if (param_index(*s.signature, "caller")) s.signature->uses_caller = false;
  }

  static std::optional<size_t> param_index(const Signature& signature, std::string_view name) {
    for (size_t i = 0; i < signature.params.size(); ++i) {
      if (signature.params[i]->view() == name) return i;
    }
    return std::nullopt;
  }

  Stmt parse_macro(uint32_t line) {
    Stmt s = statement(StmtKind::kMacro, line);
    s.signature = std::make_unique<Signature>();
    s.signature->name = parse_name_target()->name;
    parse_signature(*s.signature);
    parse_function_body(s, "endmacro");
    return s;
  }

  Stmt parse_call_block(uint32_t line) {
    Stmt s = statement(StmtKind::kCall, line);
    s.signature = std::make_unique<Signature>();
    s.signature->name = "caller";
    if (now().is_operator("(")) parse_signature(*s.signature);
    s.expr = parse_expression();
    if (s.expr->kind != ExprKind::kCall) fail_here("expected a call in the call tag");
    parse_function_body(s, "endcall");
    return s;
  }

  Stmt parse_filter_block(uint32_t line) {
    Stmt s = statement(StmtKind::kFilterBlock, line);
    s.expr = parse_filter(make(ExprKind::kBlockValue, line), true);
    s.body = parse_body_to("endfilter");
    return s;
  }

  Stmt parse_generation(uint32_t line) {
    Stmt s = statement(StmtKind::kScope, line);
    const uint32_t loops = std::exchange(loops_, 0);  // a call block to transformers
    s.body = parse_body_to("endgeneration");
    loops_ = loops;
    return s;
  }

  Stmt parse_print(uint32_t line) {
    Stmt s = statement(StmtKind::kOutput, line);
    s.expr = make(ExprKind::kConcat, line);
    while (now().kind != TokenKind::kBlockEnd) {
      if (!s.expr->items.empty()) expect_operator(",");
      add(*s.expr, parse_expression());
    }
    return s;
  }

  Stmt loop_control(StmtKind kind, uint32_t line) const {
    if (loops_ == 0) fail_here("'break' and 'continue' stand in a loop only");
    return statement(kind, line);
  }
  Stmt parse_break(uint32_t line) { return loop_control(StmtKind::kBreak, line); }
  Stmt parse_continue(uint32_t line) { return loop_control(StmtKind::kContinue, line); }

  const std::vector<Token> tokens_;
  size_t pos_ = 0;
  uint32_t level_ = 0;
  uint32_t loops_ = 0;
  std::vector<Signature*> macros_;  // the functions around this place
};

}  // namespace

Body parse(std::string_view source) { return Parser(source).run(); }

}  // namespace motley::jinja
