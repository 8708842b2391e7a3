#include "plan_rows.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/svg.hpp"
#include "planner/plan.hpp"

namespace motley::apps {
namespace {

using Json = nlohmann::ordered_json;

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {values.front(), client::percentile(values, 50), values.back()};
}

// Of one figure of each run.
template <typename Figure>
Spread spread_over(const PlanRow& row, const Figure& figure) {
  std::vector<double> values;
  for (const LoadSeen& run : row.runs) values.push_back(figure(run));
  return spread_of(std::move(values));
}

double percentile_ms(const client::Distribution& distribution, size_t i) {
  return i < distribution.percentiles_ms.size() ? distribution.percentiles_ms[i] : 0;
}

// Positive: more was predicted than seen.
double error_of(const PlanRow& row) { return row.predicted() / tokens_per_s(row).median - 1; }

double ratio_of(const PlanRow& row, const std::vector<PlanRow>& rows) {
  const double plan = tokens_per_s(rows.back()).median;
  return plan > 0 ? tokens_per_s(row).median / plan : 0;
}

std::string ranges_text(const std::vector<UnitRange>& ranges) {
  std::string text;
  for (const UnitRange& range : ranges) text += fmt::format(" {}-{}", range.begin, range.end);
  return text;
}

}  // namespace

double PlanRow::predicted() const {
  double sum = 0;
  for (const PlanReport& engine : engines) sum += engine.predicted.tokens_per_s;
  return sum;
}

Spread tokens_per_s(const PlanRow& row) {
  return spread_over(row, [](const LoadSeen& run) { return run.metrics.output_throughput; });
}

std::vector<DeviceUse> device_uses(const PlanRow& row) {
  if (row.runs.empty()) return {};
  std::vector<DeviceUse> uses = row.runs[0].devices;
  for (size_t i = 0; i < uses.size(); ++i) {
    uses[i].busy = spread_over(row, [i](const LoadSeen& run) { return run.devices[i].busy; }).median;
    uses[i].bytes_per_token =
        spread_over(row, [i](const LoadSeen& run) { return run.devices[i].bytes_per_token; }).median;
    for (const LoadSeen& run : row.runs) uses[i].kv_bytes = std::max(uses[i].kv_bytes, run.devices[i].kv_bytes);
  }
  return uses;
}

std::vector<LinkUse> link_uses(const PlanRow& row) {
  if (row.runs.empty()) return {};
  std::vector<LinkUse> uses = row.runs[0].links;
  for (size_t i = 0; i < uses.size(); ++i)
    uses[i].bytes_per_token =
        spread_over(row, [i](const LoadSeen& run) { return run.links[i].bytes_per_token; }).median;
  return uses;
}

std::string placement_text(const PlanRow& row) {
  std::string text;
  for (const PlanReport& engine : row.engines) {
    std::vector<std::string> stages;
    for (const Lane& lane : engine.placement.lanes) {
      if (!stages.empty()) stages.push_back("beside it");
      for (const Stage& stage : lane.stages) {
        std::vector<std::string> shards;
        for (const Shard& shard : stage.shards)
          shards.push_back(shard.device + (shard.partner.empty() ? "" : " (partner " + shard.partner + ")"));
        const std::string layers = stage.layer_end - stage.layer_begin == 1
                                       ? std::to_string(stage.layer_begin)
                                       : fmt::format("{}-{}", stage.layer_begin, stage.layer_end - 1);
        stages.push_back(fmt::format("{} {}", layers, fmt::join(shards, " + ")));
      }
      for (const KvSection& section : lane.sections) stages.push_back("a section with " + section.owner);
    }
    text += fmt::format("{}{}", text.empty() ? "" : " | ", fmt::join(stages, "; "));
  }
  return text;
}

