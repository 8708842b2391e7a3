#include "client/prompts.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "base/file.hpp"

namespace motley::client {
namespace {

using Json = nlohmann::json;
using Random = std::mt19937_64;

constexpr int kTextRoundsMax = 10;
// Which pairs of a ShareGPT file are sent.
constexpr size_t kPairTokensMin = 4, kPairPromptTokensMax = 1024, kPairTokensMax = 2048;

// A length around `len`.
class LengthDraw {
 public:
  LengthDraw(uint32_t len, double ratio)
      : draw_(std::max<uint64_t>(static_cast<uint64_t>(std::floor(len * (1 - ratio))), 1),
              std::max<uint64_t>(static_cast<uint64_t>(std::ceil(len * (1 + ratio))), 1)) {}
  uint64_t operator()(Random& random) { return draw_(random); }
  uint64_t max() const { return draw_.max(); }

 private:
  std::uniform_int_distribution<uint64_t> draw_;
};

class TokenDraw {
 public:
  explicit TokenDraw(std::vector<TokenId> tokens) : tokens_(std::move(tokens)), draw_(0, tokens_.size() - 1) {}
  void append(std::vector<TokenId>* ids, size_t count, Random& random) {
    for (size_t i = 0; i < count; ++i) ids->push_back(tokens_[draw_(random)]);
  }

 private:
  std::vector<TokenId> tokens_;
  std::uniform_int_distribution<size_t> draw_;
};

// A text is not always made the same tokens of again: what is too much is cut off, what lacks is drawn.
Status make_text(Prompt* prompt, Vocabulary& vocabulary, TokenDraw& token, Random& random) {
  const size_t wanted = prompt->ids.size();
  for (int round = 0; round < kTextRoundsMax; ++round) {
    ASSIGN_OR_RETURN(prompt->text, vocabulary.decode(prompt->ids));
    ASSIGN_OR_RETURN(std::vector<TokenId> again, vocabulary.encode(prompt->text));
    prompt->tokens = again.size();
    if (again.size() == wanted) break;
    prompt->ids = std::move(again);
    if (prompt->ids.size() > wanted) prompt->ids.resize(wanted);
    token.append(&prompt->ids, wanted - prompt->ids.size(), random);
  }
  prompt->ids.clear();
  return ok_status();
}

Status check(const RandomOptions& options, uint32_t count, uint64_t input_len_max) {
  if (options.input_len == 0 || options.output_len == 0) {
    return invalid_argument("--random-input-len and --random-output-len must be at least 1");
  }
  const uint64_t length = options.prefix_len + input_len_max;
  if (length > kRandomTokensMax / std::max(count, 1u)) {
    return invalid_argument("{} prompts of up to {} tokens are more than {} tokens; ask for fewer", count, length,
                            kRandomTokensMax);
  }
  return ok_status();
}

// The member of an object that is a string.
const std::string* string_member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : found->get_ptr<const std::string*>();
}

// An element of a ShareGPT file into the list, unless it has fewer than two turns.
Status take_conversation(const Json& element, const std::string& where, std::vector<DatasetEntry>* entries) {
  if (!element.is_object()) return invalid_argument("{} is no object", where);
  const auto turns = element.find("conversations");
  if (turns == element.end()) return ok_status();
  if (!turns->is_array()) return invalid_argument("{}: conversations is no array", where);
  if (turns->size() < 2) return ok_status();
  DatasetEntry entry;
  for (const size_t i : {size_t{0}, size_t{1}}) {
    const std::string* value = string_member((*turns)[i], "value");
    if (value == nullptr) return invalid_argument("{}: conversations[{}].value is no string", where, i);
    (i == 0 ? entry.prompt : entry.answer) = *value;
  }
  if (!entry.prompt.empty()) entries->push_back(std::move(entry));
  return ok_status();
}

Result<DatasetEntry> parse_custom_line(std::string_view line, const std::string& where) {
  const Json object = Json::parse(line, nullptr, false);
  if (!object.is_object()) return invalid_argument("{}: not a JSON object", where);
  const std::string* prompt = string_member(object, "prompt");
  if (prompt == nullptr || prompt->empty()) return invalid_argument("{}: prompt is no string, or empty", where);
  DatasetEntry entry{*prompt, "", {}};
  const auto length = object.find("output_tokens");
  if (length == object.end() || length->is_null()) return entry;
  if (!length->is_number_unsigned() || length->get<uint64_t>() == 0 ||
      length->get<uint64_t>() > std::numeric_limits<uint32_t>::max()) {
    return invalid_argument("{}: output_tokens is no whole number from 1 to {}", where,
                            std::numeric_limits<uint32_t>::max());
  }
  entry.output_tokens = length->get<uint32_t>();
  return entry;
}

// The entry as a prompt; its output_tokens are 0 if it is not to be sent.
Result<Prompt> sharegpt_prompt(DatasetEntry entry, const std::optional<uint32_t>& output_len, Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const auto prompt_ids, vocabulary.encode(entry.prompt));
  size_t output_tokens = output_len.value_or(0);
  if (!output_len) {
    ASSIGN_OR_RETURN(const auto answer_ids, vocabulary.encode(entry.answer));
    output_tokens = answer_ids.size();
  }
  const bool fits = prompt_ids.size() >= kPairTokensMin && (output_len || output_tokens >= kPairTokensMin) &&
                    prompt_ids.size() <= kPairPromptTokensMax && prompt_ids.size() + output_tokens <= kPairTokensMax;
  return Prompt{{}, std::move(entry.prompt), prompt_ids.size(), fits ? static_cast<uint32_t>(output_tokens) : 0};
}

}  // namespace

