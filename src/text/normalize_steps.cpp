#include "text/normalize_steps.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "text/json_fields.hpp"
#include "text/normalize.hpp"
#include "text/unicode_class.hpp"
#include "text/utf8.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;

constexpr size_t kStepsMax = 64;
// Replacements may not make text grow without bound: when it is this many times as long (and a little), they stop.
constexpr size_t kGrowthMax = 64, kGrowthFreeBytes = 4096;

struct Form {
  std::string_view type;
  int options;
};
constexpr Form kForms[] = {{"NFC", UTF8PROC_COMPOSE},
                           {"NFD", UTF8PROC_DECOMPOSE},
                           {"NFKC", UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
                           {"NFKD", UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};

void append_code_point(char32_t c, std::string& out) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

// Calls `each(character, code point)` for all of the text; broken bytes come with the code point U+FFFD.
template <typename Each>
void for_characters(std::string_view text, Each each) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    const bool whole = step.kind == Utf8Step::kCharacter;
    each(text.substr(0, step.bytes), whole ? step.code_point : char32_t{0xFFFD}, whole);
    text.remove_prefix(step.bytes);
  }
}

std::string lowercase(std::string_view text) {
  std::string out;
  for_characters(text, [&](std::string_view character, char32_t c, bool whole) {
    if (!whole) {
      out += character;
    } else if (c == 0x130) {  // the only letter whose small form is two characters
      out += "i\u0307";
    } else {
      append_code_point(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
    }
  });
  return out;
}

std::string without_marks(std::string_view text) {
  std::string out;
  for_characters(text, [&](std::string_view character, char32_t c, bool) {
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    const bool mark =
        category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
    if (!mark) out += character;
  });
  return out;
}

std::string stripped(std::string_view text, bool left, bool right) {
  size_t begin = text.size(), end = 0, at = 0;
  for_characters(text, [&](std::string_view character, char32_t c, bool) {
    if (UnicodeClasses::instance().of(c) != CharClass::kSpace) {
      begin = std::min(begin, at);
      end = at + character.size();
    }
    at += character.size();
  });
  if (!left) begin = 0;
  if (!right) end = text.size();
  return begin < end ? std::string(text.substr(begin, end - begin)) : std::string();
}

std::string replaced(std::string_view text, std::string_view what, const Regex* regex, std::string_view with,
                     size_t bytes_max, Regex::Scratch& scratch) {
  if (text.size() >= bytes_max) return std::string(text);
  std::string out;
  size_t done = 0;
  for (size_t at = 0; at <= text.size() && out.size() < bytes_max;) {
    std::optional<std::pair<size_t, size_t>> found;
    if (regex != nullptr) {
      found = regex->find(text, at, scratch);
    } else if (const size_t place = text.find(what, at); place != text.npos) {
      found = std::pair(place, place + what.size());
    }
    if (!found) break;
    out.append(text.substr(done, found->first - done)).append(with);
    done = found->second;
    at = found->second;
    if (found->first == found->second) {  // an empty match: go on behind the next character
      if (at == text.size()) break;
      at += utf8_step(text.substr(at)).bytes;
    }
  }
  return out.append(text.substr(done));
}

}  // namespace

Result<NormalizeSteps> NormalizeSteps::create(const Json& node) {
  NormalizeSteps made;
  if (!node.is_null()) RETURN_IF_ERROR(made.add(node, 0));
  return made;
}

Status NormalizeSteps::add(const Json& node, int depth) {
  const JsonFields fields(node, "normalizer");
  ASSIGN_OR_RETURN(const std::string type, fields.string("type"));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* const list, fields.list("normalizers", depth));
    for (const Json& each : *list) RETURN_IF_ERROR(add(each, depth + 1));
    return ok_status();
  }
  if (steps_.size() == kStepsMax)
    return error(MOTLEY_RESOURCE_EXHAUSTED, "normalizer has more than {} steps", kStepsMax);
  Step step{};
  for (const Form& form : kForms) {
    if (type != form.type) continue;
    step.kind = Step::kForm;
    step.form = form.options;
    steps_.push_back(std::move(step));
    return ok_status();
  }
  if (type == "Lowercase") {
    step.kind = Step::kLowercase;
  } else if (type == "StripAccents") {
    step.kind = Step::kStripAccents;
  } else if (type == "Prepend") {
    step.kind = Step::kPrepend;
    ASSIGN_OR_RETURN(step.what, fields.string("prepend"));
  } else if (type == "Strip") {
    step.kind = Step::kStrip;
    ASSIGN_OR_RETURN(step.left, fields.boolean("strip_left", true));
    ASSIGN_OR_RETURN(step.right, fields.boolean("strip_right", true));
  } else if (type == "Replace") {
    step.kind = Step::kReplace;
    ASSIGN_OR_RETURN(auto pattern, fields.pattern());
    ASSIGN_OR_RETURN(step.with, fields.string("content"));
    step.what = std::move(pattern.text);
    if (pattern.is_regex) {
      ASSIGN_OR_RETURN(step.regex, Regex::create(step.what));
    } else if (step.what.empty()) {
      return fields.wrong("pattern", "is empty");
    }
  } else {
    return fields.unknown_type(type,
                               "NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend, Strip, StripAccents, Sequence");
  }
  steps_.push_back(std::move(step));
  return ok_status();
}

void NormalizeSteps::apply(std::string& text, Place place, Regex::Scratch& scratch) const {
  const size_t bytes_max = text.size() * kGrowthMax + kGrowthFreeBytes;
  for (const Step& step : steps_) apply_step(step, text, place, bytes_max, scratch);
}

void NormalizeSteps::apply_step(const Step& step, std::string& text, Place place, size_t bytes_max,
                                Regex::Scratch& scratch) {
  switch (step.kind) {
    case Step::kForm:
      if (step.form != UTF8PROC_COMPOSE || !surely_nfc(text)) text = to_form(text, step.form);
      break;
    case Step::kLowercase: text = lowercase(text); break;
    case Step::kReplace: text = replaced(text, step.what, step.regex.get(), step.with, bytes_max, scratch); break;
    case Step::kPrepend:
      if (!text.empty() && place != Place::kInText) text.insert(0, step.what);
      break;
    case Step::kStrip: text = stripped(text, step.left, step.right); break;
    case Step::kStripAccents: text = without_marks(text); break;
  }
}

}  // namespace motley
