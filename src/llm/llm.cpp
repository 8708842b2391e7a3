// The border between motley/llm.hpp and the rooms: Status becomes Error here, and nowhere else.
#include "motley/llm.hpp"

#include <algorithm>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "base/limits.hpp"
#include "llm/instance.hpp"
#include "llm/run.hpp"
#include "llm/sampling.hpp"
#include "text/chat_template.hpp"
#include "text/text_stream.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kAnswersMax = 1u << 20;  // of one call: prompts times n
constexpr std::chrono::hours kTimeoutMax{24 * 365};

void throw_if(const Status& status) {
  if (!status.ok()) throw Error(status.code(), status.message());
}

template <typename T>
T value_or_throw(Result<T> result) {
  throw_if(result.error());
  return *std::move(result);
}

Result<InstanceOptions> instance_options(const LlmOptions& options) {
  if (options.tensor_parallel_size < 1) return invalid_argument("tensor_parallel_size must be at least 1");
  InstanceOptions out;
  out.model = options.model;
  out.devices = options.devices;
  out.device_map = options.device_map;
  if (options.tensor_parallel_size > 1) out.planning.tensor_parallel_size = options.tensor_parallel_size;
  out.quality = options.quality;
  out.kv_cache_dtype = options.kv_cache_dtype;
  out.kv_cache_memory_bytes = options.kv_cache_memory_bytes;
  out.block_size = options.block_size;
  out.threads = options.threads;
  out.deterministic = options.deterministic;
  out.chat_template_file = options.chat_template;
  out.engine.max_model_len = options.max_model_len;
  out.engine.max_num_seqs = options.max_num_seqs;
  out.engine.max_num_batched_tokens = options.max_num_batched_tokens;
  out.engine.enable_prefix_caching = options.enable_prefix_caching;
  out.engine.enable_chunked_prefill = options.enable_chunked_prefill;
  return out;
}

Status check_text_params(const SamplingParams& params) {
  if (params.n < 1 || params.n > limits::kChoicesMax) {
    return invalid_argument("n must be 1 to {}, not {}", limits::kChoicesMax, params.n);
  }
  if (params.stop.size() > limits::kStopStringsMax) {
    return invalid_argument("stop must hold at most {} strings, not {}", limits::kStopStringsMax, params.stop.size());
  }
  for (const std::string& stop : params.stop) {
    if (!stop.empty() && stop.size() <= limits::kStopStringBytesMax) continue;
    return invalid_argument("stop strings must be 1 to {} bytes long, not {}", limits::kStopStringBytesMax,
                            stop.size());
  }
  return ok_status();
}

Result<Json> parse_json(std::string_view text, std::string_view what) {
  bool too_deep = false;
  const Json::parser_callback_t bound = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > static_cast<int>(limits::kJsonDepthMax);
    return !too_deep;
  };
  Json value = Json::parse(text, bound, false);
  if (too_deep) return invalid_argument("{}: nested deeper than {}", what, limits::kJsonDepthMax);
  if (value.is_discarded()) return invalid_argument("{}: is not JSON", what);
  return value;
}

// An option that holds JSON; null where it is empty.
Result<Json> json_option(const std::string& text, std::string_view what) {
  return text.empty() ? Result<Json>(Json()) : parse_json(text, what);
}

Result<Json> template_variables(const std::string& text) {
  ASSIGN_OR_RETURN(Json variables, json_option(text, "chat_template_kwargs"));
  for (const std::string_view reserved : kReservedVariables) {
    if (variables.is_object() && variables.contains(reserved)) {
      return invalid_argument("chat_template_kwargs must not set {}; use the argument of its own, if it has one",
                              reserved);
    }
  }
  return variables;
}

Inbox::Deadline deadline_in(std::chrono::milliseconds timeout) {
  return std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(timeout, kTimeoutMax);
}

}  // namespace

Error::Error(motley_code code, const std::string& message) : std::runtime_error(message), code_(code) {}
Error::~Error() = default;

class MOTLEY_LOCAL LLM::Impl {
 public:
  Impl(std::shared_ptr<Instance> instance, std::optional<uint64_t> seed)
      : instance_(std::move(instance)),
        default_sampling_params_(advised_sampling(instance_->model())),
        seeds_(seed ? *seed : drawn_seed()) {}

  const std::shared_ptr<Instance>& instance() const { return instance_; }

