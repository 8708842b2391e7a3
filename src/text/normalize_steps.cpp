#include "text/normalize_steps.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/utf8.hpp"
#include "text/json_fields.hpp"
#include "text/normalize.hpp"
#include "text/unicode_class.hpp"
#include "text/unicode_properties.hpp"

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

// RFC 4648, with or without the padding.
std::optional<std::string> decode_base64(std::string_view encoded) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  while (encoded.ends_with('=')) encoded.remove_suffix(1);
  std::string out;
  uint32_t bits = 0;
  int held = 0;  // of `bits`, not yet given out
  for (const char c : encoded) {
    const size_t digit = kDigits.find(c);
    if (digit == kDigits.npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    held += 6;
    if (held < 8) continue;
    held -= 8;
    out.push_back(static_cast<char>(bits >> held & 0xFF));
  }
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  for_characters(text, [&](std::string_view character, char32_t c, bool whole) {
    if (whole) {
      append_small(c, out);
    } else {
      out += character;
    }
  });
  return out;
}

std::string without_marks(std::string_view text) {
  std::string out;
  for_characters(text, [&](std::string_view character, char32_t c, bool) {
    if (!is_mark(c)) out += character;
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

Result<Charsmap> read_charsmap(const JsonFields& fields) {
  constexpr const char* kKey = "precompiled_charsmap";
  ASSIGN_OR_RETURN(const std::string encoded, fields.string(kKey));
  const auto blob = decode_base64(encoded);
  if (!blob) return fields.wrong(kKey, "is not base64");
  auto charsmap = Charsmap::create(*blob);
  if (!charsmap.ok()) return fields.wrong(kKey, charsmap.error().message());
  return charsmap;
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
  } else if (type == "Precompiled") {
    step.kind = Step::kPrecompiled;
    ASSIGN_OR_RETURN(step.charsmap, read_charsmap(fields));
  } else {
    return fields.unknown_type(type,
                               "NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend, Strip, StripAccents, Precompiled, "
                               "Sequence");
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
    case Step::kPrecompiled: text = step.charsmap->replaced_by_graphemes(text); break;
  }
}

}  // namespace motley
