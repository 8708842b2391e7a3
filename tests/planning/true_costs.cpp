#include "planning/true_costs.hpp"

#include <algorithm>
#include <cmath>

namespace motley::testing {
namespace {
constexpr double kFloat = 4;
}

double TrueCosts::matrix_ns(size_t device, double rows, double in, double out) const {
  const double rate = devices_[device].gflops * rows / (rows + devices_[device].half_rows);
  return std::max(2 * rows * in * out / rate, kFloat * (in * out + rows * (in + out)) / bandwidth_[device]);
}

double TrueCosts::moved_ns(size_t device, double floats) const { return kFloat * floats / bandwidth_[device]; }

double TrueCosts::copy_ns(size_t device, double floats) const {
  return devices_[device].link_latency_us * 1e3 + kFloat * floats / devices_[device].link_gb_s;
}

double TrueCosts::attention_ns(size_t device, const Rows& rows, double heads) const {
  const double n = rows.rows, h = model_.hidden, q = heads * model_.head_dim;
  const double seen = rows.decode ? n * rows.context : rows.sequences * 2 * rows.context;  // positions, once each
  const double reads =
      std::max(4 * q * n * rows.context / devices_[device].attention_gflops, moved_ns(device, 2 * q * seen));
  return 3 * matrix_ns(device, n, h, q) + matrix_ns(device, n, q, h) + reads + moved_ns(device, n * (2 * h + 6 * q));
}

double TrueCosts::ffn_ns(size_t device, const Rows& rows, double columns) const {
  const double n = rows.rows, h = model_.hidden;
  return 2 * matrix_ns(device, n, h, columns) + matrix_ns(device, n, columns, h) +
         moved_ns(device, n * (2 * h + 3 * columns));
}

double TrueCosts::head_ns(size_t device, const Rows& rows, double vocab) const {
  return dispatch_ns(device) + matrix_ns(device, rows.drawn, model_.hidden, vocab);
}

double TrueCosts::stage_ns(const std::vector<TrueStage>& stages, size_t at, const Rows& rows) const {
  const TrueStage& stage = stages[at];
  const bool split = stage.shards.size() > 1, first = at == 0, last = at + 1 == stages.size();
  const double stream = rows.rows * model_.hidden;
  const double meet = split ? 2 * (link_.latency_ns + kFloat * stream * link_.ns_per_byte) : 0;
  const auto slowest = [&](auto of) {
    double ns = 0;
    for (const TrueShard& shard : stage.shards) ns = std::max(ns, of(shard));
    return ns;
  };
  double ns = 0;
  if (first) {
    ns += meet + slowest([&](const TrueShard& s) {
            return s.vocab > 0 ? dispatch_ns(s.device) + (split ? copy_ns(s.device, stream) : 0) : 0;
          });
  }
  if (split) {
    const auto part = [&](const TrueShard& s, double units, double work) {
      const double copy = copy_ns(s.device, stream);
      return dispatch_ns(s.device) + (units > 0 ? work + 2 * copy : copy);
    };
    ns += stage.layers * (2 * meet + slowest([&](const TrueShard& s) {
                            return part(s, s.heads, s.heads > 0 ? attention_ns(s.device, rows, s.heads) : 0);
                          }) +
                          slowest([&](const TrueShard& s) {
                            return part(s, s.columns, s.columns > 0 ? ffn_ns(s.device, rows, s.columns) : 0);
                          }));
    ns += slowest([&](const TrueShard& s) { return dispatch_ns(s.device) + copy_ns(s.device, stream); });
  } else {
    const size_t d = stage.shards[0].device;
    ns += dispatch_ns(d) + (first ? 0 : copy_ns(d, stream)) + (last ? 0 : copy_ns(d, stream));
    ns += stage.layers * (attention_ns(d, rows, stage.shards[0].heads) + ffn_ns(d, rows, stage.shards[0].columns) +
                          moved_ns(d, 6 * stream));
  }
  if (!last) return ns;
  double holders = 0;
  size_t sampler = stage.shards[0].device;
  for (const TrueShard& s : stage.shards) {
    if (s.vocab > 0 && holders++ == 0) sampler = s.device;
  }
  ns += slowest([&](const TrueShard& s) {
    if (s.vocab == 0) return 0.0;
    return head_ns(s.device, rows, s.vocab) + (holders > 1 ? copy_ns(s.device, rows.drawn * s.vocab) : 0);
  });
  if (holders > 1) ns += link_.latency_ns + copy_ns(sampler, rows.drawn * model_.vocab.value_or(320));
  return ns + dispatch_ns(sampler) + copy_ns(sampler, rows.drawn) * (holders > 1 && first ? 2 : 1);
}

double TrueCosts::phase_ns(const std::vector<TrueStage>& stages, Rows rows, uint32_t micro_batches) const {
  for (double* n : {&rows.rows, &rows.sequences, &rows.drawn}) *n /= micro_batches;
  double sum = 0, most = 0;
  for (size_t s = 0; s < stages.size(); ++s) {
    const double hop =
        s + 1 < stages.size() ? link_.latency_ns + kFloat * rows.rows * model_.hidden * link_.ns_per_byte : 0;
    const double ns = stage_ns(stages, s, rows);
    sum += ns + hop;
    most = std::max({most, ns, hop});
  }
  return std::max(sum, micro_batches * most);
}

double TrueCosts::load_ns(const std::vector<TrueStage>& stages, const Load& load, uint32_t micro_batches) {
  std::vector<bool> used(devices_.size(), false);
  for (const TrueStage& stage : stages) {
    for (const TrueShard& shard : stage.shards) used[shard.device] = true;
  }
  bandwidth_.clear();
  for (size_t d = 0; d < devices_.size(); ++d) {
    double others = 0;
    for (size_t e = 0; e < devices_.size(); ++e)
      others +=
          e != d && used[e] && devices_[d].memory_group != 0 && devices_[e].memory_group == devices_[d].memory_group
              ? 1
              : 0;
    bandwidth_.push_back(devices_[d].bandwidth_gb_s / (1 + devices_[d].contention * others));
  }
  const double sequences = load.concurrency, rounds = std::ceil(double{1} * load.requests / load.concurrency);
  const double at_once = std::max(1.0, std::floor(double{1} * load.step_rows / load.prompt_len));
  const double prefills = std::ceil(sequences / at_once);
  const Rows prompt{sequences / prefills * load.prompt_len, sequences / prefills, load.prompt_len / 2.0,
                    sequences / prefills, false};
  const Rows decode{sequences, sequences, load.prompt_len + load.output_len / 2.0, sequences, true};
  double pass = 0, most = 0;  // of a prompt's step through the stages
  for (size_t stage = 0; stage < stages.size(); ++stage) {
    const double ns = stage_ns(stages, stage, prompt);
    pass += ns;
    most = std::max(most, ns);
  }
  const double prompts = micro_batches < stages.size() ? prefills * pass : pass + (prefills - 1) * most;
  return rounds * (prompts + (load.output_len - 1) * phase_ns(stages, decode, micro_batches));
}

}  // namespace motley::testing
