#include "text/jinja/name_check.hpp"

#include "text/jinja/builtin.hpp"

namespace motley::jinja {
namespace {

enum class Mode { kStrict, kSoft };

void check(const Body& body, Mode mode);

void check(const ExprPtr& expr, Mode mode) {
  if (!expr) return;
  const Expr& e = *expr;
  const bool filter = e.kind == ExprKind::kFilter;
  if (mode == Mode::kStrict && (filter || e.kind == ExprKind::kTest)) {
    if ((filter ? find_filter(e.name) : find_test(e.name)) == nullptr) {
      throw Error{fmt::format("no {} named '{}'", filter ? "filter" : "test", e.name), e.line, e.column};
    }
  }
  if (e.kind == ExprKind::kCondition) mode = Mode::kSoft;
  for (const ExprPtr& item : e.items) check(item, mode);
  for (const auto& [name, value] : e.keywords) check(value, mode);
  check(e.star, mode);
  check(e.double_star, mode);
}

void check(const Stmt& s, Mode mode) {
  // The value of a filtered block is worked out inside that block.
  const bool filters_block = s.kind == StmtKind::kSetBlock || s.kind == StmtKind::kFilterBlock;
  check(s.target, mode);
  check(s.expr, filters_block ? Mode::kStrict : mode);
  check(s.test, Mode::kStrict);  // a loop's
  for (const auto& [target, value] : s.assignments) check(value, mode);
  for (const Branch& branch : s.branches) {
    check(branch.test, Mode::kSoft);
    check(branch.body, Mode::kSoft);
  }
  if (s.signature) {
    for (const ExprPtr& value : s.signature->defaults) check(value, Mode::kStrict);
  }
  check(s.body, Mode::kStrict);
  check(s.otherwise, Mode::kStrict);
}

void check(const Body& body, Mode mode) {
  for (const Stmt& s : body) check(s, mode);
}

}  // namespace

void check_names(const Body& body) { check(body, Mode::kStrict); }

}  // namespace motley::jinja
