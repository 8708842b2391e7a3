// motley::LLM: a language model inside your own program. Text or tokens in; text, tokens and log-probabilities out.
//
//   motley::LLM llm({.model = "model.gguf"});
//   for (const auto& output : llm.generate({"The capital of France is"}, {.temperature = 0}))
//     std::cout << output.outputs[0].text << '\n';
//
// The engine behind it is the one of `motley serve`: continuous batching, prefix cache, the same tokens. Names,
// meanings and defaults are vLLM's.
//
// Errors: what cannot be done is thrown as motley::Error, one line that says what, where and what to do. Nothing else
// is thrown but std::bad_alloc. Threads: an LLM may be used by any number of threads at once; a Run by one at a time,
// except for cancel(). Ownership: arguments are copied, results are values; a Run keeps its model alive.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "motley/types.h"

#define MOTLEY_API __attribute__((visibility("default")))

namespace motley {

using TokenId = int32_t;

class MOTLEY_API Error : public std::runtime_error {
 public:
  Error(motley_code code, const std::string& message);
  ~Error() override;
  // The canonical code, e.g. MOTLEY_INVALID_ARGUMENT.
  motley_code code() const noexcept { return code_; }

 private:
  motley_code code_;
};

// How a model is opened. Zero and empty mean the default that the comment names.
struct LlmOptions {
  std::string model = {};               // a model file
  std::string devices = "auto";         // that may be used; see `motley devices`
  std::string device_map = {};          // names there that simulated devices stand for: "GPU:0=SIM:gpu-like"
  uint32_t tensor_parallel_size = 1;    // 1: as the plan has it; more: that many devices work on each layer
  uint32_t max_model_len = 0;           // longest sequence in tokens: what the model and the KV pool allow
  uint32_t max_num_seqs = 128;          // sequences that run at once
  uint32_t max_num_batched_tokens = 0;  // tokens of one step: as many as keep it within 200 ms
  uint32_t block_size = 16;             // positions of a KV block
  std::string quality = "exact";        // of weights: exact, balanced (8 bits) or fast (4 bits)
  std::string kv_cache_dtype = "auto";  // auto, float32, float16, bfloat16, fp8, int8
  uint64_t kv_cache_memory_bytes = 0;   // 0: 2 GB or a quarter of the free memory, of a GPU's 7/8 of what is left
  bool enable_prefix_caching = true;    // share the KV of equal prompt beginnings
  bool enable_chunked_prefill = true;   // compute long prompts in parts
  uint32_t threads = 0;                 // compute threads: one for each core of the device
  bool deterministic = false;           // bit-identical text under any batching, caching and preemption
  std::string chat_template = {};       // a Jinja file: the model's own template
  std::optional<uint64_t> seed = {};    // from which requests without a seed get theirs: drawn
};

// How tokens are chosen and where an answer ends.
struct SamplingParams {
  uint32_t n = 1;                                           // answers to each prompt
  float temperature = 1.0f;                                 // 0 = greedy
  float top_p = 1.0f;                                       // (0, 1]
  int32_t top_k = 0;                                        // 0 or -1 = off
  float min_p = 0.0f;                                       // [0, 1]
  float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // [-2, 2]
  float repetition_penalty = 1.0f;                          // > 0
  std::optional<uint64_t> seed = {};                        // the same seed, the same answer; else LlmOptions::seed
  std::optional<uint32_t> max_tokens = 16;                  // nullopt, and at most: what the context leaves
  uint32_t min_tokens = 0;                                  // until then nothing ends the answer
  bool ignore_eos = false;                                  // go on after end tokens
  std::vector<std::string> stop = {};                       // texts that end the answer
  std::vector<TokenId> stop_token_ids = {};                 // tokens that end it, beside the model's own
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;           // in the text; the ids have them all
  std::map<TokenId, float> logit_bias = {};  // added to the logits
  std::optional<uint32_t> logprobs = {};     // alternatives to report for each token, at most MOTLEY_TOP_MAX
};

// What is continued: a text, or tokens.
struct Prompt {
  std::optional<std::string> text;  // where there are token_ids too, these run and the text is only handed back
  std::vector<TokenId> token_ids;

  Prompt() = default;
  Prompt(const char* words) : text(words) {}                             // NOLINT(google-explicit-constructor)
  Prompt(std::string words) : text(std::move(words)) {}                  // NOLINT(google-explicit-constructor)
  Prompt(std::vector<TokenId> tokens) : token_ids(std::move(tokens)) {}  // NOLINT(google-explicit-constructor)
};

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
};

// How a conversation becomes a prompt. Empty texts mean none.
struct ChatOptions {
  bool add_generation_prompt = true;    // let the assistant speak next
  bool continue_final_message = false;  // go on with the last message; only where add_generation_prompt is false
  std::string tools = {};               // that the template may tell of: OpenAI's "tools", a JSON array of objects
  std::string documents = {};           // likewise: a JSON array of objects
  std::string template_variables = {};  // further variables of the template: a JSON object
  // A Jinja template's text, in place of the model's. It is trusted: its special tokens count.
  std::string chat_template = {};
};

