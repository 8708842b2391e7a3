#include "text/pre_tokenize_steps.hpp"

#include <algorithm>

#include "base/utf8.hpp"
#include "text/json_fields.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/token_table.hpp"
#include "text/unicode_class.hpp"
#include "text/unicode_properties.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;
using Scratch = PreTokenizeStep::Scratch;

constexpr size_t kStepsMax = 64;

void push(std::string_view text, const TextPiece& whole, Scratch& scratch) {
  if (text.empty()) return;
  scratch.next.push_back({text, text.data() == whole.text.data() ? whole.place : Place::kAfterToken});
}

// What becomes of the matches of a pattern and of what lies between them.
enum class Behavior : uint8_t { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {{"Isolated", Behavior::kIsolated},
                                                                {"Removed", Behavior::kRemoved},
                                                                {"MergedWithPrevious", Behavior::kMergedWithPrevious},
                                                                {"MergedWithNext", Behavior::kMergedWithNext},
                                                                {"Contiguous", Behavior::kContiguous}};

Result<Behavior> behavior_of(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const std::string name, fields.string("behavior"));
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) return behavior;
  }
  return fields.wrong("behavior", "is none of Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

// A match of a piece, or what lies between two.
struct Stretch {
  size_t begin, end;
  bool match;
};

class SplitStep : public PreTokenizeStep {
 public:
  SplitStep(Behavior behavior, bool invert) : behavior_(behavior), invert_(invert) {}

  void apply(const TextPiece& piece, Scratch& scratch) const final {
    std::optional<Stretch> open;  // goes on growing while stretches join it
    const auto close = [&] {
      if (open) push(piece.text.substr(open->begin, open->end - open->begin), piece, scratch);
    };
    const auto take = [&](size_t begin, size_t end, bool match) {
      if (match && behavior_ == Behavior::kRemoved) return;
      if (open && joins(open->match, match)) {
        open->end = end;
        open->match = match;
        return;
      }
      close();
      open = {begin, end, match};
    };
    size_t done = 0;
    for (size_t at = 0; at <= piece.text.size();) {
      const auto found = find(piece.text, at, scratch);
      if (!found) break;
      if (found->first > done) take(done, found->first, invert_);
      take(found->first, found->second, !invert_);
      done = at = found->second;
      if (found->first != found->second) continue;  // an empty match: a cut; go on behind the next character
      if (at == piece.text.size()) break;
      at += utf8_step(piece.text.substr(at)).bytes;
    }
    if (done < piece.text.size()) take(done, piece.text.size(), invert_);
    close();
  }

 protected:
  // The first match at or after `from`.
  virtual std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from, Scratch& scratch) const = 0;

 private:
  // Whether a stretch goes into the one before; the flags tell which of them are matches (of joined ones the last).
  bool joins(bool before, bool now) const {
    switch (behavior_) {
      case Behavior::kIsolated:
      case Behavior::kRemoved: return false;
      case Behavior::kContiguous: return before == now;
      case Behavior::kMergedWithPrevious: return now && !before;
      case Behavior::kMergedWithNext: return before && !now;
    }
    return false;
  }

  const Behavior behavior_;
  const bool invert_;
};

class RegexSplit final : public SplitStep {
 public:
  RegexSplit(std::unique_ptr<Regex> regex, Behavior behavior, bool invert)
      : SplitStep(behavior, invert), regex_(std::move(regex)) {}
  std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from, Scratch& scratch) const override {
    return regex_->find(text, from, scratch.regex);
  }

 private:
  const std::unique_ptr<Regex> regex_;
};

class StringSplit final : public SplitStep {
 public:
  StringSplit(std::string what, Behavior behavior, bool invert) : SplitStep(behavior, invert), what_(std::move(what)) {}
  std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from, Scratch&) const override {
    const size_t place = text.find(what_, from);
    return place == text.npos ? std::nullopt : std::optional(std::pair(place, place + what_.size()));
  }

 private:
  const std::string what_;
};

// Characters of a kind are the matches, one by one.
class CharacterSplit final : public SplitStep {
 public:
  using Kind = bool (*)(char32_t c);
  CharacterSplit(Kind kind, Behavior behavior) : SplitStep(behavior, false), kind_(kind) {}
  std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from, Scratch&) const override {
    for (size_t at = from; at < text.size();) {
      const Utf8Step step = utf8_step(text.substr(at));
      if (step.kind == Utf8Step::kCharacter && kind_(step.code_point)) return std::pair(at, at + step.bytes);
      at += step.bytes;
    }
    return std::nullopt;
  }

 private:
  const Kind kind_;
};

bool is_number(char32_t c) { return UnicodeClasses::instance().of(c) == CharClass::kNumber; }
bool is_space(char32_t c) { return UnicodeClasses::instance().of(c) == CharClass::kSpace; }

