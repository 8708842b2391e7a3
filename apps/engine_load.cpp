#include "engine_load.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <utility>

#include "base/clock.hpp"

namespace motley::apps {
namespace {

constexpr uint64_t kPromptTokensMax = 1ull << 28;  // of all prompts of a load, 1 GiB of ids

double seconds_between(int64_t begin_ns, int64_t end_ns) { return static_cast<double>(end_ns - begin_ns) * 1e-9; }

}  // namespace

Status check_prompts(uint32_t count, uint32_t length) {
  if (uint64_t{count} * length <= kPromptTokensMax) return ok_status();
  return invalid_argument("{} prompts of {} tokens are more than {} tokens; ask for fewer", count, length,
                          kPromptTokensMax);
}

std::vector<std::vector<TokenId>> random_prompts(uint32_t vocab_size, uint32_t count, uint32_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<TokenId> token(0, static_cast<TokenId>(vocab_size) - 1);
  std::vector<std::vector<TokenId>> prompts(count);
  for (auto& prompt : prompts) {
    prompt.resize(length);
    for (TokenId& id : prompt) id = token(random);
  }
  return prompts;
}

// Shared with the requests: they may outlive a run that fails.
struct Engines::Progress {
  struct Answer {  // the engine's thread's until its index is among `ended`
    int64_t sent_ns = 0, first_ns = 0, last_ns = 0;
    uint64_t tokens = 0;
    Status status;
  };
  Progress(size_t requests, size_t engines) : answers(requests), left(engines) {}

