#include <algorithm>

#include "base/svg.hpp"
#include "planner/plan.hpp"
#include "planner/plan_picture.hpp"

namespace motley {
namespace {

constexpr double kLeft = 190, kWidth = 640, kRow = 26, kTop = 56, kRight = 380;

std::string shard_row(const PlanReport& report, const ModelShape& shape, const Stage& stage, const Shard& shard,
                      size_t colour, double y) {
  const double layer = kWidth / std::max(report.layers, 1u), part = shard_part(shard, shape);
  const double x = kLeft + layer * stage.layer_begin, width = layer * (stage.layer_end - stage.layer_begin);
  std::string out = svg_text(8, y + 15, shard.device);
  out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"18\" fill=\"none\" stroke=\"#999\"/>\n",
                     x, y, width);
  out += svg_rect(x, y + 18 * (1 - part), width, 18 * part, svg_colour(colour));
  for (const DeviceShare& share : report.devices) {
    if (share.device != shard.device) continue;
    out += svg_text(kLeft + kWidth + 12, y + 15,
                    fmt::format("{:.0f} % of the layers' work, busy {:.0f} %, {} weights, {} KV", 100 * part,
                                100 * share.busy, bytes_text(shard.weight_bytes), bytes_text(share.kv_bytes)) +
                        (shard.partner.empty() ? "" : ", " + shard.partner + " attends") +
                        (is_simulated(report, shard.device) ? ", SIMULATED" : ""));
  }
  return out;
}

}  // namespace

std::string plan_svg(const PlanReport& report, const ModelShape& shape) {
  std::string body;
  double y = kTop;
  size_t colour = 0;
  for (size_t i = 0; i < report.placement.lanes.size(); ++i) {
    if (report.placement.lanes.size() > 1) {
      body += svg_text(8, y + 15, lane_text(report, i), " font-weight=\"bold\"");
      y += kRow;
    }
    for (const Stage& stage : report.placement.lanes[i].stages) {
      for (const Shard& shard : stage.shards) {
        body += shard_row(report, shape, stage, shard, colour++, y);
        y += kRow;
      }
    }
    for (const KvSection& section : report.placement.lanes[i].sections) {
      const uint64_t tokens = uint64_t{section.blocks} * report.placement.block_size;
      body += svg_text(8, y + 15, fmt::format("{} tokens of KV with {}, which attends to them", tokens, section.owner));
      y += kRow;
    }
  }
  y += 12;
  for (const LeftOut& out : report.left_out) {
    body += svg_text(8, y + 12, out.device + " is left out: " + out.reason, " fill=\"#a33\"");
    y += 20;
  }
  for (const Alternative& other : report.alternatives) {
    std::string names;
    for (const std::string& device : other.devices) names += (names.empty() ? "" : " + ") + device;
    body += svg_text(8, y + 12, fmt::format("next best: {:.4g} tokens/s with {}", other.tokens_per_s, names),
                     " fill=\"#666\"");
    y += 20;
  }
  std::string head = svg_text(
      8, 20,
      fmt::format("{}: {:.4g} tokens/s predicted, {:.4g} at most, TTFT {:.4g} ms, TPOT {:.4g} ms, KV {} tokens",
                  shape.name, report.predicted.tokens_per_s, report.bound_tokens_per_s, report.predicted.ttft_ms,
                  report.predicted.tpot_ms, report.kv_capacity_tokens),
      " font-size=\"14\" font-weight=\"bold\"");
  head += svg_text(kLeft, 46, "layer 0") +
          svg_text(kLeft + kWidth, 46, std::to_string(report.layers), " text-anchor=\"end\"");
  return svg_document(kLeft + kWidth + kRight, y + 12, head + body);
}

}  // namespace motley
