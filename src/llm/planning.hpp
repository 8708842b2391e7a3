// From devices and a model to a placement: measures what is not known yet, and asks the planner.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "base/status.hpp"
#include "llm/device_set.hpp"
#include "model/model.hpp"
#include "planner/model_shape.hpp"
#include "planner/search.hpp"
#include "runtime/measure.hpp"

namespace motley {

// What a user may say about the plan.
struct PlanSettings {
  Objective objective = Objective::kThroughput;
  double ttft_ms_max = 0, tpot_ms_max = 0;  // 0 = none asked for
  uint32_t concurrency = 16, prompt_len = 512, output_len = 128;
  uint32_t tensor_parallel_size = 0, pipeline_parallel_size = 0;  // 0 = free
  bool use_all_devices = false;
  std::string plan_file;       // a plan to take as it is; "" = search
  bool measure_again = false;  // what was measured before does not count
  // Seconds that measuring a device may take before the plan goes without it; 0 = any. Forced plans wait.
  uint32_t measure_limit_s = 60;
  // That a device of fixed row counts may compile, by its own estimate; it is compiled for fewer counts where that is
  // not enough.
  uint32_t compile_limit_s = static_cast<uint32_t>(kCompileSecondsMax);
  bool forced() const { return tensor_parallel_size > 0 || pipeline_parallel_size > 0 || use_all_devices; }
};

struct KvSettings {
  int32_t dtype = 0;  // motley_dtype
  uint32_t block_size = 16;
  uint64_t bytes = 0;          // of all pools; 0 = chosen
  uint32_t max_model_len = 0;  // 0 = the model's context, lowered to what the pools hold
};

// `buffers`: of most_step_buffers().
PlanRequest plan_request(const PlanSettings& settings, const KvSettings& kv, const ModelConfig& config,
                         uint32_t rows_max, const StepBuffers& buffers);

// What a step of the whole model needs on the device beside weights and KV. Errors as of workspace_bytes().
Result<StepBuffers> step_buffers(const Model& model, const Device& device, const RuntimeOptions& runtime);

// The most that a step of the whole model needs on any of the devices that are not lost, beside weights and KV; none if
// none can tell. A part of the model needs no more.
StepBuffers most_step_buffers(const Model& model, const DeviceSet& devices, const RuntimeOptions& runtime);

// What allocations lose at their ends: of a layer's KV its keys, values and the scales of both, and of steps' buffers.
uint64_t rounding_bytes(const Model& model);

// Hears what is being measured, for people who wait.
using Progress = std::function<void(const std::string&)>;

// A device that could not be measured, or not within the limit, or for which no plan keeps to its limits.
struct Unmeasured {
  LeftOut left;
  bool again = false;  // it may be well at the next start, and is tried again then
};

// How far measuring goes.
struct MeasureScope {
  const PlanInput* have = nullptr;          // of what it tells nothing is measured; null = nothing
  std::vector<Unmeasured> unmeasured = {};  // which are not tried
  bool again = false;                       // what is in the cache does not count
  uint32_t limit_s = 0;                     // of one device, pauses not counted; 0 = none
  bool may_go_without = false;              // a device that fails is left out; else that is an error
};

// How long a program that is measured may run before its device hangs: so many seconds, but some at least; `wait_ns` at
// most, and where there is no limit (0).
uint64_t measured_wait_ns(uint64_t limit_s, uint64_t wait_ns);

struct MeasuredInput {
  PlanInput input;
  std::vector<Unmeasured> unmeasured;
};

// The devices' figures for this model, measured now: a second or so a device. Lost devices are left out, and those that
// take longer than the limit: a program under way is waited for. The last device that might be left has no limit, and
// must not fail.
Result<MeasuredInput> measure_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options,
                                    const Progress& progress, const MeasureScope& scope = {});

// The same, from the cache or measured now and kept. A device that took too long is not tried anew unless the scope
// says `again` or has no limit; one that was measured roughly is, once it has more memory to measure with. In virtual
// time nothing is kept: the figures hang on a file's contents, and are soon measured.
Result<MeasuredInput> measured_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options,
                                     const Progress& progress, const MeasureScope& scope = {});

// The devices that are not lost, for the cost cache and for plans.
std::string machine_of(const DeviceSet& devices);

// The same if it is known already and nothing is to be measured anew; devices that took too long to measure are
// missing.
std::optional<PlanInput> known_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options);

// Row counts that were found not to compile since the devices were measured are kept with what was.
void keep_uncompiled(const Model& model, const DeviceSet& devices, const MeasureOptions& options);

// As of RuntimeOptions.
std::map<std::string, std::vector<uint32_t>> row_counts_of(const PlanInput& input);

// What is measured for a runtime of these options.
MeasureOptions measure_options(const KvSettings& kv, const RuntimeOptions& runtime);

// What is left of the input without the devices that are lost.
PlanInput without_lost(const PlanInput& input, const DeviceSet& devices);

// The longest that a step may take before its devices count as lost: max(1 s, five times the prediction). The
// prediction is taken at a few points once; a function of rows and positions read.
Result<std::function<int64_t(double rows, double reads)>> step_limit(const ModelShape& shape, const PlanInput& input,
                                                                     const Placement& placement, uint32_t rows_max);

// Tokens of prompts per second, as predicted, where a step takes a chunk of them and nobody decodes.
Result<double> prefill_rate(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                            uint32_t rows_max);

}  // namespace motley