// A published expression that is written by hand here: it leaves nothing out, so every match is a word.
class WordSplit final : public PreTokenizeStep {
 public:
  explicit WordSplit(const PreTokenizer& words) : words_(words) {}
  void apply(const TextPiece& piece, Scratch& scratch) const override {
    for (size_t at = 0; at < piece.text.size();) {
      const size_t end = words_.word_end(piece.text, at);
      push(piece.text.substr(at, end - at), piece, scratch);
      at = end;
    }
  }

 private:
  const PreTokenizer& words_;
};

// \w+|[^\w\s]+
class WordRuns final : public PreTokenizeStep {
 public:
  void apply(const TextPiece& piece, Scratch& scratch) const override {
    enum Kind : uint8_t { kSpaces, kWord, kOther } run = kSpaces;
    size_t begin = 0;
    for (size_t at = 0; at < piece.text.size();) {
      const Utf8Step step = utf8_step(piece.text.substr(at));
      const bool whole = step.kind == Utf8Step::kCharacter;
      const Kind kind = !whole                      ? kOther
                        : is_word(step.code_point)  ? kWord
                        : is_space(step.code_point) ? kSpaces
                                                    : kOther;
      if (kind != run) {
        if (run != kSpaces) push(piece.text.substr(begin, at - begin), piece, scratch);
        begin = at;
        run = kind;
      }
      at += step.bytes;
    }
    if (run != kSpaces) push(piece.text.substr(begin), piece, scratch);
  }
};

// A space before what begins with none.
class SpacePrefix final : public PreTokenizeStep {
 public:
  void apply(const TextPiece& piece, Scratch& scratch) const override {
    if (piece.text.starts_with(' ') || piece.place == Place::kInText) return scratch.next.push_back(piece);
    const std::string& text = scratch.texts.emplace_back(" " + std::string(piece.text));
    scratch.next.push_back({text, piece.place});
  }
};

class Metaspace final : public PreTokenizeStep {
 public:
  enum class Prepend : uint8_t { kNever, kFirst, kAlways };
  Metaspace(std::string mark, Prepend prepend, bool split) : mark_(std::move(mark)), prepend_(prepend), split_(split) {}

  void apply(const TextPiece& piece, Scratch& scratch) const override {
    std::string& text = scratch.texts.emplace_back();
    const bool prefix = prepend_ == Prepend::kAlways ? piece.place != Place::kInText
                                                     : prepend_ == Prepend::kFirst && piece.place == Place::kStart;
    if (prefix && !piece.text.starts_with(' ') && !piece.text.starts_with(mark_)) text += mark_;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += mark_;
      } else {
        text += c;
      }
    }
    const TextPiece whole{text, piece.place};
    size_t begin = 0;
    // Every mark begins a piece.
    for (size_t at = split_ ? text.find(mark_, 1) : text.npos; at != text.npos; at = text.find(mark_, at + 1)) {
      push(std::string_view(text).substr(begin, at - begin), whole, scratch);
      begin = at;
    }
    push(std::string_view(text).substr(begin), whole, scratch);
  }

 private:
  const std::string mark_;
  const Prepend prepend_;
  const bool split_;
};

using Steps = std::vector<std::unique_ptr<PreTokenizeStep>>;

