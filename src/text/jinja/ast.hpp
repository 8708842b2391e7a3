// The syntax tree of a template. Built once by the parser, then only read, by any number of renderings at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.hpp"

namespace motley::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<Stmt>;

// What stands in `items` (optional parts are null):
//   kList, kTuple, kConcat: the elements; kDict: key, value, key, value, ...
//   kAttribute: object; kItem: object, index; kSlice: start, stop, step
//   kNeg, kPos, kNot: operand; kBinary, kAnd, kOr: left, right; kCompare: operands, ops.size() + 1 of them
//   kCondition: test, then, else; kCall: callee, arguments...; kFilter, kTest: value, arguments...
//   kNamespaceRef (targets only): `name`.`attribute`; kBlockValue: the text of the block being filtered
enum class ExprKind {
  kConstant,
  kName,
  kList,
  kTuple,
  kDict,
  kConcat,
  kAttribute,
  kItem,
  kSlice,
  kNeg,
  kPos,
  kNot,
  kBinary,
  kAnd,
  kOr,
  kCompare,
  kCondition,
  kCall,
  kFilter,
  kTest,
  kNamespaceRef,
  kBlockValue
};

enum class Op { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow, kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  uint32_t line = 0;
  uint32_t column = 0;  // kFilter, kTest: of the name
  uint32_t depth = 1;   // of the tree below, itself included
  Value value;          // kConstant
  std::string name;     // kName, kAttribute, kFilter, kTest, kNamespaceRef
  std::string attribute;
  std::vector<ExprPtr> items;
  std::vector<Op> ops;  // kBinary: one
  std::vector<std::pair<StringPtr, ExprPtr>> keywords;
  ExprPtr star, double_star;  // f(*star, **double_star)
};

// What stands where (optional parts are null or empty):
//   kData: data. kOutput: expr. kIf: branches of (test, body); the last one's test may be null (else).
//   kFor: target, expr (what is iterated), test, body, otherwise, recursive. kSet: target, expr. kSetBlock: target,
//   expr (filter over kBlockValue, or null), body. kWith: assignments (target, value), body. kMacro, kCall: name,
//   params, defaults (of the last params), body; kCall: expr (the call). kFilterBlock: expr, body. kScope: body (tags
//   that only group, with names of their own).
enum class StmtKind {
  kData,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kWith,
  kMacro,
  kCall,
  kFilterBlock,
  kScope,
  kBreak,
  kContinue
};

struct Branch;
struct Signature {
  std::string name;
  std::vector<StringPtr> params;
  std::vector<ExprPtr> defaults;  // of the last params
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};
struct Stmt {
  StmtKind kind = StmtKind::kData;
  uint32_t line = 0;
  bool recursive = false;
  std::string data;
  ExprPtr target, expr, test;
  std::vector<std::pair<ExprPtr, ExprPtr>> assignments;  // kWith
  std::vector<Branch> branches;
  std::unique_ptr<Signature> signature;
  Body body, otherwise;
};
struct Branch {
  ExprPtr test;
  Body body;
};

}  // namespace motley::jinja
