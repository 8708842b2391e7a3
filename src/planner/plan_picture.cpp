#include "planner/plan_picture.hpp"

#include <algorithm>
#include <cmath>

#include "planner/plan.hpp"
#include "planner/refusal.hpp"

namespace motley {
namespace {

constexpr int64_t kBarCells = 32;  // all layers
constexpr size_t kNameWidthMax = 24;
constexpr double kLossTold = 0.0005;  // less shows as 0.0 %

const DeviceShare* share_of(const PlanReport& report, const std::string& device) {
  for (const DeviceShare& share : report.devices) {
    if (share.device == device) return &share;
  }
  return nullptr;
}

std::string repeat(std::string_view text, int64_t times) {
  std::string out;
  for (int64_t i = 0; i < times; ++i) out += text;
  return out;
}

// Cells of the layers before, the shard's part in eighth-blocks by shade, cells of the layers after.
std::string bar(const Stage& stage, const PlanReport& report, double part) {
  const auto cell = [&](uint32_t layer) {
    return std::llround(static_cast<double>(layer) * kBarCells / std::max(report.layers, 1u));
  };
  const int64_t begin = std::min<int64_t>(cell(stage.layer_begin), kBarCells - 1);
  const int64_t end = std::max<int64_t>(cell(stage.layer_end), begin + 1);
  constexpr const char* kShades[] = {"·", "░", "▒", "▓", "█"};
  const auto shade = static_cast<size_t>(std::ceil(std::clamp(part, 0.0, 1.0) * 4));
  return repeat(" ", begin) + repeat(kShades[shade], end - begin) + repeat(" ", kBarCells - end);
}

size_t name_width(const PlanReport& report) {
  size_t width = 6;
  for (const DeviceShare& share : report.devices) width = std::max(width, share.device.size());
  return std::min(width, kNameWidthMax);
}

std::string clipped(const std::string& name, size_t width) {
  if (name.size() <= width) return name + std::string(width - name.size(), ' ');
  return "~" + name.substr(name.size() - width + 1);
}

// "4/8 heads, 1024/4096 columns", only the axes that the model has.
std::string counts(const Shard& shard, const ModelShape& shape) {
  const int64_t queries =
      shard.query_heads.empty() ? units_in(shard.kv_heads) * shape.query_heads_per_kv() : units_in(shard.query_heads);
  std::string text = fmt::format("heads {}/{}", queries, shape.heads);
  if (shape.ffn_columns > 0) text += fmt::format("  columns {}/{}", units_in(shard.ffn_columns), shape.ffn_columns);
  if (shape.experts > 0) text += fmt::format("  experts {}/{}", shard.experts.size(), shape.experts);
  if (!shard.vocab_rows.empty()) text += fmt::format("  vocabulary {}/{}", units_in(shard.vocab_rows), shape.vocab);
  if (!shard.kv_heads.empty()) text += fmt::format("  KV {}", units_in(shard.kv_heads));
  if (!shard.query_heads.empty()) text += " (replicated)";
  if (!shard.partner.empty()) text += " of " + shard.partner + ", which attends";
  return text;
}

void add_stages(const PlanReport& report, const ModelShape& shape, size_t lane, std::string* out) {
  const size_t width = name_width(report);
  const std::vector<Stage>& stages = report.placement.lanes[lane].stages;
  for (size_t s = 0; s < stages.size(); ++s) {
    const Stage& stage = stages[s];
    const StageTime time = lane < report.lanes.size() ? report.lanes[lane].stages.at(s) : StageTime();
    *out += fmt::format("{}─┬{}┬─ stage {}: layers {} to {}, {} a step{}\n", repeat("─", static_cast<int64_t>(width)),
                        repeat("─", kBarCells), s, stage.layer_begin, stage.layer_end - 1, time_text(time.step_ns),
                        time.hop_ns > 0 ? ", then " + time_text(time.hop_ns) + " on the link" : "");
    for (const Shard& shard : stage.shards) {
      const DeviceShare* share = share_of(report, shard.device);
      *out += fmt::format("{} │{}│ {:>3.0f} %  {}\n", clipped(shard.device, width),
                          bar(stage, report, shard_part(shard, shape)), share == nullptr ? 0 : 100 * share->busy,
                          counts(shard, shape));
    }
  }
  *out += fmt::format("{}─┴{}┴─\n", repeat("─", static_cast<int64_t>(width)), repeat("─", kBarCells));
}

// Where a sequence's positions lie, if not with the shards' owners alone.
void add_sections(const PlanReport& report, const Lane& lane, std::string* out) {
  if (lane.sections.empty()) return;
  const auto tokens = [&](uint32_t blocks) { return uint64_t{blocks} * report.placement.block_size; };
  *out += fmt::format("sections   of its KV pool, in this order: {} tokens as above", tokens(lane.kv_blocks));
  for (const KvSection& section : lane.sections)
    *out += fmt::format(", {} with {}, which attends to them", tokens(section.blocks), section.owner);
  *out += "; a sequence may lie in all of them\n";
}

void add_lanes(const PlanReport& report, const ModelShape& shape, std::string* out) {
  *out += fmt::format("{:<{}}  layers 0{}{}  busy  share\n", "device", name_width(report),
                      repeat(" ", kBarCells - 8 - static_cast<int64_t>(std::to_string(report.layers).size())),
                      report.layers);
  for (size_t i = 0; i < report.placement.lanes.size(); ++i) {
    if (report.placement.lanes.size() > 1) *out += lane_text(report, i) + "\n";
    add_stages(report, shape, i, out);
    add_sections(report, report.placement.lanes[i], out);
  }
}

void add_memory(const PlanReport& report, std::string* out) {
  const size_t width = name_width(report);
  for (const DeviceShare& share : report.devices) {
    *out += fmt::format("{}  {} of weights{}, {} of KV, {} a step; {} may be used{}\n", clipped(share.device, width),
                        bytes_text(share.weight_bytes), share.format.empty() ? "" : " (" + share.format + ")",
                        bytes_text(share.kv_bytes), bytes_text(share.step_bytes), bytes_text(share.usable_bytes),
                        is_simulated(report, share.device) ? ", SIMULATED" : "");
  }
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += (i > 0 ? " + " : "") + names[i];
  return text;
}

void add_slo(const PlanReport& report, std::string* out) {
  const std::pair<const char*, std::pair<double, double>> limits[] = {
      {"TTFT", {report.predicted.ttft_ms, report.ttft_ms_max}},
      {"TPOT", {report.predicted.tpot_ms, report.tpot_ms_max}}};
  std::string asked;
  for (const auto& [name, times] : limits) {
    const auto [ms, most] = times;
    if (most > 0) asked += fmt::format("{}{} {:.4g} ms of at most {:.4g}", asked.empty() ? "" : ", ", name, ms, most);
  }
  if (!asked.empty()) *out += fmt::format("slo        {}; {}\n", report.keeps_slo ? "kept" : "NOT KEPT", asked);
}

void add_figures(const PlanReport& report, std::string* out) {
  const Prediction& p = report.predicted;
  *out += fmt::format(
      "predicted  {:.4g} tokens/s, TTFT {:.4g} ms, TPOT {:.4g} ms, with {} sequences in {} micro-batch{}, prompts by "
      "{} rows\n",
      p.tokens_per_s, p.ttft_ms, p.tpot_ms, p.concurrency, p.micro_batches, p.micro_batches == 1 ? "" : "es",
      p.chunk_rows);
  add_slo(report, out);
  if (report.bound_tokens_per_s > 0) {
    *out += fmt::format(
        "bound      {:.4g} tokens/s for any plan{} of these devices: at most {:.1f} % is left to gain\n",
        report.bound_tokens_per_s, report.placement.lanes.size() == 1 ? " of one lane" : "", 100 * report.gap);
  }
  *out += fmt::format("KV         {} tokens\n", report.kv_capacity_tokens);
  if (report.forced && report.forced_loss.loss >= kLossTold) {
    *out += fmt::format("forced     loses {:.1f} % against {} at {:.4g} tokens/s\n", 100 * report.forced_loss.loss,
                        joined(report.forced_loss.best_devices), report.forced_loss.best_tokens_per_s);
  }
  if (!report.moved.empty()) *out += fmt::format("moved      {}\n", report.moved);
  for (const LeftOut& out_device : report.left_out) {
    *out += fmt::format("left out   {}: {}\n", out_device.device, out_device.reason);
  }
  for (const Alternative& other : report.alternatives) {
    *out += fmt::format("next best  {:.4g} tokens/s with {}\n", other.tokens_per_s, joined(other.devices));
  }
}

}  // namespace

std::string lane_text(const PlanReport& report, size_t index) {
  const Lane& lane = report.placement.lanes[index];
  const LaneReport& own = report.lanes.at(index);
  const char* role = lane.prefills && lane.decodes ? "prompts and tokens" : lane.prefills ? "prompts" : "tokens";
  const std::string share = lane.share > 0 ? fmt::format("{:.3g} % of the sequences, ", 100 * lane.share) : "";
  return fmt::format("lane {}: {}, {}KV pool {} of {} tokens; {} sequences, {:.4g} tokens/s", index, role, share,
                     lane.pool, own.kv_tokens, own.predicted.concurrency, own.predicted.tokens_per_s);
}

bool is_simulated(const PlanReport& report, const std::string& device) {
  return std::find(report.simulated.begin(), report.simulated.end(), device) != report.simulated.end();
}

double shard_part(const Shard& shard, const ModelShape& shape) {
  const int64_t queries =
      shard.query_heads.empty() ? units_in(shard.kv_heads) * shape.query_heads_per_kv() : units_in(shard.query_heads);
  double sum = static_cast<double>(queries) / static_cast<double>(shape.heads), axes = 1;
  if (shape.ffn_columns > 0) {
    sum += static_cast<double>(units_in(shard.ffn_columns)) / static_cast<double>(shape.ffn_columns);
    ++axes;
  }
  if (shape.experts > 0) {
    sum += static_cast<double>(shard.experts.size()) / static_cast<double>(shape.experts);
    ++axes;
  }
  return sum / axes;
}

std::string plan_text(const PlanReport& report, const ModelShape& shape) {
  std::string out = fmt::format("{}: {} layers on {} of {} devices\n", shape.name, report.layers, report.devices.size(),
                                report.devices.size() + report.left_out.size());
  add_lanes(report, shape, &out);
  add_memory(report, &out);
  add_figures(report, &out);
  return out;
}

}  // namespace motley