Status add_byte_level(const JsonFields& fields, Steps& steps) {
  ASSIGN_OR_RETURN(const bool prefix, fields.boolean("add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, fields.boolean("use_regex", true));
  if (prefix) steps.push_back(std::make_unique<SpacePrefix>());
  if (use_regex) steps.push_back(std::make_unique<WordSplit>(*find_pre_tokenizer("gpt-2")));
  return ok_status();
}

Status add_metaspace(const JsonFields& fields, Steps& steps) {
  ASSIGN_OR_RETURN(const std::string mark, fields.string("replacement", kSpaceMark));
  if (mark.empty() || utf8_step(mark).bytes != mark.size()) return fields.wrong("replacement", "is not one character");
  ASSIGN_OR_RETURN(const bool legacy_prefix, fields.boolean("add_prefix_space", true));
  ASSIGN_OR_RETURN(const std::string scheme, fields.string("prepend_scheme", legacy_prefix ? "always" : "never"));
  ASSIGN_OR_RETURN(const bool split, fields.boolean("split", true));
  constexpr std::pair<std::string_view, Metaspace::Prepend> kSchemes[] = {{"always", Metaspace::Prepend::kAlways},
                                                                          {"first", Metaspace::Prepend::kFirst},
                                                                          {"never", Metaspace::Prepend::kNever}};
  for (const auto& [name, prepend] : kSchemes) {
    if (scheme != name) continue;
    steps.push_back(std::make_unique<Metaspace>(mark, prepend, split));
    return ok_status();
  }
  return fields.wrong("prepend_scheme", "is none of always, first, never");
}

Status add_expression(std::string_view pattern, Behavior behavior, bool invert, Steps& steps) {
  const PreTokenizer* by_hand = find_pre_tokenizer_of(pattern);
  if (by_hand != nullptr && (behavior == Behavior::kIsolated || (behavior == Behavior::kRemoved && invert))) {
    steps.push_back(std::make_unique<WordSplit>(*by_hand));
    return ok_status();
  }
  ASSIGN_OR_RETURN(auto regex, Regex::create(pattern));
  steps.push_back(std::make_unique<RegexSplit>(std::move(regex), behavior, invert));
  return ok_status();
}

Status add_split(const JsonFields& fields, Steps& steps) {
  ASSIGN_OR_RETURN(JsonFields::Pattern pattern, fields.pattern());
  ASSIGN_OR_RETURN(const Behavior behavior, behavior_of(fields));
  ASSIGN_OR_RETURN(const bool invert, fields.boolean("invert", false));
  if (!pattern.is_regex) {
    if (pattern.text.empty()) return fields.wrong("pattern", "is empty");
    steps.push_back(std::make_unique<StringSplit>(std::move(pattern.text), behavior, invert));
    return ok_status();
  }
  return add_expression(pattern.text, behavior, invert, steps);
}

Status add_digits(const JsonFields& fields, Steps& steps) {
  ASSIGN_OR_RETURN(const bool apart, fields.boolean("individual_digits", false));
  steps.push_back(std::make_unique<CharacterSplit>(is_number, apart ? Behavior::kIsolated : Behavior::kContiguous));
  return ok_status();
}

Status add_punctuation(const JsonFields& fields, Steps& steps) {
  Behavior behavior = Behavior::kIsolated;
  if (fields.has("behavior")) {
    ASSIGN_OR_RETURN(behavior, behavior_of(fields));
  }
  steps.push_back(std::make_unique<CharacterSplit>(is_punctuation, behavior));
  return ok_status();
}

Status add_whitespace(const JsonFields&, Steps& steps) {
  steps.push_back(std::make_unique<WordRuns>());
  return ok_status();
}

Status add_whitespace_split(const JsonFields&, Steps& steps) {
  steps.push_back(std::make_unique<CharacterSplit>(is_space, Behavior::kRemoved));
  return ok_status();
}

struct Kind {
  std::string_view type;
  Status (*add)(const JsonFields& fields, Steps& steps);
};
constexpr Kind kKinds[] = {{"ByteLevel", add_byte_level},
                           {"Metaspace", add_metaspace},
                           {"Split", add_split},
                           {"Digits", add_digits},
                           {"Punctuation", add_punctuation},
                           {"Whitespace", add_whitespace},
                           {"WhitespaceSplit", add_whitespace_split}};

}  // namespace

Result<PreTokenizeSteps> PreTokenizeSteps::create(const Json& node) {
  PreTokenizeSteps made;
  if (!node.is_null()) RETURN_IF_ERROR(made.add(node, 0));
  return made;
}

Result<PreTokenizeSteps> PreTokenizeSteps::create(std::span<const std::string_view> expressions) {
  PreTokenizeSteps made;
  for (const std::string_view expression : expressions) {
    RETURN_IF_ERROR(add_expression(expression, Behavior::kIsolated, false, made.steps_));
  }
  return made;
}

Status PreTokenizeSteps::add(const Json& node, int depth) {
  const JsonFields fields(node, "pre_tokenizer");
  ASSIGN_OR_RETURN(const std::string type, fields.string("type"));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* const list, fields.list("pretokenizers", depth));
    for (const Json& each : *list) RETURN_IF_ERROR(add(each, depth + 1));
    return ok_status();
  }
  if (byte_level_) return fields.unsupported("pretokenizers", "has a step behind ByteLevel, which is not supported");
  if (steps_.size() >= kStepsMax) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "pre_tokenizer has more than {} steps", kStepsMax);
  }
  std::string known;
  for (const Kind& kind : kKinds) {
    if (kind.type == type) {
      byte_level_ = type == "ByteLevel";
      return kind.add(fields, steps_);
    }
    known += std::string(kind.type) + ", ";
  }
  return fields.unknown_type(type, known + "Sequence");
}

void PreTokenizeSteps::apply(std::string_view text, Place place, Scratch& scratch) const {
  scratch.texts.clear();
  scratch.pieces.assign(1, {text, place});
  for (const auto& step : steps_) {
    scratch.next.clear();
    for (const TextPiece& piece : scratch.pieces) step->apply(piece, scratch);
    scratch.pieces.swap(scratch.next);
  }
}

}  // namespace motley
