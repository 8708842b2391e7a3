// The prompts of a run: drawn at random, or of a file. The same seed gives the same prompts. Not thread-safe where a
// Vocabulary is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/status.hpp"
#include "client/vocabulary.hpp"

namespace motley::client {

inline constexpr size_t kDatasetBytesMax = 2ull << 30;
inline constexpr uint64_t kRandomTokensMax = 1ull << 28;  // of all prompts together

struct Prompt {
  std::vector<TokenId> ids;  // what is sent, unless text says otherwise
  std::string text;          // sent where it is not empty
  uint64_t tokens = 0;       // of either, as far as is known; 0: the server will say
  uint32_t output_tokens = 0;
};

struct RandomOptions {
  uint32_t input_len = 1024, output_len = 128;
  // Both lengths are drawn from [floor(len × (1 − ratio)), ceil(len × (1 + ratio))], at least 1; 0 to below 1.
  double range_ratio = 0;
  uint32_t prefix_len = 0;  // tokens before them, the same for all prompts
};

// `as_text`: for chats. The text is one that the vocabulary makes about as many tokens of. INVALID_ARGUMENT naming the
// option; errors of the vocabulary.
Result<std::vector<Prompt>> random_prompts(const RandomOptions& options, uint32_t count, bool as_text, uint64_t seed,
                                           Vocabulary& vocabulary);

// One entry of a file: a prompt and what was answered, or how long the answer shall be.
struct DatasetEntry {
  std::string prompt, answer;
  std::optional<uint32_t> output_tokens;
};

// ShareGPT's: an array of {"conversations": [{"value": …}, …]}, of which the first two turns count; entries with fewer
// are left out. INVALID_ARGUMENT naming the file, the entry and the key; `path` is for messages.
Result<std::vector<DatasetEntry>> parse_sharegpt(std::string_view text, const std::string& path);
// Lines of {"prompt": …, "output_tokens": …}, the latter optional. The same errors, with the line.
Result<std::vector<DatasetEntry>> parse_custom(std::string_view text, const std::string& path);

enum class DatasetKind { kShareGpt, kCustom };

struct FileOptions {
  DatasetKind kind = DatasetKind::kCustom;
  std::string path;
  std::optional<uint32_t> output_len;  // of every answer; else the file says: see file_prompts()
  bool shuffle = true;
  bool oversample = true;  // where the file has too few prompts, some are sent again
};

inline constexpr uint32_t kCustomOutputLen = 256;  // of an answer whose line says nothing

// ShareGPT: answers get as many tokens as the file's had, by `vocabulary`; as in vLLM, entries of less than 4 tokens,
// prompts of more than 1024 and pairs of more than 2048 are left out. Custom needs no vocabulary: null will do.
// INVALID_ARGUMENT for a file that cannot be read or holds no prompt.
Result<std::vector<Prompt>> file_prompts(const FileOptions& options, uint32_t count, uint64_t seed,
                                         Vocabulary* vocabulary);

}  // namespace motley::client
