// The `normalizer` of a tokenizer.json: what happens to text before it is cut into words. Immutable; safe from any
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "text/charsmap.hpp"
#include "text/regex.hpp"
#include "text/tokenizer.hpp"

namespace motley {

class NormalizeSteps {
 public:
  // `node` may be null. UNIMPLEMENTED (type, remedy) for kinds that are not built.
  static Result<NormalizeSteps> create(const nlohmann::json& node);

  bool empty() const { return steps_.empty(); }
  // `place`: what stands before the text (Prepend does nothing inside a text).
  void apply(std::string& text, Place place, Regex::Scratch& scratch) const;

 private:
  struct Step {
    enum Kind : uint8_t { kForm, kLowercase, kReplace, kPrepend, kStrip, kStripAccents, kPrecompiled } kind;
    int form = 0;                      // kForm: options of utf8proc
    std::string what, with;            // kReplace, kPrepend (what)
    std::unique_ptr<Regex> regex;      // kReplace: in place of `what`
    bool left = false, right = false;  // kStrip
    std::optional<Charsmap> charsmap;  // kPrecompiled
  };
  Status add(const nlohmann::json& node, int depth);
  static void apply_step(const Step& step, std::string& text, Place place, size_t bytes_max, Regex::Scratch& scratch);

  std::vector<Step> steps_;
};

}  // namespace motley
