// The commands of `motley`, each a function of a plain struct. They return the exit code; what fails is a Status that
// main prints on one line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "client/arrivals.hpp"
#include "client/prompts.hpp"
#include "llm/instance.hpp"

namespace motley::apps {

inline constexpr const char* kVersion = "0.1.0";

struct ServeCommand {
  InstanceOptions instance;
  bool adapt = false;
  std::string host = "127.0.0.1";
  uint16_t port = 8000;
  std::vector<std::string> api_keys, served_model_names;
  uint32_t shutdown_timeout_s = 15;
  std::optional<uint64_t> seed;
  std::string generation_config = "auto";  // or vllm: the model's own advice on sampling is not taken
};
Status serve(const ServeCommand& command);

struct CompleteCommand {
  InstanceOptions instance;
  std::optional<std::string> prompt, prompt_file;
  std::optional<uint32_t> max_tokens;  // none = 128, or what the context leaves
  float temperature = 0.0f, top_p = 1.0f, min_p = 0.0f;
  int32_t top_k = 0, logprobs = -1;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false, json = false;
};
Status complete(const CompleteCommand& command, int64_t started_ns);

struct ChatCommand {
  InstanceOptions instance;
  std::string system_prompt;
  uint32_t max_tokens = 0;  // 0 = what the context leaves
  float temperature = 0.7f, top_p = 0.95f;
  std::optional<uint64_t> seed;
};
Status chat(const ChatCommand& command);

struct TokenizeCommand {
  std::string model;
  std::optional<std::string> prompt, prompt_file;
  bool lines = false;
};
Status tokenize(const TokenizeCommand& command);

struct InspectCommand {
  std::string model;
  bool json = false;
};
Status inspect(const InspectCommand& command);

struct DevicesCommand {
  bool json = false;
  bool measure = false, measure_again = false;  // the latter means the former
  std::string device_map;
};
Status devices(const DevicesCommand& command);

struct PlanCommand {
  InstanceOptions instance;
  std::string what_if;  // "+SIM:gpu-like,-CPU:0": devices to add and to leave away
  bool json = false;
  std::string svg_file;
};
Status plan(const PlanCommand& command);

// An instance in several workers, one of which is killed while it answers.
struct DemoCommand {
  InstanceOptions
      instance;  // model "": the quickstart's; devices "": three parts of the CPU, or what stands in for them
  std::string prompt = "Once upon a time, in a small village by the sea, there lived a clockmaker who";
  uint32_t max_tokens = 96;
};
Status demo(const DemoCommand& command);

struct BenchCommand {
  InstanceOptions instance;
  bool throughput = false;  // else latency
  uint32_t input_len = 32, output_len = 128, batch_size = 8, num_prompts = 1000, num_iters = 30, num_iters_warmup = 10;
  uint64_t seed = 0;
  std::string output_json;
};
Status bench(const BenchCommand& command);

// The plan beside the placements of simpler systems, all under the same load; its lengths and how much at once are the
// instance's, for which it plans.
struct BenchPlanCommand {
  InstanceOptions instance;
  std::optional<uint32_t> num_prompts;
  uint32_t repeat = 3;  // runs of each
  uint64_t seed = 0;
  std::string output_json, svg_file;
};
Status bench_plan(const BenchPlanCommand& command);

// Load on a running server, whoever made it; the options are those of `vllm bench serve`.
struct BenchServeCommand {
  std::string host = "127.0.0.1", base_url, endpoint, backend = "openai", label;
  uint16_t port = 8000;
  std::string model, served_model_name, tokenizer;
  std::vector<std::string> headers, metadata;  // KEY=VALUE
  std::string dataset_name = "random", dataset_path;
  client::RandomOptions random;
  std::optional<uint32_t> input_len, output_len;  // of any dataset
  std::optional<uint32_t> sharegpt_output_len, custom_output_len;
  bool disable_shuffle = false, no_oversample = false;
  uint32_t num_prompts = 1000, max_concurrency = 0, num_warmups = 0, ready_check_timeout_s = 0;
  uint64_t seed = 0;
  client::ArrivalOptions arrivals;
  bool ignore_eos = false;
  std::optional<double> temperature, top_p, min_p, frequency_penalty, presence_penalty, repetition_penalty;
  std::optional<int32_t> top_k, logprobs;
  std::string extra_body;  // a JSON object
  std::string percentile_metrics = "ttft,tpot,itl", metric_percentiles = "99";
  std::vector<std::string> goodput;  // METRIC:MS, several with commas between them
  bool save_result = false, save_detailed = false, append_result = false, disable_tqdm = false;
  std::string result_dir, result_filename;
};
// What fails of a request is counted and told; an error where none succeeds.
Status bench_serve(const BenchServeCommand& command);

struct ConformanceCommand {
  std::string plugin, device;  // device: the one that is judged, as motley devices calls it; "" = all
};
Status conformance(const ConformanceCommand& command);

// Hidden: what src/device starts for a device in a process of its own.
struct WorkerCommand {
  int fd = -1;
};
Status worker(const WorkerCommand& command);

// The prompt of --prompt or --prompt-file ("-" is standard input); INVALID_ARGUMENT unless exactly one is given and it
// is valid UTF-8.
Result<std::string> read_prompt(const std::optional<std::string>& prompt, const std::optional<std::string>& file);

// A seed for a request whose user gave none.
uint64_t random_seed();

}  // namespace motley::apps