  std::vector<Answer> answers;
  std::vector<std::atomic<int64_t>> left;  // of each engine: tokens to come, of prompts and answers
  std::mutex mutex;                        // guards what follows
  std::condition_variable changed;
  std::vector<size_t> ended;
};

Result<std::unique_ptr<Engines>> Engines::open(const OpenPlan& plan, std::span<const PlanReport> reports,
                                               const EngineOptions& options) {
  std::unique_ptr<Engines> engines(new Engines);
  engines->devices_ = &plan.devices;
  engines->shape_ = &plan.planned.shape;
  engines->request_ = &plan.planned.request;
  const std::vector<NamedDevice> named = plan.devices.named();
  for (const PlanReport& report : reports) {
    RuntimeOptions runtime = plan.runtime;
    ASSIGN_OR_RETURN(runtime.step_limit_ns,
                     step_limit(plan.planned.shape, plan.planned.input, report.placement, runtime.rows_max));
    Member member{&report, nullptr, nullptr};
    ASSIGN_OR_RETURN(member.runtime, RuntimeExecutor::create(*plan.model, report.placement, named, runtime));
    ASSIGN_OR_RETURN(member.engine, Engine::create(*member.runtime, options, system_clock(), nullptr, runtime.trace));
    engines->members_.push_back(std::move(member));
  }
  return engines;
}

size_t Engines::first_done(const Progress& progress, size_t tokens) const {
  size_t best = 0;
  const auto done_s = [&](size_t i) {
    return (static_cast<double>(progress.left[i].load()) + static_cast<double>(tokens)) /
           members_[i].report->predicted.tokens_per_s;
  };
  for (size_t i = 1; i < members_.size(); ++i) {
    if (done_s(i) < done_s(best)) best = i;
  }
  return best;
}

Status Engines::submit(const EngineLoad& load, size_t index, const std::shared_ptr<Progress>& progress) {
  Request request;
  request.prompt = load.prompts[index];
  request.params.temperature = 0;
  request.params.ignore_eos = true;
  request.params.max_tokens = load.output_len;
  request.use_prefix_cache = false;
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const size_t to = first_done(*progress, request.prompt.size() + load.output_len);
  request.on_update = [progress, index, to, prompt](const RequestUpdate& update) {
    Progress::Answer& answer = progress->answers[index];
    std::atomic<int64_t>& left = progress->left[to];
    if (!update.tokens.empty()) {
      answer.last_ns = system_clock().now_ns();
      if (answer.tokens == 0) answer.first_ns = answer.last_ns, left -= prompt;
      answer.tokens += update.tokens.size();
      left -= static_cast<int64_t>(update.tokens.size());
    }
    if (!update.finished) return;
    answer.status = update.status;
    std::lock_guard lock(progress->mutex);
    progress->ended.push_back(index);
    progress->changed.notify_one();
  };
  progress->left[to] += prompt + load.output_len;
  progress->answers[index].sent_ns = system_clock().now_ns();
  return members_[to].engine->submit(std::move(request)).error();
}

std::vector<DriverReport> Engines::work() const {
  std::vector<DriverReport> all;
  for (const Member& member : members_) {
    for (DriverReport& report : member.runtime->reports()) all.push_back(std::move(report));
  }
  return all;
}

// By the device's own count; 0: it does not say.
uint64_t Engines::bytes_held(const std::string& device) const {
  const auto at = devices_->find(device);
  const auto stats =
      at ? devices_->device(*at).stats() : Result<motley_device_stats>(error(MOTLEY_NOT_FOUND, "{}", device));
  return stats.ok() ? stats->bytes_resident : 0;
}

// Bytes of KV by device, the most that requests held at once in each section of each pool.
std::map<std::string, double> Engines::kv_held(const Member& member) const {
  const Placement& placement = member.report->placement;
  const EngineStats stats = member.engine->stats();
  std::map<std::string, double> bytes;
  std::set<uint32_t> seen;
  for (const Lane& lane : placement.lanes) {
    if (!seen.insert(lane.pool).second || lane.pool >= stats.pools.size()) continue;
    const std::vector<uint32_t>& most = stats.pools[lane.pool].most_used;
    std::vector<double> tokens(lane.sections.size() + 1, 0);
    for (size_t i = 0; i < std::min(tokens.size(), most.size()); ++i)
      tokens[i] = double{1} * most[i] * placement.block_size;
    for (const auto& [device, more] : kv_bytes_of(*shape_, *request_, placement, lane, tokens)) bytes[device] += more;
  }
  return bytes;
}

// `before`: work() at the beginning of the run; the drivers are the same.
std::vector<DeviceUse> Engines::uses(const std::vector<DriverReport>& before, double seconds, uint64_t tokens) const {
  std::vector<DeviceUse> uses;
  size_t at = 0;
  for (const Member& member : members_) {
    std::map<std::string, double> kv = kv_held(member);
    for (const DriverReport& after : member.runtime->reports()) {
      const DriverWork& began = before[at++].work;
      DeviceUse use;
      use.device = after.device;
      use.weight_bytes = after.weight_bytes;
      use.busy = static_cast<double>(after.work.busy_ns - began.busy_ns) * 1e-9 / seconds;
      use.bytes_per_token = static_cast<double>(after.work.bytes_moved - began.bytes_moved) /
                            static_cast<double>(std::max<uint64_t>(tokens, 1));
      for (const DeviceShare& share : member.report->devices) {
        if (share.device != use.device) continue;
        const uint64_t known = use.weight_bytes + share.kv_bytes, held = bytes_held(use.device);
        use.other_bytes = held > known ? held - known : share.step_bytes;  // or as planned, where it does not say
        use.kv_bytes = static_cast<uint64_t>(kv[use.device]);
      }
      uses.push_back(std::move(use));
    }
  }
  return uses;
}

// Likewise.
std::vector<LinkUse> Engines::links(const std::vector<DriverReport>& before, uint64_t tokens) const {
  std::map<std::pair<std::string, std::string>, uint64_t> bytes;
  const std::vector<DriverReport> all = work();
  for (size_t i = 0; i < all.size(); ++i) {
    for (const auto& [to, sent] : all[i].work.bytes_to) {
      const auto& began = before[i].work.bytes_to;
      const auto known = began.find(to);
      bytes[std::minmax(all[i].device, to)] += sent - (known == began.end() ? 0 : known->second);
    }
  }
  std::vector<LinkUse> links;
  for (const auto& [ends, moved] : bytes) {
    const double each = static_cast<double>(moved) / static_cast<double>(std::max<uint64_t>(tokens, 1));
    links.push_back({ends.first, ends.second, each});
  }
  return links;
}

Result<LoadSeen> Engines::run(const EngineLoad& load) {
  for (const Member& member : members_) {
    for (const auto& prompt : load.prompts) {
      if (prompt.size() + load.output_len <= member.engine->max_model_len()) continue;
      return invalid_argument("{} tokens of a request are beyond the context of {}", prompt.size() + load.output_len,
                              member.engine->max_model_len());
    }
  }
  const auto progress = std::make_shared<Progress>(load.prompts.size(), members_.size());
  const std::vector<DriverReport> before = work();
  const int64_t began_ns = system_clock().now_ns();
  size_t sent = 0, ended = 0;
  while (ended < load.prompts.size()) {
    for (; sent < load.prompts.size() && sent - ended < load.concurrency; ++sent)
      RETURN_IF_ERROR(submit(load, sent, progress));
    std::vector<size_t> now;
    {
      std::unique_lock lock(progress->mutex);
      progress->changed.wait(lock, [&] { return !progress->ended.empty(); });
      now.swap(progress->ended);
    }
    for (const size_t index : now) RETURN_IF_ERROR(progress->answers[index].status);
    ended += now.size();
  }
  std::vector<client::RequestRecord> records;
  int64_t last_ns = began_ns + 1;
  for (size_t i = 0; i < load.prompts.size(); ++i) {
    const Progress::Answer& answer = progress->answers[i];
    last_ns = std::max(last_ns, answer.last_ns);
    client::RequestRecord record;
    record.success = answer.tokens == load.output_len;
    record.start_s = seconds_between(began_ns, answer.sent_ns);
    record.ttft_s = seconds_between(answer.sent_ns, answer.first_ns);
    record.latency_s = seconds_between(answer.sent_ns, answer.last_ns);
    record.prompt_tokens = load.prompts[i].size();
    record.output_tokens = answer.tokens;
    records.push_back(std::move(record));
  }
  const double seconds = seconds_between(began_ns, last_ns);
  LoadSeen seen;
  seen.metrics = client::measure(records, seconds, {{50, 99}, {}});
  seen.devices = uses(before, seconds, seen.metrics.total_output_tokens);
  seen.links = links(before, seen.metrics.total_output_tokens);
  return seen;
}

}  // namespace motley::apps
