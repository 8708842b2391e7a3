#include <algorithm>

#include "planner/plan.hpp"
#include "planner/plan_picture.hpp"

namespace motley {
namespace {

constexpr double kLeft = 190, kWidth = 640, kRow = 26, kTop = 56, kRight = 380;
constexpr const char* kColours[] = {"#4c78a8", "#f58518", "#54a24b", "#b279a2",
                                    "#e45756", "#72b7b2", "#9d755d", "#bab0ac"};

// Names come from whoever lists devices: nothing in them may become markup.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string label(double x, double y, std::string_view text, std::string_view more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>\n", x, y, more, escaped(text));
}

std::string shard_row(const PlanReport& report, const ModelShape& shape, const Stage& stage, const Shard& shard,
                      size_t colour, double y) {
  const double layer = kWidth / std::max(report.layers, 1u), part = shard_part(shard, shape);
  const double x = kLeft + layer * stage.layer_begin, width = layer * (stage.layer_end - stage.layer_begin);
  std::string out = label(8, y + 15, shard.device);
  out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"18\" fill=\"none\" stroke=\"#999\"/>\n",
                     x, y, width);
  out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n", x,
                     y + 18 * (1 - part), width, 18 * part, kColours[colour % std::size(kColours)]);
  for (const DeviceShare& share : report.devices) {
    if (share.device != shard.device) continue;
    out += label(kLeft + kWidth + 12, y + 15,
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
  for (const Stage& stage : report.placement.lanes.at(0).stages) {
    for (const Shard& shard : stage.shards) {
      body += shard_row(report, shape, stage, shard, colour++, y);
      y += kRow;
    }
  }
  y += 12;
  for (const LeftOut& out : report.left_out) {
    body += label(8, y + 12, out.device + " is left out: " + out.reason, " fill=\"#a33\"");
    y += 20;
  }
  for (const Alternative& other : report.alternatives) {
    std::string names;
    for (const std::string& device : other.devices) names += (names.empty() ? "" : " + ") + device;
    body += label(8, y + 12, fmt::format("next best: {:.4g} tokens/s with {}", other.tokens_per_s, names),
                  " fill=\"#666\"");
    y += 20;
  }
  const double width = kLeft + kWidth + kRight;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, y + 12);
  out +=
      label(8, 20,
            fmt::format("{}: {:.4g} tokens/s predicted, {:.4g} at most, TTFT {:.4g} ms, TPOT {:.4g} ms, KV {} tokens",
                        shape.name, report.predicted.tokens_per_s, report.bound_tokens_per_s, report.predicted.ttft_ms,
                        report.predicted.tpot_ms, report.kv_capacity_tokens),
            " font-size=\"14\" font-weight=\"bold\"");
  out += label(kLeft, 46, "layer 0") + label(kLeft + kWidth, 46, std::to_string(report.layers), " text-anchor=\"end\"");
  return out + body + "</svg>\n";
}

}  // namespace motley
