#include <algorithm>
#include <atomic>
#include <cstdio>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "client/metrics.hpp"
#include "commands.hpp"
#include "engine_load.hpp"
#include "trace_signals.hpp"

namespace motley::apps {
namespace {

struct Load {
  double seconds = 0;
  uint64_t prompt_tokens = 0, generated_tokens = 0;
};

// What the engine's thread counts down to; shared with the callbacks of every request of the load.
struct Countdown {
  std::atomic<uint32_t> left;
  std::atomic<uint64_t> generated{0};
  std::promise<void> done;
  explicit Countdown(uint32_t count) : left(count) {}
};

Result<Load> run_load(Instance& instance, const std::vector<std::vector<TokenId>>& prompts, uint32_t output_len) {
  const auto countdown = std::make_shared<Countdown>(static_cast<uint32_t>(prompts.size()));
  Load load;
  const int64_t begin_ns = system_clock().now_ns();
  for (const auto& prompt : prompts) {
    Request request;
    request.prompt = prompt;
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = output_len;
    request.use_prefix_cache = false;
    request.on_update = [countdown](const RequestUpdate& update) {
      countdown->generated += update.tokens.size();
      if (update.finished && countdown->left.fetch_sub(1) == 1) countdown->done.set_value();
    };
    RETURN_IF_ERROR(instance.engine().submit(std::move(request)).error());
    load.prompt_tokens += prompt.size();
  }
  countdown->done.get_future().wait();
  load.seconds = static_cast<double>(system_clock().now_ns() - begin_ns) * 1e-9;
  load.generated_tokens = countdown->generated;
  return load;
}

Status write_json(const std::string& path, const nlohmann::ordered_json& json) {
  return path.empty() ? ok_status() : write_file(path, json.dump(2) + "\n");
}

Status bench_throughput(const BenchCommand& command, Instance& instance) {
  const auto prompts =
      random_prompts(instance.model().config().vocab_size, command.num_prompts, command.input_len, command.seed);
  ASSIGN_OR_RETURN(const Load load, run_load(instance, prompts, command.output_len));
  const double requests_per_s = command.num_prompts / load.seconds;
  const double output_per_s = static_cast<double>(load.generated_tokens) / load.seconds;
  const double total_per_s = static_cast<double>(load.generated_tokens + load.prompt_tokens) / load.seconds;
  std::printf("Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output tokens/s\n", requests_per_s, total_per_s,
              output_per_s);
  std::printf("Total num prompt tokens:  %llu\nTotal num output tokens:  %llu\n",
              static_cast<unsigned long long>(load.prompt_tokens),
              static_cast<unsigned long long>(load.generated_tokens));
  return write_json(command.output_json, {{"elapsed_time", load.seconds},
                                          {"num_requests", command.num_prompts},
                                          {"total_num_tokens", load.prompt_tokens + load.generated_tokens},
                                          {"requests_per_second", requests_per_s},
                                          {"tokens_per_second", total_per_s},
                                          {"output_tokens_per_second", output_per_s},
                                          {"seed", command.seed}});
}

Status bench_latency(const BenchCommand& command, Instance& instance) {
  if (command.num_iters == 0) return invalid_argument("--num-iters must be at least 1");
  const auto prompts =
      random_prompts(instance.model().config().vocab_size, command.batch_size, command.input_len, command.seed);
  std::vector<double> latencies;
  for (uint32_t i = 0; i < command.num_iters_warmup + command.num_iters; ++i) {
    ASSIGN_OR_RETURN(const Load load, run_load(instance, prompts, command.output_len));
    if (i >= command.num_iters_warmup) latencies.push_back(load.seconds);
  }
  const double average =
      std::accumulate(latencies.begin(), latencies.end(), 0.0) / static_cast<double>(latencies.size());
  std::vector<double> sorted = latencies;
  std::sort(sorted.begin(), sorted.end());
  nlohmann::ordered_json percentiles;
  std::printf("Avg latency: %.6f seconds\n", average);
  for (const int percent : {10, 25, 50, 75, 90, 99}) {
    percentiles[std::to_string(percent)] = client::percentile(sorted, percent);
    std::printf("%d%% percentile latency: %.6f seconds\n", percent, client::percentile(sorted, percent));
  }
  return write_json(
      command.output_json,
      {{"avg_latency", average}, {"latencies", latencies}, {"percentiles", percentiles}, {"seed", command.seed}});
}

}  // namespace

Status bench(const BenchCommand& command) {
  if (command.input_len == 0 || command.output_len == 0 || command.batch_size == 0 || command.num_prompts == 0) {
    return invalid_argument("lengths and counts must be at least 1");
  }
  const uint32_t requests = command.throughput ? command.num_prompts : command.batch_size;
  RETURN_IF_ERROR(check_prompts(requests, command.input_len));
  InstanceOptions options = command.instance;
  options.engine.queue_limit = std::max<size_t>(requests, 1);
  const TraceSignals signals(options.trace, {SIGINT, SIGTERM});
  ASSIGN_OR_RETURN(const auto instance, Instance::open(options));
  const uint64_t needed = uint64_t{command.input_len} + command.output_len;
  if (needed > instance->engine().max_model_len()) {
    return invalid_argument("--input-len + --output-len = {} is beyond the context of {}", needed,
                            instance->engine().max_model_len());
  }
  return command.throughput ? bench_throughput(command, *instance) : bench_latency(command, *instance);
}

}  // namespace motley::apps