  Result<std::vector<RunItem>> items(const std::vector<Prompt>& prompts, const std::vector<SamplingParams>& each) {
    if (each.size() == prompts.size()) {
      return items(prompts, [&](size_t i) -> const SamplingParams& { return each[i]; });
    }
    return invalid_argument("{} sampling parameters in a list for {} prompts; give one for each, or one without a list",
                            each.size(), prompts.size());
  }

  // `params_of`: size_t -> const SamplingParams&.
  template <typename ParamsOf>
  Result<std::vector<RunItem>> items(const std::vector<Prompt>& prompts, const ParamsOf& params_of) {
    std::vector<RunItem> items;
    size_t answers = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      auto made = item(prompts[i], params_of(i));
      if (!made.ok()) return prompts.size() == 1 ? made.error() : made.error().annotate(fmt::format("prompt {}", i));
      answers += made->n;
      if (answers > kAnswersMax)
        return invalid_argument("more than {} answers in one call; ask for fewer", kAnswersMax);
      items.push_back(*std::move(made));
    }
    return items;
  }

  Result<Prompt> chat_prompt(const Json& messages, const ChatOptions& options) const {
    const ChatTemplate* chat = instance_->chat_template();
    std::unique_ptr<ChatTemplate> given;
    if (!options.chat_template.empty()) {
      if (options.chat_template.find('{') == std::string::npos) {
        return invalid_argument(
            "chat_template must be a template's text, with {{{{ }}}} or {{% %}}, not a file's name");
      }
      auto made = make_chat_template(options.chat_template, instance_->tokenizer());
      if (!made.ok()) return made.error().annotate("chat_template");
      given = *std::move(made);
      chat = given.get();
    }
    if (chat == nullptr) return instance_->template_error();
    if (messages.is_array() && messages.empty()) return invalid_argument("messages must hold at least one message");
    ASSIGN_OR_RETURN(const Json tools, json_option(options.tools, "tools"));
    ASSIGN_OR_RETURN(const Json documents, json_option(options.documents, "documents"));
    ASSIGN_OR_RETURN(const Json variables, template_variables(options.template_variables));
    ASSIGN_OR_RETURN(const auto spans, chat->render({.messages = messages,
                                                     .tools = &tools,
                                                     .documents = &documents,
                                                     .variables = &variables,
                                                     .add_generation_prompt = options.add_generation_prompt,
                                                     .continue_final_message = options.continue_final_message}));
    Prompt prompt(ChatTemplate::encode(spans, instance_->tokenizer()));
    prompt.text = ChatTemplate::join(spans);
    return prompt;
  }

  const Result<SamplingParams>& default_sampling_params() const { return default_sampling_params_; }

 private:
  static uint64_t drawn_seed() {
    std::random_device device;
    return (uint64_t{device()} << 32) | device();
  }

  Result<RunItem> item(const Prompt& prompt, const SamplingParams& params) {
    RETURN_IF_ERROR(check_text_params(params));
    RunItem item;
    item.text = prompt.text;
    item.tokens = prompt.token_ids;
    if (item.tokens.empty() && prompt.text) item.tokens = instance_->tokenizer().encode(*prompt.text, true, true);
    if (item.tokens.empty()) return invalid_argument("the prompt is empty: it must come to at least one token");
    const size_t room = instance_->engine().max_model_len();
    if (item.tokens.size() >= room) {
      return invalid_argument("the prompt has {} tokens; max_model_len {} leaves room for {}", item.tokens.size(), room,
                              room - 1);
    }
    const uint32_t vocabulary = instance_->model().config().vocab_size;
    for (const TokenId id : item.tokens) {
      if (id >= 0 && static_cast<uint32_t>(id) < vocabulary) continue;
      return invalid_argument("token id {} is not in the vocabulary of {}", id, vocabulary);
    }
    item.n = params.n;
    item.sampling = token_sampling(params);
    const auto left = static_cast<uint32_t>(room - item.tokens.size());
    item.sampling.max_tokens = std::min(params.max_tokens.value_or(left), left);
    RETURN_IF_ERROR(validate(item.sampling, vocabulary));
    item.sampling.seed = params.seed ? *params.seed : next_seed();
    if (!params.stop.empty()) item.text_options.stop_set = std::make_shared<const StopSet>(params.stop);
    item.text_options.include_stop_in_output = params.include_stop_str_in_output;
    item.text_options.skip_special_tokens = params.skip_special_tokens;
    item.text_options.min_tokens = params.min_tokens;
    return item;
  }

  uint64_t next_seed() {
    std::lock_guard lock(mutex_);
    return seeds_();
  }

  const std::shared_ptr<Instance> instance_;              // shared with the runs
  const Result<SamplingParams> default_sampling_params_;  // an error only concerns those who ask
  std::mutex mutex_;                                      // guards seeds_
  std::mt19937_64 seeds_;
};

