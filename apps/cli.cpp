#include "cli.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>

#include "base/trace.hpp"
#include "base/utf8.hpp"
#include "commands.hpp"
#include "config_file.hpp"

namespace motley::apps {
namespace {

// Everything the options write into.
struct Parsed {
  ServeCommand serve;
  CompleteCommand complete;
  ChatCommand chat;
  TokenizeCommand tokenize;
  InspectCommand inspect;
  DevicesCommand devices;
  PlanCommand plan;
  DemoCommand demo;
  BenchCommand bench_latency, bench_throughput;
  BenchPlanCommand bench_plan;
  BenchServeCommand bench_serve;
  ConformanceCommand conformance;
  WorkerCommand worker;
  std::string policy = "fcfs", config_file, trace_file;
  std::vector<std::string> help_words;
};

// ---- what a value may be; the command line and the config file refuse it in the same words ----

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }

// What is wrong with a text that must say something; "" for nothing.
std::string text_fault(const std::string& value) {
  if (value.empty()) return "must not be empty";
  return utf8_valid(value) ? "" : "must be valid UTF-8";
}

// A key that no client could send would shut everybody out. The key itself is not repeated.
std::string key_fault(const std::string& value) {
  const bool word = std::none_of(value.begin(), value.end(), [](char c) { return is_control(c) || c == ' '; });
  return word && !value.empty() ? "" : "must be one word, without spaces or control characters";
}

std::string truth_fault(const std::string& value) {
  return value == "true" || value == "false" ? "" : fmt::format("{} is not true or false", value);
}

template <typename T>
struct ValueOf {
  using Type = T;
};
template <typename T>
struct ValueOf<std::optional<T>> {
  using Type = T;
};
template <typename T>
using Number = typename ValueOf<T>::Type;

// An option whose value is a finite decimal number from `low` to `high`.
template <typename T>
CLI::Option* add_number(CLI::App* app, const char* name, T& field, const char* text,
                        Number<T> low = std::numeric_limits<Number<T>>::lowest(),
                        Number<T> high = std::numeric_limits<Number<T>>::max()) {
  const auto read = [low, high](std::string& value) -> std::string {
    constexpr bool kWhole = std::is_integral_v<Number<T>>;
    Number<T> number{};
    const char* end = value.data() + value.size();
    const auto [stop, failure] = std::from_chars(value.data(), end, number);
    if (failure != std::errc() || stop != end || !(number >= low && number <= high)) {
      return kWhole ? fmt::format("{} is not a whole number from {} to {}", value, low, high)
                    : fmt::format("{} is not a finite number", value);
    }
    if (kWhole) value = std::to_string(number);  // CLI11 would take 010 for an octal number
    return "";
  };
  return app->add_option(name, field, text)->transform(CLI::Validator(read, ""));
}

CLI::Option* add_switch(CLI::App* app, const char* name, bool& field, const char* text) {
  return app->add_flag(name, field, text)->check(truth_fault);
}

// ---- the commands ----

// "NAME=BYTES" into the map; the name may hold further signs of equality.
std::string take_device_memory(const std::string& value, std::map<std::string, uint64_t>* caps) {
  const size_t at = value.rfind('=');
  uint64_t bytes = 0;
  const char* end = value.data() + value.size();
  if (at == std::string::npos || at == 0) return fmt::format("{} is not DEVICE=BYTES", value);
  const auto [stop, failure] = std::from_chars(value.data() + at + 1, end, bytes);
  if (failure != std::errc() || stop != end || bytes == 0) return fmt::format("{} is not DEVICE=BYTES", value);
  if (!caps->emplace(value.substr(0, at), bytes).second) return fmt::format("{} is given twice", value.substr(0, at));
  return "";
}

void add_placement_options(CLI::App* app, InstanceOptions& options) {
  PlanSettings& planning = options.planning;
  add_number(app, "--tensor-parallel-size", planning.tensor_parallel_size,
             "devices that work together on each layer; default: as the plan has it");
  add_number(app, "--pipeline-parallel-size", planning.pipeline_parallel_size,
             "stages of layers, one after another; default: as the plan has it");
  options.isolation = Isolation::kAccelerators;
  const auto isolate = [&options](std::int64_t asked) {
    options.isolation = asked > 0 ? Isolation::kAll : Isolation::kNone;
  };
  app->add_flag_function("--isolate", isolate,
                         "each device in a worker process of its own: one that dies is planned around; default: GPUs "
                         "and NPUs alone; --isolate=false: none")
      ->check(truth_fault);
  app->add_option("--plan", planning.plan_file, "a plan to take as it is: of motley plan --json, or by hand")
      ->check(text_fault);
  add_switch(app, "--use-all-devices", planning.use_all_devices,
             "every listed device gets a part, even where the plan would leave it out");
  add_switch(app, "--measure-again", planning.measure_again,
             "measure the devices anew, and keep that instead of what was measured before");
  add_number(
      app, "--measure-limit", planning.measure_limit_s,
      "seconds that measuring one device may take before the plan goes without it; 0 = any; what is forced waits")
      ->capture_default_str();
  add_number(
      app, "--compile-limit", planning.compile_limit_s,
      "seconds, by its own estimate, that an NPU may compile: it gets programs for fewer row counts where that is "
      "not enough, those that the expected load needs most")
      ->capture_default_str();
  app->add_option_function<std::vector<std::string>>(
         "--device-memory",
         [&options](const std::vector<std::string>& values) {
           for (const std::string& value : values) {
             const std::string fault = take_device_memory(value, &options.device_memory);
             if (!fault.empty()) throw CLI::ValidationError("--device-memory", fault);
           }
         },
         "DEVICE=BYTES: use no more of its memory; may be repeated")
      ->allow_extra_args(false);
}

void add_device_map(CLI::App* app, std::string& field) {
  app->add_option("--device-map", field,
                  "names of devices that are not there for simulated ones, e.g. GPU:0=SIM:gpu-like,NPU:1=SIM:FILE.toml")
      ->check(text_fault);
}

void add_model_options(CLI::App* app, InstanceOptions& options, Parsed& parsed) {
  app->add_option("model", options.model, "a GGUF file or a Hugging Face folder")->required();
  app->add_option("--devices", options.devices,
                  "devices that may be used: CPU:0, CPU:0/cores=0-3, GPU:0-1, SIM:gpu-like, auto; see motley devices")
      ->capture_default_str();
  add_device_map(app, options.device_map);
  add_placement_options(app, options);
  add_number(app, "--max-model-len", options.engine.max_model_len,
             "longest sequence in tokens; default, 0 or -1: the model's context, or what the KV pool holds")
      ->transform([](const std::string& value) { return value == "-1" ? "0" : value; });
  add_number(app, "--max-num-seqs", options.engine.max_num_seqs, "sequences that run at once")->capture_default_str();
  add_number(app, "--max-num-batched-tokens", options.engine.max_num_batched_tokens,
             "tokens of one step; default: as many as keep a step within 200 ms, of large models within 1 s while "
             "nothing decodes");
  add_number(app, "--block-size", options.block_size, "positions of a KV block")->capture_default_str();
  app->add_option("--kv-cache-dtype", options.kv_cache_dtype, "auto, float32, float16, bfloat16, fp8 (E4M3) or int8")
      ->capture_default_str();
  add_number(
      app, "--kv-cache-memory-bytes", options.kv_cache_memory_bytes,
      "size of the KV pool; default: 2 GB or a quarter of the free memory, of a GPU's 7/8 of what the model leaves");
  app->add_option("--quality", options.quality,
                  "formats that devices may hold float weights in: exact, balanced (8 bits) or fast (4 bits)")
      ->check(CLI::IsMember({"exact", "balanced", "fast"}))
      ->capture_default_str();
  add_switch(app, "--enable-prefix-caching,!--no-enable-prefix-caching", options.engine.enable_prefix_caching,
             "share the KV of equal prompt beginnings (on by default)");
  add_switch(app, "--enable-chunked-prefill,!--no-enable-chunked-prefill", options.engine.enable_chunked_prefill,
             "compute long prompts in parts (on by default)");
  app->add_option("--scheduling-policy", parsed.policy, "fcfs or priority")
      ->check(CLI::IsMember({"fcfs", "priority"}))
      ->capture_default_str();
  app->add_option("--chat-template", options.chat_template_file, "a Jinja file instead of the model's own template")
      ->check(text_fault);
  add_number(app, "--threads", options.threads, "compute threads; default: one for each core of the device");
  add_switch(app, "--deterministic", options.deterministic,
             "bit-identical text under any batching, chunking, cache hit and preemption");
  app->add_option("--trace", parsed.trace_file, "a file for what ran when, for ui.perfetto.dev")->check(text_fault);
  app->add_option("--config", parsed.config_file, "a TOML file of these options; the command line wins")
      ->check(text_fault);
}

// "ttft=200,tpot=50": milliseconds.
std::string take_slo(const std::string& value, PlanSettings* settings) {
  size_t begin = 0;
  while (begin <= value.size()) {
    const size_t end = std::min(value.find(',', begin), value.size());
    const std::string item = value.substr(begin, end - begin);
    const size_t at = item.find('=');
    const std::string name = item.substr(0, at);
    double* field = name == "ttft" ? &settings->ttft_ms_max : name == "tpot" ? &settings->tpot_ms_max : nullptr;
    double ms = 0;
    const char* last = item.data() + item.size();
    const char* first = at == std::string::npos ? last : item.data() + at + 1;
    const auto [stop, failure] = std::from_chars(first, last, ms);
    if (field == nullptr || failure != std::errc() || stop != last || !(ms > 0 && ms < 1e9))
      return fmt::format("{} is not ttft=MS,tpot=MS", value);
    *field = ms;
    begin = end + 1;
  }
  return "";
}

void add_concurrency(CLI::App* app, PlanSettings& planning) {
  add_number(app, "--concurrency", planning.concurrency, "requests at once, for the plan", 1u, 4096u)
      ->capture_default_str();
}

// What the plan is to be good at.
void add_load_options(CLI::App* app, PlanSettings& planning) {
  static const std::map<std::string, Objective> kObjectives = {{"throughput", Objective::kThroughput},
                                                               {"latency", Objective::kLatency}};
  app->add_option_function<std::string>(
         "--objective", [&planning](const std::string& name) { planning.objective = kObjectives.at(name); },
         "what the plan is for: throughput (default) or latency")
      ->check(CLI::IsMember({"throughput", "latency"}));
  app->add_option_function<std::string>(
      "--slo",
      [&planning](const std::string& value) {
        const std::string fault = take_slo(value, &planning);
        if (!fault.empty()) throw CLI::ValidationError("--slo", fault);
      },
      "limits in ms that plans shall keep, e.g. ttft=500,tpot=50");
  add_concurrency(app, planning);
  add_number(app, "--prompt-len", planning.prompt_len, "prompt tokens of a request, for the plan", 1u)
      ->capture_default_str();
  add_number(app, "--output-len", planning.output_len, "tokens generated per request, for the plan", 1u)
      ->capture_default_str();
}

CLI::App* add_serve(CLI::App& app, Parsed& parsed) {
  ServeCommand& serve = parsed.serve;
  CLI::App* command = app.add_subcommand("serve", "serve a model over the OpenAI API");
  command->footer(
      "Devices may be added while it serves: POST /v1/devices {\"add\": \"CPU:0/cores=1\"}, names as in --devices; "
      "GET /v1/devices lists them.");
  add_model_options(command, serve.instance, parsed);
  command->add_option("--host", serve.host, "address to listen on")->check(text_fault)->capture_default_str();
  add_number(command, "--port", serve.port, "port to listen on; 0 = any free one")->capture_default_str();
  command->add_option("--api-key", serve.api_keys, "key that clients must send; may be repeated")
      ->check(key_fault)
      ->allow_extra_args(false);
  command->add_option("--served-model-name", serve.served_model_names, "name of the model in the API; may be repeated")
      ->check(text_fault)
      ->allow_extra_args(false);
  command
      ->add_option("--generation-config", serve.generation_config,
                   "where sampling defaults come from: auto (the model's generation_config.json) or vllm (plain ones)")
      ->check(CLI::IsMember({"auto", "vllm"}))
      ->capture_default_str();
  add_load_options(command, serve.instance.planning);
  add_switch(command, "--adapt", serve.adapt,
             "plan anew when devices become slower or faster, and move while serving; a plan of a file stays");
  add_number(command, "--seed", serve.seed, "seed of requests that give none; default: drawn for each");
  add_number(command, "--shutdown-timeout", serve.shutdown_timeout_s, "seconds that running requests get at the end")
      ->capture_default_str();
  return command;
}

CLI::App* add_complete(CLI::App& app, Parsed& parsed) {
  CompleteCommand& complete = parsed.complete;
  CLI::App* command = app.add_subcommand("complete", "continue a text");
  add_model_options(command, complete.instance, parsed);
  command->add_option("--prompt", complete.prompt, "the text");
  command->add_option("--prompt-file", complete.prompt_file, "a file that holds it; - for standard input");
  add_number(command, "--max-tokens", complete.max_tokens,
             "most tokens to generate; default: 128, or what the context leaves");
  add_number(command, "--temperature", complete.temperature, "0 = greedy")->capture_default_str();
  add_number(command, "--seed", complete.seed, "seed of the sampling noise; default: drawn");
  add_number(command, "--top-p", complete.top_p, "nucleus; 1 = off")->capture_default_str();
  add_number(command, "--top-k", complete.top_k, "0 = off")->capture_default_str();
  add_number(command, "--min-p", complete.min_p, "0 = off")->capture_default_str();
  command->add_option("--stop", complete.stop, "text that ends the answer; may be repeated")
      ->check(text_fault)
      ->allow_extra_args(false);
  add_number(command, "--logprobs", complete.logprobs, "alternatives to report for each token", 0, MOTLEY_TOP_MAX);
  add_switch(command, "--ignore-eos", complete.ignore_eos, "go on after end tokens");
  add_switch(command, "--json", complete.json, "one JSON object on one line");
  return command;
}

CLI::App* add_chat(CLI::App& app, Parsed& parsed) {
  ChatCommand& chat = parsed.chat;
  CLI::App* command = app.add_subcommand("chat", "talk with a model in the terminal");
  add_model_options(command, chat.instance, parsed);
  command->add_option("--system-prompt", chat.system_prompt, "first message, of the role system")->check(text_fault);
  add_number(command, "--max-tokens", chat.max_tokens, "most tokens of an answer; default: what the context leaves");
  add_number(command, "--temperature", chat.temperature, "0 = greedy")->capture_default_str();
  add_number(command, "--top-p", chat.top_p, "nucleus; 1 = off")->capture_default_str();
  add_number(command, "--seed", chat.seed, "seed of the sampling noise; default: drawn");
  return command;
}

CLI::App* add_tokenize(CLI::App& app, Parsed& parsed) {
  TokenizeCommand& tokenize = parsed.tokenize;
  CLI::App* command = app.add_subcommand("tokenize", "print the token ids of a text");
  command->add_option("model", tokenize.model, "a GGUF file or a Hugging Face folder")->required();
  command->add_option("--prompt", tokenize.prompt, "the text");
  command->add_option("--prompt-file", tokenize.prompt_file, "a file that holds it; - for standard input");
  add_switch(command, "--lines", tokenize.lines, "each line by itself: a line of ids per input line");
  return command;
}

CLI::App* add_inspect(CLI::App& app, Parsed& parsed) {
  CLI::App* command = app.add_subcommand("inspect", "say what a model file holds and whether it would run");
  command->add_option("model", parsed.inspect.model, "a GGUF file or a Hugging Face folder")->required();
  command->add_flag("--json", parsed.inspect.json, "as JSON");
  return command;
}

CLI::App* add_plan(CLI::App& app, Parsed& parsed) {
  PlanCommand& plan = parsed.plan;
  PlanSettings& planning = plan.instance.planning;
  CLI::App* command = app.add_subcommand("plan", "say which device would run what, how fast, and why");
  add_model_options(command, plan.instance, parsed);
  add_load_options(command, planning);
  command->add_option("--what-if", plan.what_if, "devices to add and to leave away, e.g. +SIM:gpu-like,-CPU:0");
  add_switch(command, "--json", plan.json, "as JSON, which --plan reads");
  command->add_option("--svg", plan.svg_file, "a file for the picture as SVG")->check(text_fault);
  return command;
}

CLI::App* add_demo(CLI::App& app, Parsed& parsed) {
  DemoCommand& demo = parsed.demo;
  CLI::App* command = app.add_subcommand("demo", "kill a worker in mid-sentence and see the text go on");
  command->add_option("model", demo.instance.model, "a GGUF file or a Hugging Face folder; default: the quickstart's");
  demo.instance.devices = "";
  command
      ->add_option("--devices", demo.instance.devices,
                   "each runs in a worker, the last is killed; default: three parts of the CPU, simulated devices "
                   "where it has fewer cores")
      ->check(text_fault);
  add_device_map(command, demo.instance.device_map);
  command->add_option("--prompt", demo.prompt, "the text to continue")->check(text_fault)->capture_default_str();
  add_number(command, "--max-tokens", demo.max_tokens, "tokens to generate", 32u)->capture_default_str();
  return command;
}

// A rate, of which there is no limit but infinity.
CLI::Option* add_rate(CLI::App* app, const char* name, double& field, const char* text) {
  const auto read = [](const std::string& value) -> std::string {
    double number = 0;
    const char* end = value.data() + value.size();
    const auto [stop, failure] = std::from_chars(value.data(), end, number);
    return failure == std::errc() && stop == end && number > 0 ? "" : fmt::format("{} is not above 0, or inf", value);
  };
  return app->add_option(name, field, text)->check(read);
}

void add_server_options(CLI::App* app, BenchServeCommand& bench) {
  app->add_option("--host", bench.host, "where the server is")->check(text_fault)->capture_default_str();
  add_number(app, "--port", bench.port, "its port", uint16_t{1})->capture_default_str();
  app->add_option("--base-url", bench.base_url, "http://HOST:PORT/PREFIX instead of both")->check(text_fault);
  app->add_option("--backend", bench.backend, "what the server speaks: openai, vllm (the same) or openai-chat")
      ->check(CLI::IsMember({"openai", "vllm", "openai-chat"}))
      ->capture_default_str();
  app->add_option("--endpoint", bench.endpoint,
                  "path of the requests; default: /v1/completions, of openai-chat /v1/chat/completions. One that ends "
                  "with chat/completions is a chat's")
      ->check(text_fault);
  app->add_option("--header", bench.headers,
                  "KEY=VALUE: a header of every request; OPENAI_API_KEY, where it is set, is sent as the bearer's");
  app->add_option("--model", bench.model,
                  "name of the model, or a local GGUF file or folder for its tokenizer; default: the server's first")
      ->check(text_fault);
  app->add_option("--served-model-name", bench.served_model_name, "its name in the API; default: as --model")
      ->check(text_fault);
  app->add_option("--tokenizer", bench.tokenizer,
                  "a local GGUF file or folder; default: of --model, else the server's /tokenize is asked")
      ->check(text_fault);
  add_number(app, "--ready-check-timeout-sec", bench.ready_check_timeout_s, "seconds to wait for the server")
      ->capture_default_str();
}

void add_dataset_options(CLI::App* app, BenchServeCommand& bench) {
  app->add_option("--dataset-name", bench.dataset_name,
                  "random, sharegpt (ShareGPT's JSON) or custom (lines of {\"prompt\", \"output_tokens\"})")
      ->check(CLI::IsMember({"random", "sharegpt", "custom"}))
      ->capture_default_str();
  app->add_option("--dataset-path", bench.dataset_path, "the file of sharegpt or custom")->check(text_fault);
  add_number(app, "--num-prompts", bench.num_prompts, "requests", 1u)->capture_default_str();
  add_number(app, "--seed", bench.seed, "seed of the prompts and the arrivals")->capture_default_str();
  add_number(app, "--input-len", bench.input_len, "= --random-input-len", 1u);
  add_number(app, "--output-len", bench.output_len, "tokens of every answer, of any dataset", 1u);
  add_number(app, "--random-input-len", bench.random.input_len, "prompt tokens", 1u)->capture_default_str();
  add_number(app, "--random-output-len", bench.random.output_len, "tokens of an answer", 1u)->capture_default_str();
  add_number(app, "--random-range-ratio", bench.random.range_ratio,
             "both lengths vary by this part of them, 0 to below 1")
      ->capture_default_str();
  add_number(app, "--random-prefix-len", bench.random.prefix_len, "further prompt tokens, the same for all")
      ->capture_default_str();
  add_number(app, "--sharegpt-output-len", bench.sharegpt_output_len,
             "tokens of an answer; default: as many as the file's", 1u);
  add_number(app, "--custom-output-len", bench.custom_output_len,
             "tokens of an answer; default: the line's output_tokens, else 256", 1u);
  add_switch(app, "--disable-shuffle", bench.disable_shuffle, "prompts in the order of the file");
  add_switch(app, "--no-oversample", bench.no_oversample, "a file with too few prompts gives fewer requests");
}

void add_traffic_options(CLI::App* app, BenchServeCommand& bench) {
  static const std::map<std::string, client::RampUp> kRampUps = {{"linear", client::RampUp::kLinear},
                                                                 {"exponential", client::RampUp::kExponential}};
  add_rate(app, "--request-rate", bench.arrivals.request_rate, "requests/s that arrive; inf: all at once")
      ->default_str("inf");
  add_rate(app, "--burstiness", bench.arrivals.burstiness,
           "1: a Poisson process; below: in bursts, above: evenly (gamma-distributed gaps)")
      ->capture_default_str();
  app->add_option_function<std::string>(
         "--ramp-up-strategy", [&bench](const std::string& name) { bench.arrivals.ramp_up = kRampUps.at(name); },
         "the rate grows from the first request to the last: linear or exponential")
      ->check(CLI::IsMember({"linear", "exponential"}));
  add_number(app, "--ramp-up-start-rps", bench.arrivals.ramp_up_start_rps, "requests/s of the first");
  add_number(app, "--ramp-up-end-rps", bench.arrivals.ramp_up_end_rps, "requests/s of the last");
  add_number(app, "--max-concurrency", bench.max_concurrency,
             "requests under way at once; others wait in the client; default: no bound", 1u);
  add_number(app, "--num-warmups", bench.num_warmups, "requests sent before, not counted")->capture_default_str();
}

void add_request_options(CLI::App* app, BenchServeCommand& bench) {
  add_switch(app, "--ignore-eos", bench.ignore_eos, "answers go on after end tokens; of random they always do");
  add_number(app, "--temperature", bench.temperature, "as the API's field; default: the server's");
  add_number(app, "--top-p", bench.top_p, "as the API's field");
  add_number(app, "--top-k", bench.top_k, "as the API's field");
  add_number(app, "--min-p", bench.min_p, "as the API's field");
  add_number(app, "--frequency-penalty", bench.frequency_penalty, "as the API's field");
  add_number(app, "--presence-penalty", bench.presence_penalty, "as the API's field");
  add_number(app, "--repetition-penalty", bench.repetition_penalty, "as the API's field");
  add_number(app, "--logprobs", bench.logprobs, "as the API's field", 0);
  app->add_option("--extra-body", bench.extra_body, "a JSON object of further fields of every request")
      ->check(text_fault);
}

void add_result_options(CLI::App* app, BenchServeCommand& bench) {
  app->add_option("--percentile-metrics", bench.percentile_metrics,
                  "what is reported with its distribution, of ttft, tpot, itl, e2el, client_queue_time")
      ->capture_default_str();
  app->add_option("--metric-percentiles", bench.metric_percentiles, "which percentiles, e.g. 50,90,99")
      ->capture_default_str();
  app->add_option("--goodput", bench.goodput,
                  "ms that a good request keeps, of ttft, tpot, e2el: ttft:500,tpot:50 or with spaces");
  add_switch(app, "--save-result", bench.save_result, "write a JSON file of the results");
  add_switch(app, "--save-detailed", bench.save_detailed, "with the times and texts of every request");
  add_switch(app, "--append-result", bench.append_result, "append them to the file");
  app->add_option("--result-dir", bench.result_dir, "folder of that file; default: this one")->check(text_fault);
  app->add_option("--result-filename", bench.result_filename,
                  "its name; default: LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json")
      ->check(text_fault);
  app->add_option("--label", bench.label, "how the file's name begins; default: the backend")->check(text_fault);
  app->add_option("--metadata", bench.metadata, "KEY=VALUE: further members of the JSON");
  add_switch(app, "--disable-tqdm", bench.disable_tqdm, "no line of progress, on a terminal neither");
}

CLI::App* add_bench_serve(CLI::App* group, Parsed& parsed) {
  CLI::App* command = group->add_subcommand("serve", "load a running server as its clients would");
  BenchServeCommand& bench = parsed.bench_serve;
  add_server_options(command, bench);
  add_dataset_options(command, bench);
  add_traffic_options(command, bench);
  add_request_options(command, bench);
  add_result_options(command, bench);
  command->add_option("--config", parsed.config_file, "a TOML file of these options; the command line wins")
      ->check(text_fault);
  command->footer("Definitions of what is printed: docs/benchmarks.md.");
  return command;
}

CLI::App* add_bench_plan(CLI::App* group, Parsed& parsed) {
  CLI::App* command = group->add_subcommand("plan", "the plan beside the placements of simpler systems, measured");
  BenchPlanCommand& bench = parsed.bench_plan;
  PlanSettings& planning = bench.instance.planning;
  add_model_options(command, bench.instance, parsed);
  add_concurrency(command, planning);
  add_number(command, "--input-len", planning.prompt_len, "prompt tokens of a request", 1u)->capture_default_str();
  add_number(command, "--output-len", planning.output_len, "tokens generated per request", 2u)->capture_default_str();
  add_number(command, "--num-prompts", bench.num_prompts, "requests of a run; default: 4 for each of those at once",
             1u);
  add_number(command, "--seed", bench.seed, "seed of the random prompts")->capture_default_str();
  add_number(command, "--repeat", bench.repeat, "runs of each placement", 1u, 1000u)->capture_default_str();
  command->add_option("--output-json", bench.output_json, "file for the results as JSON")->check(text_fault);
  command->add_option("--svg", bench.svg_file, "file for a picture of them")->check(text_fault);
  command->footer("What is compared, and what the columns say: docs/planning.md.");
  return command;
}

CLI::App* add_bench(CLI::App& app, Parsed& parsed, std::map<CLI::App*, std::function<Status()>>& actions) {
  CLI::App* command = app.add_subcommand("bench", "measure a model, or a running server");
  command->require_subcommand(1);
  actions[add_bench_serve(command, parsed)] = [&parsed] { return apps::bench_serve(parsed.bench_serve); };
  actions[add_bench_plan(command, parsed)] = [&parsed] { return apps::bench_plan(parsed.bench_plan); };
  for (const bool throughput : {false, true}) {
    BenchCommand& bench = throughput ? parsed.bench_throughput : parsed.bench_latency;
    bench.throughput = throughput;
    CLI::App* kind = throughput ? command->add_subcommand("throughput", "requests and tokens per second of a load")
                                : command->add_subcommand("latency", "time of one fixed batch");
    add_model_options(kind, bench.instance, parsed);
    if (throughput) bench.input_len = 1024;
    add_number(kind, "--input-len", bench.input_len, "prompt tokens of a request")->capture_default_str();
    add_number(kind, "--output-len", bench.output_len, "tokens generated per request")->capture_default_str();
    add_number(kind, "--seed", bench.seed, "seed of the random prompts")->capture_default_str();
    kind->add_option("--output-json", bench.output_json, "file for the results as JSON");
    if (throughput) {
      add_number(kind, "--num-prompts", bench.num_prompts, "requests")->capture_default_str();
    } else {
      add_number(kind, "--batch-size", bench.batch_size, "requests of the batch")->capture_default_str();
      add_number(kind, "--num-iters", bench.num_iters, "counted runs")->capture_default_str();
      add_number(kind, "--num-iters-warmup", bench.num_iters_warmup, "runs not counted")->capture_default_str();
    }
    actions[kind] = [&bench] { return apps::bench(bench); };
  }
  return command;
}

std::string one_line(std::string text) {
  std::replace_if(text.begin(), text.end(), is_control, ' ');
  return text;
}

// "motley bench latency".
std::string full_name(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return parent == nullptr ? app.get_name() : full_name(*parent) + " " + app.get_name();
}

// Gives one entry of a config file to its option. CLI::ParseError for a value that cannot be.
void take_entry(CLI::Option& option, const ConfigEntry& entry) {
  std::vector<std::string> values = entry.values;
  if (option.get_items_expected_max() == 0) {  // a switch; its name may be that of the opposite
    for (std::string& value : values) value = option.get_flag_value(entry.name, value);
  }
  option.add_result(std::move(values));
  option.run_callback();
}

// Values of the file for options that the command line did not give.
Status apply_config(CLI::App& command, const std::string& path) {
  ASSIGN_OR_RETURN(const auto entries, read_config_file(path));
  for (const ConfigEntry& entry : entries) {
    if (entry.name == "config") return invalid_argument("{}:{}: config cannot name another file", path, entry.line);
    CLI::Option* option = command.get_option_no_throw("--" + entry.name);
    if (option == nullptr || option == command.get_help_ptr()) {
      return invalid_argument("{}:{}: there is no option {}; see {} --help", path, entry.line, entry.name,
                              full_name(command));
    }
    if (option->count() > 0) continue;
    try {
      take_entry(*option, entry);
    } catch (const CLI::ParseError& failure) {
      std::string why = one_line(failure.what());
      if (why.starts_with("--")) why.erase(0, 2);  // keys stand without dashes in the file
      return invalid_argument("{}:{}: {}; see {} --help", path, entry.line, why, full_name(command));
    }
  }
  return ok_status();
}

// The command that the words lead to ("bench", "latency"), the program itself for none, or null.
CLI::App* find_command(CLI::App& app, const std::vector<std::string>& words) {
  CLI::App* at = &app;
  for (const std::string& word : words) {
    const auto commands = at->get_subcommands([&](CLI::App* command) { return command->get_name() == word; });
    if (commands.empty()) return nullptr;
    at = commands.front();
  }
  return at;
}

CLI::App* deepest(CLI::App& app) {
  CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  return at;
}

// A command line that names no command, or none that there is.
Status no_command(const CLI::App& group) {
  std::string names;
  for (const CLI::App* command : group.get_subcommands(nullptr)) {
    if (command->get_group().empty()) continue;  // not for users
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  const std::vector<std::string> words = group.remaining();
  const std::string what = words.empty() ? "a command is missing"
                           : words.front().starts_with('-')
                               ? fmt::format("there is no option {}", one_line(words.front()))
                               : fmt::format("there is no command {}", one_line(words.front()));
  return invalid_argument("{}; {} has the commands {}", what, full_name(group), names);
}

}  // namespace

Status run_command_line(int argc, char** argv, int64_t started_ns) {
  CLI::App app("Motley serves large language models on whatever compute is there", "motley");
  app.set_version_flag("--version", std::string("motley ") + kVersion);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  Parsed parsed;
  std::map<CLI::App*, std::function<Status()>> actions;
  actions[add_serve(app, parsed)] = [&] { return serve(parsed.serve); };
  actions[add_complete(app, parsed)] = [&] { return complete(parsed.complete, started_ns); };
  actions[add_chat(app, parsed)] = [&] { return chat(parsed.chat); };
  actions[add_tokenize(app, parsed)] = [&] { return tokenize(parsed.tokenize); };
  actions[add_plan(app, parsed)] = [&] { return plan(parsed.plan); };
  actions[add_demo(app, parsed)] = [&] { return demo(parsed.demo); };
  actions[add_inspect(app, parsed)] = [&] { return inspect(parsed.inspect); };
  add_bench(app, parsed, actions);
  CLI::App* devices_command = app.add_subcommand("devices", "list the devices of this machine");
  devices_command->add_flag("--json", parsed.devices.json, "as JSON");
  devices_command->add_flag("--measure", parsed.devices.measure,
                            "with bandwidth, arithmetic, dispatch and links; measured once and kept");
  devices_command->add_flag("--measure-again", parsed.devices.measure_again,
                            "the same, measured anew; kept instead of what was measured before");
  add_device_map(devices_command, parsed.devices.device_map);
  actions[devices_command] = [&] { return devices(parsed.devices); };
  CLI::App* conformance_command = app.add_subcommand("conformance", "judge a device plugin");
  conformance_command->add_option("plugin", parsed.conformance.plugin, "a shared library")->required();
  conformance_command
      ->add_option("--device", parsed.conformance.device,
                   "judge this one alone: a name of the plugin's, or SIM:FILE.toml")
      ->check(text_fault);
  actions[conformance_command] = [&] { return conformance(parsed.conformance); };
  CLI::App* worker_command = app.add_subcommand("worker", "drive one device for the process that started this one");
  worker_command->group("");  // not for users
  add_number(worker_command, "--fd", parsed.worker.fd, "the socket to that process", 3)->required();
  actions[worker_command] = [&] { return worker(parsed.worker); };
  CLI::App* help = app.add_subcommand("help", "explain a command");
  help->add_option("command", parsed.help_words, "the command");
  actions[help] = [&]() -> Status {
    CLI::App* topic = find_command(app, parsed.help_words);
    if (topic == nullptr) return invalid_argument("there is no such command; see motley help");
    // Not topic->help(), which would explain the command that runs, `help`, in the program's stead.
    const std::string text = topic->get_formatter()->make_help(topic, full_name(*topic), CLI::AppFormatMode::Normal);
    std::fputs(text.c_str(), stdout);
    return ok_status();
  };
  try {
    app.parse(argc, argv);
    CLI::App* command = deepest(app);
    if (!parsed.config_file.empty()) RETURN_IF_ERROR(apply_config(*command, parsed.config_file));
    std::unique_ptr<Trace> trace;
    if (!parsed.trace_file.empty()) {
      ASSIGN_OR_RETURN(trace, Trace::open(parsed.trace_file));
    }
    for (InstanceOptions* options :
         {&parsed.serve.instance, &parsed.complete.instance, &parsed.chat.instance, &parsed.bench_latency.instance,
          &parsed.bench_throughput.instance, &parsed.bench_plan.instance}) {
      options->engine.policy = parsed.policy == "priority" ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
      options->trace = trace.get();
    }
    const Status done = actions.at(command)();
    const Status traced = trace == nullptr ? ok_status() : trace->close();
    return done.ok() ? traced : done;
  } catch (const CLI::Success& success) {  // --help, --version
    app.exit(success);
    return ok_status();
  } catch (const CLI::ParseError& failure) {
    const CLI::App* command = deepest(app);
    if (command->get_require_subcommand_min() > 0) return no_command(*command);
    return invalid_argument("{}; see {} --help", one_line(failure.what()), full_name(*command));
  }
}

}  // namespace motley::apps