std::string placement_key(const PlanRow& row) {
  std::string key = placement_text(row);
  for (const PlanReport& engine : row.engines) {
    for (const Lane& lane : engine.placement.lanes) {
      key += fmt::format(" pool {} blocks {} batches {} chunks {} {}{} share {}", lane.pool, lane.kv_blocks,
                         lane.micro_batches, lane.chunk_rows, lane.prefills, lane.decodes, lane.share);
      for (const KvSection& section : lane.sections) key += fmt::format(" {} {}", section.owner, section.blocks);
      for (const PairRoute& route : lane.routes)
        key += fmt::format(" {} {} {}", route.a, route.b, static_cast<int>(route.route));
      for (const Stage& stage : lane.stages) {
        for (const Shard& shard : stage.shards) {
          key += fmt::format(" kv{} q{} ffn{} vocab{} experts {}", ranges_text(shard.kv_heads),
                             ranges_text(shard.query_heads), ranges_text(shard.ffn_columns),
                             ranges_text(shard.vocab_rows), fmt::join(shard.experts, ","));
        }
      }
    }
  }
  return key;
}

// ---- text

namespace {

using Cells = std::vector<std::string>;

std::string markdown(const std::vector<Cells>& lines) {
  std::vector<size_t> widths(lines[0].size(), 3);
  for (const Cells& line : lines) {
    for (size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
  }
  std::string text;
  for (size_t l = 0; l < lines.size(); ++l) {
    for (size_t c = 0; c < lines[l].size(); ++c) text += fmt::format("| {:<{}} ", lines[l][c], widths[c]);
    text += "|\n";
    if (l > 0) continue;
    for (const size_t width : widths) text += fmt::format("|{:-<{}}", "", width + 2);
    text += "|\n";
  }
  return text;
}

// One entry a device, as `figure` shows it.
template <typename Figure>
std::string each_device(const std::vector<DeviceUse>& uses, const Figure& figure) {
  Cells cells;
  for (const DeviceUse& use : uses) cells.push_back(fmt::format("{} {}", use.device, figure(use)));
  return fmt::format("{}", fmt::join(cells, ", "));
}

std::string link_text(const LinkUse& use) {
  return fmt::format("{} - {} {}", use.a, use.b, bytes_text(static_cast<uint64_t>(use.bytes_per_token)));
}

std::string each_link(const PlanRow& row) {
  Cells cells;
  for (const LinkUse& use : link_uses(row)) cells.push_back(link_text(use));
  return cells.empty() ? "-" : fmt::format("{}", fmt::join(cells, ", "));
}

Cells line_of(const PlanRow& row, const std::vector<PlanRow>& rows) {
  if (row.runs.empty()) {
    Cells cells(10, "-");
    cells[0] = row.name;
    if (!row.engines.empty()) cells[2] = fmt::format("{:.1f}", row.predicted());
    return cells;
  }
  const auto times = [&](client::Distribution client::Metrics::*which) {
    const auto at = [&](size_t i) {
      return spread_over(row, [&](const LoadSeen& run) { return percentile_ms(run.metrics.*which, i); }).median;
    };
    return fmt::format("{:.3g} / {:.3g}", at(0), at(1));
  };
  const Spread seen = tokens_per_s(row);
  const std::vector<DeviceUse> uses = device_uses(row);
  return {row.name,
          fmt::format("{:.1f} ({:.1f}-{:.1f})", seen.median, seen.least, seen.most),
          fmt::format("{:.1f}", row.predicted()),
          fmt::format("{:+.1f} %", 100 * error_of(row)),
          times(&client::Metrics::ttft),
          times(&client::Metrics::tpot),
          each_device(uses, [](const DeviceUse& use) { return bytes_text(use.memory_bytes()); }),
          each_link(row),
          each_device(uses, [](const DeviceUse& use) { return fmt::format("{:.0f} %", 100 * use.busy); }),
          fmt::format("{:.2f}", ratio_of(row, rows))};
}

}  // namespace

std::string rows_text(const PlanRowsTitle& title, const std::vector<PlanRow>& rows) {
  std::string text =
      fmt::format("{} on {}: {} requests of {} + {} tokens, {} at once, seed {}; medians (least-most) of {} runs\n\n",
                  title.model, fmt::join(title.devices, ", "), title.num_prompts, title.input_len, title.output_len,
                  title.concurrency, title.seed, title.repeat);
  std::vector<Cells> lines = {{"placement", "output tok/s", "predicted", "error", "TTFT p50 / p99, ms",
                               "TPOT p50 / p99, ms", "peak memory", "a link, a token", "busy", "of the plan"}};
  for (const PlanRow& row : rows) lines.push_back(line_of(row, rows));
  text += markdown(lines) + "\n";
  for (const PlanRow& row : rows) {
    const std::string placed = row.engines.empty() ? "cannot be" : "layers " + placement_text(row);
    const std::string same = row.same_as ? fmt::format("; the same as {}", rows[*row.same_as].name) : "";
    text += fmt::format("- {}: {}{}{}{}\n", row.name, placed, same, row.note.empty() ? "" : ": ", row.note);
  }
  return text;
}

// ---- JSON

namespace {

Json json_of(const Spread& spread) {
  return {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}};
}

Json percentiles_json(const PlanRow& row, client::Distribution client::Metrics::*which) {
  Json json;
  for (const auto& [name, i] : {std::pair{"p50", size_t{0}}, std::pair{"p99", size_t{1}}}) {
    json[name] =
        json_of(spread_over(row, [&, i = i](const LoadSeen& run) { return percentile_ms(run.metrics.*which, i); }));
  }
  return json;
}

Json predicted_json(const PlanRow& row) {
  Json engines = Json::array();
  for (const PlanReport& engine : row.engines) {
    engines.push_back({{"output_tokens_per_s", engine.predicted.tokens_per_s},
                       {"ttft_ms", engine.predicted.ttft_ms},
                       {"tpot_ms", engine.predicted.tpot_ms},
                       {"concurrency", engine.predicted.concurrency},
                       {"micro_batches", engine.predicted.micro_batches}});
  }
  return {{"output_tokens_per_s", row.predicted()}, {"engines", engines}};
}

Json devices_json(const PlanRow& row) {
  Json devices = Json::array();
  for (const DeviceUse& use : device_uses(row)) {
    devices.push_back({{"device", use.device},
                       {"busy", use.busy},
                       {"bytes_per_token", use.bytes_per_token},
                       {"memory_bytes", use.memory_bytes()},
                       {"weight_bytes", use.weight_bytes},
                       {"kv_bytes", use.kv_bytes},
                       {"other_bytes", use.other_bytes}});
  }
  return devices;
}

Json links_json(const PlanRow& row) {
  Json links = Json::array();
  for (const LinkUse& use : link_uses(row))
    links.push_back({{"a", use.a}, {"b", use.b}, {"bytes_per_token", use.bytes_per_token}});
  return links;
}

Json row_json(const PlanRow& row, const std::vector<PlanRow>& rows) {
  Json json = {{"kind", row.kind}, {"name", row.name}, {"note", row.note}, {"placement", placement_text(row)}};
  json["same_as"] = row.same_as ? Json(rows[*row.same_as].name) : Json();
  json["predicted"] = row.engines.empty() ? Json() : predicted_json(row);
  json["measured"] = Json();
  if (row.runs.empty()) return json;
  Json runs = Json::array();
  for (const LoadSeen& run : row.runs) {
    runs.push_back({{"duration_s", run.metrics.duration_s},
                    {"completed", run.metrics.completed},
                    {"output_tokens_per_s", run.metrics.output_throughput},
                    {"total_tokens_per_s", run.metrics.total_token_throughput}});
  }
  json["measured"] = {{"output_tokens_per_s", json_of(tokens_per_s(row))},
                      {"ttft_ms", percentiles_json(row, &client::Metrics::ttft)},
                      {"tpot_ms", percentiles_json(row, &client::Metrics::tpot)},
                      {"devices", devices_json(row)},
                      {"links", links_json(row)},
                      {"runs", runs}};
  json["prediction_error"] = error_of(row);
  json["ratio_to_plan"] = ratio_of(row, rows);
  return json;
}

}  // namespace