LLM::LLM(const LlmOptions& options) {
  auto instance = value_or_throw(Instance::open(value_or_throw(instance_options(options))));
  impl_ = std::make_shared<Impl>(std::move(instance), options.seed);
}
LLM::LLM(LLM&&) noexcept = default;
LLM& LLM::operator=(LLM&&) noexcept = default;
LLM::~LLM() = default;

std::vector<RequestOutput> LLM::generate(const std::vector<Prompt>& prompts, const SamplingParams& params) {
  Run run = start(prompts, params);
  value_or_throw(run.impl_->wait(std::nullopt));
  return run.outputs();
}

RequestOutput LLM::chat(const std::vector<Message>& messages, const SamplingParams& params,
                        const ChatOptions& options) {
  return std::move(generate({chat_prompt(messages, options)}, params).front());
}

Run LLM::start(const std::vector<Prompt>& prompts, const SamplingParams& params) {
  auto items = impl_->items(prompts, [all = &params](size_t) -> const SamplingParams& { return *all; });
  return Run(value_or_throw(Run::Impl::start(impl_->instance(), value_or_throw(std::move(items)))));
}

Run LLM::start(const std::vector<Prompt>& prompts, const std::vector<SamplingParams>& params) {
  return Run(value_or_throw(Run::Impl::start(impl_->instance(), value_or_throw(impl_->items(prompts, params)))));
}

Prompt LLM::chat_prompt(const std::vector<Message>& messages, const ChatOptions& options) const {
  Json list = Json::array();
  for (const Message& message : messages) list.push_back({{"role", message.role}, {"content", message.content}});
  return value_or_throw(impl_->chat_prompt(list, options));
}

Prompt LLM::chat_prompt_of_json(std::string_view messages_json, const ChatOptions& options) const {
  return value_or_throw(impl_->chat_prompt(value_or_throw(parse_json(messages_json, "messages")), options));
}

SamplingParams LLM::default_sampling_params() const { return value_or_throw(impl_->default_sampling_params()); }

std::vector<TokenId> LLM::tokenize(std::string_view text, bool add_special_tokens) const {
  return impl_->instance()->tokenizer().encode(text, add_special_tokens, true);
}

std::string LLM::detokenize(const std::vector<TokenId>& token_ids, bool skip_special_tokens) const {
  const Tokenizer& tokenizer = impl_->instance()->tokenizer();
  TextStream::Options options;
  options.skip_special_tokens = skip_special_tokens;
  options.starts_text = true;
  TextStream stream(tokenizer, options);
  std::string text;
  for (const TokenId id : token_ids) {
    if (id < 0 || static_cast<uint32_t>(id) >= tokenizer.size()) {
      throw_if(invalid_argument("token id {} is not in the vocabulary of {}", id, tokenizer.size()));
    }
    text += stream.push(id);
  }
  return text + stream.finish();
}

ModelInfo LLM::info() const {
  Instance& instance = *impl_->instance();
  const ModelConfig& config = instance.model().config();
  ModelInfo info;
  info.name = config.name;
  info.architecture = config.architecture;
  info.device = instance.device_text();
  info.layers = config.layers;
  info.hidden = config.hidden;
  info.heads = config.heads;
  info.kv_heads = config.kv_heads;
  info.head_dim = config.head_dim;
  info.ffn = config.ffn;
  info.vocab_size = config.vocab_size;
  info.context_length = config.context_length;
  info.max_model_len = instance.engine().max_model_len();
  info.has_chat_template = instance.chat_template() != nullptr;
  info.bos_token_id = instance.tokenizer().bos();
  info.eos_token_id = instance.tokenizer().eos();
  return info;
}

Run::Run(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Run::Run(Run&&) noexcept = default;
Run& Run::operator=(Run&&) noexcept = default;
Run::~Run() = default;

std::optional<RequestOutput> Run::next() { return value_or_throw(impl_->next(std::nullopt)); }
std::optional<RequestOutput> Run::next_for(std::chrono::milliseconds timeout) {
  return value_or_throw(impl_->next(deadline_in(timeout)));
}
bool Run::done() const { return impl_->done(); }
bool Run::wait_for(std::chrono::milliseconds timeout) { return value_or_throw(impl_->wait(deadline_in(timeout))); }
std::vector<RequestOutput> Run::outputs() const { return impl_->outputs(); }
void Run::cancel() { impl_->cancel(); }

}  // namespace motley
