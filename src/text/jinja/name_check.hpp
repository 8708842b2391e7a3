// Whether every filter and test that a template names is known, found before it is ever rendered.
#pragma once

#include "text/jinja/ast.hpp"

namespace motley::jinja {

// Throws Error with line and column at a filter or test that does not exist. Jinja2's rule (its compiler's "soft
// frames"): within {% if %} and conditional expressions the error waits for the rendering, because templates ask there
// whether the name exists; but loops, macros and other blocks within them are strict again.
void check_names(const Body& body);

}  // namespace motley::jinja