std::string rows_json(const PlanRowsTitle& title, const std::vector<PlanRow>& rows) {
  Json json = {{"model", title.model},
               {"devices", title.devices},
               {"num_prompts", title.num_prompts},
               {"input_len", title.input_len},
               {"output_len", title.output_len},
               {"concurrency", title.concurrency},
               {"repeat", title.repeat},
               {"seed", title.seed}};
  json["rows"] = Json::array();
  for (const PlanRow& row : rows) json["rows"].push_back(row_json(row, rows));
  return json.dump(2) + "\n";
}

// ---- SVG

std::string rows_svg(const PlanRowsTitle& title, const std::vector<PlanRow>& rows) {
  constexpr double kLeft = 190, kWidth = 460, kBusy = 760, kBusyWidth = 90, kPitch = 140, kRow = 30, kTop = 70,
                   kBar = 18, kLetter = 6, kLinksTitle = 140;
  double most = 1e-9;
  for (const PlanRow& row : rows) most = std::max({most, row.predicted(), tokens_per_s(row).median});
  std::map<std::string, size_t> column;
  for (const std::string& device : title.devices) column.emplace(device, column.size());
  std::string body = svg_text(8, 20,
                              fmt::format("{}: {} requests of {} + {} tokens, {} at once", title.model,
                                          title.num_prompts, title.input_len, title.output_len, title.concurrency),
                              " font-size=\"14\" font-weight=\"bold\"");
  body += svg_text(kLeft, 58, "output tokens/s; the tick: predicted", " fill=\"#666\"");
  for (const auto& [device, c] : column)
    body += svg_text(kBusy + kPitch * static_cast<double>(c), 58, device + " busy", " fill=\"#666\" font-size=\"10\"");
  const double links = kBusy + kPitch * static_cast<double>(column.size());
  body += svg_text(links, 58, "over a link, for a token", " fill=\"#666\" font-size=\"10\"");
  double y = kTop, width = kLinksTitle;
  for (const PlanRow& row : rows) {
    body += svg_text(8, y + 14, row.name, row.kind == "plan" ? " font-weight=\"bold\"" : "");
    if (row.runs.empty()) {
      body += svg_text(kLeft, y + 14, row.engines.empty() ? "cannot be" : "failed", " fill=\"#a33\"");
    } else {
      const double seen = tokens_per_s(row).median;
      body += svg_rect(kLeft, y, kWidth * seen / most, kBar, svg_colour(row.kind == "plan" ? 1 : 0));
      body += svg_rect(kLeft + kWidth * row.predicted() / most - 1, y - 3, 2, kBar + 6, "#222");
      body +=
          svg_text(kLeft + kWidth * std::max(seen, row.predicted()) / most + 8, y + 14, fmt::format("{:.4g}", seen));
    }
    for (const DeviceUse& use : device_uses(row)) {
      const double x = kBusy + kPitch * static_cast<double>(column[use.device]);
      body += svg_rect(x, y, kBusyWidth, kBar, "#eee");
      body += svg_rect(x, y, kBusyWidth * std::min(use.busy, 1.0), kBar, svg_colour(2));
      body += svg_text(x + 4, y + 14, fmt::format("{:.0f} %", 100 * use.busy), " font-size=\"10\"");
    }
    const std::string moved = each_link(row);
    body += svg_text(links, y + 14, moved, " font-size=\"10\"");
    width = std::max(width, kLetter * static_cast<double>(moved.size()));
    y += kRow;
  }
  return svg_document(links + width + 8, y + 8, body);
}

}  // namespace motley::apps
