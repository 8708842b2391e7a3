#include "text/jinja/template.hpp"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "text/jinja/interpreter.hpp"
#include "text/jinja/name_check.hpp"
#include "text/jinja/parser.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Json = nlohmann::ordered_json;

// A role that is one of these is one of the words templates are written for, not free text: templates may build
// special tokens of it ("<|" + role + "|>"), and nothing else can be smuggled in with it.
constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool", "developer", "function", "model"};

Error refusal(std::string message) { return {.message = std::move(message), .refused = true}; }

Value string_value(const std::string& text, bool trusted) {
  if (!is_valid_utf8(text)) throw refusal("a string is not valid UTF-8");
  return Value(std::make_shared<const MarkedText>(text, trusted));
}

Value from_json(const Json& json, bool trusted, uint32_t depth) {
  if (depth > kValueDepthMax) {
    throw refusal(fmt::format("a value is nested deeper than {} levels", kValueDepthMax));
  }
  switch (json.type()) {
    case Json::value_t::boolean: return Value(json.get<bool>());
    case Json::value_t::number_integer: return Value(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto n = json.get<uint64_t>();
      if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Value(static_cast<double>(n));
      return Value(static_cast<int64_t>(n));
    }
    case Json::value_t::number_float: return Value(json.get<double>());
    case Json::value_t::string: return string_value(json.get_ref<const std::string&>(), trusted);
    case Json::value_t::array: {
      auto list = std::make_shared<Sequence>();
      list->items.reserve(json.size());
      for (const Json& item : json) {
        list->items.push_back(from_json(item, trusted, depth + 1));
        list->shape.include(list->items.back());
      }
      return Value(SequencePtr(std::move(list)));
    }
    case Json::value_t::object: {
      auto dict = std::make_shared<Dict>();
      for (const auto& [key, value] : json.items()) {
        const bool role =
            key == "role" && value.is_string() &&
            std::find(std::begin(kRoles), std::end(kRoles), value.get_ref<const std::string&>()) != std::end(kRoles);
        dict->set(string_value(key, trusted), from_json(value, trusted || role, depth + 1));
      }
      return Value(DictPtr(std::move(dict)));
    }
    default: return Value();
  }
}

Status to_status(const Error& e, Code code, uint32_t line_if_unknown) {
  const uint32_t line = e.line != 0 ? e.line : line_if_unknown;
  if (line == 0) return error(code, "chat template: {}", e.message);
  if (e.column == 0) return error(code, "chat template, line {}: {}", line, e.message);
  return error(code, "chat template, line {}, column {}: {}", line, e.column, e.message);
}

// Looks for loops over an attribute, also through variables set to it.
class LoopSearch {
 public:
  explicit LoopSearch(std::string_view attribute) : attribute_(attribute) {}

  bool in_body(const Body& body) {
    return std::any_of(body.begin(), body.end(), [&](const Stmt& s) { return in_statement(s); });
  }

 private:
  bool in_statement(const Stmt& s) {
    if (s.kind == StmtKind::kSet && s.target->kind == ExprKind::kName && mentions(*s.expr))
      aliases_.insert(s.target->name);
    if (s.kind == StmtKind::kFor && mentions(*s.expr)) return true;
    for (const Branch& branch : s.branches) {
      if (in_body(branch.body)) return true;
    }
    return in_body(s.body) || in_body(s.otherwise);
  }

  // Whether the value itself is, or is filtered out of, the attribute (not merely computed with its help).
  bool mentions(const Expr& e) const {
    switch (e.kind) {
      case ExprKind::kAttribute: return e.name == attribute_;
      case ExprKind::kItem: return names(*e.items[1]);
      // A macro's parameter or any other variable of the attribute's name is taken to hold it.
      case ExprKind::kName: return e.name == attribute_ || aliases_.contains(e.name);
      case ExprKind::kCall: return gets(e);
      case ExprKind::kCondition: return mentions(*e.items[1]) || (e.items[2] && mentions(*e.items[2]));
      case ExprKind::kOr: return mentions(*e.items[0]) || mentions(*e.items[1]);
      case ExprKind::kFilter: return e.items[0] && mentions(*e.items[0]);
      default: return false;
    }
  }

  // x.get('attribute')
  bool gets(const Expr& call) const {
    return call.items[0]->kind == ExprKind::kAttribute && call.items[0]->name == "get" && call.items.size() > 1 &&
           names(*call.items[1]);
  }
  bool names(const Expr& e) const {
    return e.kind == ExprKind::kConstant && e.value.is_string() && e.value.view() == attribute_;
  }

  std::string_view attribute_;
  std::set<std::string, std::less<>> aliases_;
};

}  // namespace

struct Template::Tree {
  Body body;
};

Template::Template(std::unique_ptr<Tree> tree) : tree_(std::move(tree)) {}
Template::~Template() = default;

Result<std::unique_ptr<Template>> Template::create(std::string_view source) {
  if (source.size() > kSourceBytesMax) return invalid_argument("chat template: longer than {} bytes", kSourceBytesMax);
  if (!is_valid_utf8(source)) return invalid_argument("chat template: not valid UTF-8");
  try {
    auto tree = std::make_unique<Tree>();
    tree->body = parse(source);
    check_names(tree->body);
    return std::unique_ptr<Template>(new Template(std::move(tree)));
  } catch (const Error& e) {
    return to_status(e, MOTLEY_INVALID_ARGUMENT, 0);
  }
}

Result<MarkedText> Template::render(const std::vector<Variable>& variables, int64_t unix_time_s,
                                    const Limits& limits) const {
  Interpreter interpreter(limits, unix_time_s);
  try {
    Dict values;
    for (const Variable& variable : variables) {
      values.set(Value::literal(variable.name), from_json(*variable.value, variable.trusted, 0));
    }
    return interpreter.run(tree_->body, values);
  } catch (const Error& e) {
    return to_status(e, e.refused ? MOTLEY_INVALID_ARGUMENT : MOTLEY_FAILED_PRECONDITION, interpreter.line());
  }
}

bool Template::iterates_over(std::string_view name) const { return LoopSearch(name).in_body(tree_->body); }

}  // namespace motley::jinja