struct Logprob {
  TokenId id = 0;
  float logprob = 0;
  std::optional<uint32_t> rank;  // 1 = likeliest; unknown for a chosen token that is not among the alternatives
  std::string decoded_token;     // its bytes; not always UTF-8 by themselves
};

// One answer to a prompt.
struct CompletionOutput {
  uint32_t index = 0;                        // among the n answers
  std::string text;                          // UTF-8, whole characters
  std::vector<TokenId> token_ids;            // an end token included
  std::optional<double> cumulative_logprob;  // if log-probabilities were asked for
  // For each token the chosen one first, then the alternatives asked for, likeliest first.
  std::optional<std::vector<std::vector<Logprob>>> logprobs;
  std::string finish_reason;  // "stop", "length", "abort" (cancelled); empty while it runs
  // What stopped it: one of SamplingParams::stop, or one of stop_token_ids.
  std::optional<std::string> stop_string;
  std::optional<TokenId> stop_token;
};

// The answers to one prompt.
struct RequestOutput {
  uint32_t index = 0;                 // of the prompt in the call
  std::optional<std::string> prompt;  // nullopt where tokens were given
  std::vector<TokenId> prompt_token_ids;
  std::vector<CompletionOutput> outputs;
  uint32_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache
  bool finished = false;           // all n answers are whole
};

struct ModelInfo {
  std::string name, architecture, device;
  uint32_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  uint32_t vocab_size = 0, context_length = 0;
  uint32_t max_model_len = 0;  // the longest sequence as it was opened
  bool has_chat_template = false;
  std::optional<TokenId> bos_token_id, eos_token_id;
};

// Requests under way. Its end cancels what still runs.
class MOTLEY_API Run {
 public:
  Run(Run&&) noexcept;
  Run& operator=(Run&&) noexcept;
  ~Run();

  // Blocks for the next piece of news: what one prompt's answers grew by (text, tokens, log-probabilities) since the
  // last piece, with a finish_reason in the last of each answer. nullopt when all is told.
  std::optional<RequestOutput> next();
  // The same, but nullopt also when nothing came within `timeout`; done() tells the two apart.
  std::optional<RequestOutput> next_for(std::chrono::milliseconds timeout);
  // Every answer is whole, and next() has nothing left to tell.
  bool done() const;
  // Blocks until every answer is whole, at most for `timeout`; true if they are.
  bool wait_for(std::chrono::milliseconds timeout);
  // What has come until now, whole, in the order of the prompts; next() does not shorten it.
  std::vector<RequestOutput> outputs() const;
  // Ends what still runs within one step of the engine; its answers finish with "abort". Never blocks for long; safe
  // from any thread.
  void cancel();

 private:
  friend class LLM;
  class Impl;
  explicit Run(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class MOTLEY_API LLM {
 public:
  // Opens the model: blocks while its weights are read and packed.
  explicit LLM(const LlmOptions& options);
  LLM(LLM&&) noexcept;
  LLM& operator=(LLM&&) noexcept;
  ~LLM();

  // The answers to each prompt, in the order of the prompts, computed together; blocks until all are whole.
  std::vector<RequestOutput> generate(const std::vector<Prompt>& prompts, const SamplingParams& params = {});
  // The answers to a conversation.
  RequestOutput chat(const std::vector<Message>& messages, const SamplingParams& params = {},
                     const ChatOptions& options = {});

  // The same without waiting: for streams, for cancelling, for other work meanwhile. Everything is checked before
  // anything runs.
  Run start(const std::vector<Prompt>& prompts, const SamplingParams& params = {});
  // With parameters for each prompt of its own. INVALID_ARGUMENT unless there are as many as prompts.
  Run start(const std::vector<Prompt>& prompts, const std::vector<SamplingParams>& params);

  // What the model's chat template makes of a conversation, as text and tokens. What messages say cannot become special
  // tokens. INVALID_ARGUMENT for a model without a template.
  Prompt chat_prompt(const std::vector<Message>& messages, const ChatOptions& options = {}) const;
  // The same of OpenAI's messages as JSON: an array of {"role", "content", ...}.
  Prompt chat_prompt_of_json(std::string_view messages_json, const ChatOptions& options = {}) const;

  // The parameters that the model's makers advise: what generation_config.json of a Hugging Face folder says of
  // temperature, top_p, top_k, min_p, repetition_penalty and max_new_tokens; the rest, and all for other models, as in
  // a SamplingParams{}. No call takes them by itself. INVALID_ARGUMENT where the file holds what cannot be.
  SamplingParams default_sampling_params() const;

  // Text to tokens as generate() does it: with the tokens that the model wants around a text (`add_special_tokens`),
  // and with text that spells a special token taken for that token.
  std::vector<TokenId> tokenize(std::string_view text, bool add_special_tokens = true) const;
  // UTF-8; bytes that are none become U+FFFD.
  std::string detokenize(const std::vector<TokenId>& token_ids, bool skip_special_tokens = true) const;

  ModelInfo info() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // shared with the runs
};

}  // namespace motley
