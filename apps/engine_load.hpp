// Engines of this process under load: what a client sees of them, and what their devices do meanwhile.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "client/metrics.hpp"
#include "engine/engine.hpp"
#include "open_plan.hpp"

namespace motley::apps {

// INVALID_ARGUMENT for more tokens than prompts of a load may have together.
Status check_prompts(uint32_t count, uint32_t length);
// Any ids of the vocabulary, the same for the same seed.
std::vector<std::vector<TokenId>> random_prompts(uint32_t vocab_size, uint32_t count, uint32_t length, uint64_t seed);

struct EngineLoad {
  std::vector<std::vector<TokenId>> prompts;
  uint32_t output_len = 1;   // of every answer
  uint32_t concurrency = 1;  // requests under way: the next is sent as one ends
};

struct DeviceUse {
  std::string device;
  uint64_t weight_bytes = 0;  // as packed
  uint64_t other_bytes = 0;   // what the device says it holds, without weights and KV pools: buffers of steps, programs
  uint64_t kv_bytes = 0;      // of its pools, the most that answers under way held at once
  double busy = 0;            // share of the run's time
  double bytes_per_token = 0;  // to and from other devices, for an output token
  uint64_t memory_bytes() const { return weight_bytes + other_bytes + kv_bytes; }
};

// Between two devices of an engine, both ways.
struct LinkUse {
  std::string a, b;
  double bytes_per_token = 0;  // for an output token
};

struct LoadSeen {
  client::Metrics metrics;  // percentiles 50 and 99
  std::vector<DeviceUse> devices;
  std::vector<LinkUse> links;
};

// An engine for each report, side by side. A request goes to the one that will have done it first, by the work that
// each has left and its predicted tokens/s. One thread calls.
class Engines {
 public:
  // Loads the placements. What it is given outlives it.
  static Result<std::unique_ptr<Engines>> open(const OpenPlan& plan, std::span<const PlanReport> reports,
                                               const EngineOptions& options);
  // Sends all, greedy and without the prefix cache, and waits for the answers. The first failure of a request is the
  // run's. INVALID_ARGUMENT for requests longer than an engine's context.
  Result<LoadSeen> run(const EngineLoad& load);

 private:
  struct Member {
    const PlanReport* report = nullptr;
    std::unique_ptr<RuntimeExecutor> runtime;
    std::unique_ptr<Engine> engine;
  };
  struct Progress;
  size_t first_done(const Progress& progress, size_t tokens) const;
  Status submit(const EngineLoad& load, size_t index, const std::shared_ptr<Progress>& progress);
  std::vector<DriverReport> work() const;
  uint64_t bytes_held(const std::string& device) const;
  std::map<std::string, double> kv_held(const Member& member) const;
  std::vector<DeviceUse> uses(const std::vector<DriverReport>& before, double seconds, uint64_t tokens) const;
  std::vector<LinkUse> links(const std::vector<DriverReport>& before, uint64_t tokens) const;

  const DeviceSet* devices_ = nullptr;
  const ModelShape* shape_ = nullptr;
  const PlanRequest* request_ = nullptr;
  std::vector<Member> members_;
};

}  // namespace motley::apps
