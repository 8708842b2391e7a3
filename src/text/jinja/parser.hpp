// Parser: template source to syntax tree, as Jinja2 with the loop control tags and {% generation %}.
#pragma once

#include <string_view>

#include "text/jinja/ast.hpp"

namespace motley::jinja {

inline constexpr uint32_t kNestingMax = 200;  // levels of expressions and of statements

// `source` is valid UTF-8. Throws Error with line and column.
Body parse(std::string_view source);

}  // namespace motley::jinja