Result<std::vector<Prompt>> random_prompts(const RandomOptions& options, uint32_t count, bool as_text, uint64_t seed,
                                           Vocabulary& vocabulary) {
  if (!(options.range_ratio >= 0 && options.range_ratio < 1)) {
    return invalid_argument("--random-range-ratio must be from 0 to below 1, got {}", options.range_ratio);
  }
  LengthDraw input_len(options.input_len, options.range_ratio), output_len(options.output_len, options.range_ratio);
  RETURN_IF_ERROR(check(options, count, input_len.max()));
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, vocabulary.plain_tokens());
  TokenDraw token(std::move(tokens));
  Random random(seed);
  std::vector<TokenId> prefix;
  token.append(&prefix, options.prefix_len, random);
  std::vector<Prompt> prompts(count);
  for (Prompt& prompt : prompts) {
    prompt.ids = prefix;
    token.append(&prompt.ids, input_len(random), random);
    prompt.output_tokens = static_cast<uint32_t>(std::min<uint64_t>(output_len(random), UINT32_MAX));
    prompt.tokens = prompt.ids.size();
    if (as_text) RETURN_IF_ERROR(make_text(&prompt, vocabulary, token, random));
  }
  return prompts;
}

Result<std::vector<DatasetEntry>> parse_sharegpt(std::string_view text, const std::string& path) {
  std::vector<DatasetEntry> entries;
  Status fault;
  size_t index = 0;
  // Each element is taken and thrown away as soon as it is read: the whole would be several times the file.
  const Json::parser_callback_t callback = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (!fault.ok()) return false;
    if (depth == 0 && (event == Json::parse_event_t::object_start || event == Json::parse_event_t::value)) {
      fault = invalid_argument("{} is no JSON array of conversations", path);
      return false;
    }
    const bool whole = event == Json::parse_event_t::object_end || event == Json::parse_event_t::array_end ||
                       event == Json::parse_event_t::value;
    if (depth != 1 || !whole) return true;
    fault = take_conversation(parsed, fmt::format("{}: entry {}", path, index++), &entries);
    return false;
  };
  const Json rest = Json::parse(text, callback, false);
  RETURN_IF_ERROR(fault);
  if (!rest.is_array()) return invalid_argument("{}: not JSON, after entry {}", path, index);
  return entries;
}

Result<std::vector<DatasetEntry>> parse_custom(std::string_view text, const std::string& path) {
  std::vector<DatasetEntry> entries;
  size_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    ASSIGN_OR_RETURN(DatasetEntry entry, parse_custom_line(line, fmt::format("{}:{}", path, number)));
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<std::vector<Prompt>> file_prompts(const FileOptions& options, uint32_t count, uint64_t seed,
                                         Vocabulary* vocabulary) {
  const bool sharegpt = options.kind == DatasetKind::kShareGpt;
  ASSIGN_OR_RETURN(const std::string text, read_file(options.path, kDatasetBytesMax));
  ASSIGN_OR_RETURN(auto entries, sharegpt ? parse_sharegpt(text, options.path) : parse_custom(text, options.path));
  Random random(seed);
  if (options.shuffle) std::shuffle(entries.begin(), entries.end(), random);
  std::vector<Prompt> prompts;
  for (DatasetEntry& entry : entries) {
    if (prompts.size() == count) break;
    Prompt prompt;
    if (sharegpt) {
      CHECK(vocabulary != nullptr);
      ASSIGN_OR_RETURN(prompt, sharegpt_prompt(std::move(entry), options.output_len, *vocabulary));
    } else {
      const uint32_t own = entry.output_tokens.value_or(kCustomOutputLen);
      prompt = {{}, std::move(entry.prompt), 0, options.output_len.value_or(own)};
    }
    if (prompt.output_tokens > 0) prompts.push_back(std::move(prompt));
  }
  const size_t found = prompts.size();
  if (found == 0) return invalid_argument("{}: no prompt in it can be used", options.path);
  while (options.oversample && prompts.size() < count) {
    prompts.push_back(prompts[std::uniform_int_distribution<size_t>(0, found - 1)(random)]);
  }
  return prompts;
}

}  // namespace motley::client
