// Template: a Jinja2 template, parsed once and rendered many times.
//
// Means what Jinja2 means in the sandbox that published chat templates are written for: trim_blocks, lstrip_blocks,
// loop controls, {% generation %}, no autoescape, immutable lists and dicts, tojson as plain JSON. Not there:
// inheritance, imports, integers beyond 64 bits, what makes HTML (Markup, xmlattr, urlize, striptags), pprint,
// random and lipsum. Immutable after creation; safe from any thread.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "text/jinja/limits.hpp"
#include "text/jinja/marked_text.hpp"

namespace motley::jinja {

// A variable of a rendering. `trusted`: its strings count as the template author's own. (Well-known words under a key
// "role" always do.)
struct Variable {
  std::string name;
  const nlohmann::ordered_json* value = nullptr;  // not owned; lives through render()
  bool trusted = false;
};

class Template {
 public:
  // INVALID_ARGUMENT with line and column: what does not parse, goes beyond the limits, or names a filter or test that
  // does not exist (outside conditions, as Jinja2: name_check.hpp).
  static Result<std::unique_ptr<Template>> create(std::string_view source);
  ~Template();

  // With the line: INVALID_ARGUMENT where the variables are at fault (raise_exception's text; strings that are not
  // UTF-8, values nested too deep); FAILED_PRECONDITION where the template is (any other error, a limit exceeded).
  Result<MarkedText> render(const std::vector<Variable>& variables, int64_t unix_time_s,
                            const Limits& limits = {}) const;
  // Whether a loop somewhere goes over what `.name` or ['name'] gave.
  bool iterates_over(std::string_view name) const;

 private:
  struct Tree;
  explicit Template(std::unique_ptr<Tree> tree);
  std::unique_ptr<Tree> tree_;
};

}  // namespace motley::jinja
