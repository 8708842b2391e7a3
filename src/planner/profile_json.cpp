#include "planner/profile_json.hpp"

#include <nlohmann/json.hpp>

#include "planner/json_fields.hpp"

namespace motley {
namespace {

using nlohmann::ordered_json;
using planner::JsonFields;

constexpr double kNsPerUs = 1000;
constexpr double kGbPerSMax = 1e9;
constexpr size_t kLinksMax = kPlanDevicesMax * kPlanDevicesMax;

std::string dump(const ordered_json& json) {
  return json.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

ordered_json table_json(const CostTable& table) {
  return {{"rows", table.rows}, {"units", table.units}, {"ns", table.ns}};
}

ordered_json curve_json(const RowCurve& curve, const char* values) {
  return {{"rows", curve.rows}, {values, curve.values}};
}

// No time a byte is a rate without bound; the file says 0.
template <typename Cost>
ordered_json rates_json(const Cost& cost) {
  return {{"latency_us", cost.latency_ns / kNsPerUs}, {"gb_per_s", cost.ns_per_byte > 0 ? 1 / cost.ns_per_byte : 0}};
}

template <typename Cost>
Status read_rates(const JsonFields& fields, Cost* cost) {
  double rate = 0;
  RETURN_IF_ERROR(fields.number("latency_us", &cost->latency_ns, 0, 1e9));
  RETURN_IF_ERROR(fields.number("gb_per_s", &rate, 0, kGbPerSMax));
  if (rate > 0 && rate < 1e-9) return fields.wrong("gb_per_s", "is below 1e-9; 0 stands for no limit");
  cost->latency_ns *= kNsPerUs;
  cost->ns_per_byte = rate > 0 ? 1 / rate : 0;
  return ok_status();
}

ordered_json device_json(const DeviceProfile& device) {
  ordered_json json = {{"name", device.name}, {"kind", device.kind}};
  if (!device.memory_group.empty()) json["memory_group"] = device.memory_group;
  if (!device.format.empty()) json["format"] = device.format;
  json["memory_bytes"] = {{"total", device.memory_total}, {"free", device.memory_free}};
  if (device.roughly_with > 0) json["roughly_with_bytes"] = device.roughly_with;
  if (device.own_memory) json["own_memory"] = true;
  if (!device.attends) json["attends"] = false;
  if (!device.attends_partially) json["attends_partially"] = false;
  if (!device.holds_vocabulary) json["holds_vocabulary"] = false;
  if (!device.buckets.empty()) json["buckets"] = device.buckets;
  if (!device.uncompiled.empty()) json["uncompiled"] = device.uncompiled;
  const std::pair<const char*, const CostTable*> tables[] = {
      {"attention", &device.attention}, {"ffn", &device.ffn},   {"experts", &device.experts},
      {"layer", &device.layer},         {"head", &device.head}, {"embed", &device.embed}};
  for (const auto& [name, table] : tables) {
    if (!table->empty()) json[name] = table_json(*table);
  }
  json["context"] = curve_json(device.context, "ns");
  if (device.chunk_context_ns) json["chunk_context_ns"] = *device.chunk_context_ns;
  if (!device.sequences.rows.empty()) json["sequences"] = curve_json(device.sequences, "ns");
  if (device.mixed > 0) json["mixed"] = device.mixed;
  if (device.wait_ns > 0) json["wait_ns"] = device.wait_ns;
  if (device.wake_ns > 0) json["wake_ns"] = device.wake_ns;
  if (device.copy.latency_ns > 0 || device.copy.ns_per_byte > 0) json["copy"] = rates_json(device.copy);
  json["sample_ns"] = device.sample_ns;
  json["packed_ratio"] = device.packed_ratio;
  if (!device.together.rows.empty()) json["together"] = curve_json(device.together, "factors");
  if (device.context_together > 1) json["context_together"] = device.context_together;
  return json;
}

Status read_table(const JsonFields& device, const char* name, CostTable* table) {
  const hf::JsonValue* field = device.find(name);
  if (field == nullptr) return ok_status();
  const JsonFields fields(*field, device.where() + "." + name);
  RETURN_IF_ERROR(fields.check_names({"rows", "units", "ns"}));
  RETURN_IF_ERROR(fields.whole_numbers("rows", &table->rows, kCostPointsMax));
  RETURN_IF_ERROR(fields.whole_numbers("units", &table->units, kCostPointsMax));
  const hf::JsonValue::Array* lines = nullptr;
  RETURN_IF_ERROR(fields.list("ns", &lines, kCostPointsMax));
  for (const hf::JsonValue& line : *lines) {
    std::vector<double> times;
    if (line.array() == nullptr || line.array()->size() > kCostPointsMax) return fields.wrong("ns", "is no table");
    for (const hf::JsonValue& time : *line.array()) {
      if (!time.number()) return fields.wrong("ns", "must hold numbers");
      times.push_back(*time.number());
    }
    table->ns.push_back(std::move(times));
  }
  if (Status status = table->check(); !status.ok()) return status.annotate(fields.where());
  table->make_monotone();
  return ok_status();
}

Status read_curve(const JsonFields& device, const char* name, const char* values, RowCurve* curve) {
  const hf::JsonValue* field = device.find(name);
  if (field == nullptr) return ok_status();
  const JsonFields fields(*field, device.where() + "." + name);
  RETURN_IF_ERROR(fields.check_names({"rows", values}));
  RETURN_IF_ERROR(fields.whole_numbers("rows", &curve->rows, kCostPointsMax));
  return fields.numbers(values, &curve->values, kCostPointsMax);
}

Status read_parts(const JsonFields& fields, DeviceProfile* device) {
  const std::pair<const char*, CostTable*> tables[] = {{"attention", &device->attention}, {"ffn", &device->ffn},
                                                       {"experts", &device->experts},     {"layer", &device->layer},
                                                       {"head", &device->head},           {"embed", &device->embed}};
  for (const auto& [name, table] : tables) RETURN_IF_ERROR(read_table(fields, name, table));
  if (device->attention.empty()) return fields.wrong("attention", "is missing");
  if (device->head.empty() && device->holds_vocabulary) return fields.wrong("head", "is missing");
  if (device->embed.empty() && device->holds_vocabulary) return fields.wrong("embed", "is missing");
  if (device->ffn.empty() && device->experts.empty()) return fields.wrong("ffn", "is missing");
  if (fields.find("context") == nullptr && device->attends) return fields.wrong("context", "is missing");
  RETURN_IF_ERROR(read_curve(fields, "context", "ns", &device->context));
  RETURN_IF_ERROR(read_curve(fields, "sequences", "ns", &device->sequences));
  return read_curve(fields, "together", "factors", &device->together);
}

Result<DeviceProfile> read_device(const hf::JsonValue& json, std::string where) {
  const JsonFields fields(json, std::move(where));
  RETURN_IF_ERROR(fields.check_names({"name",
                                      "kind",
                                      "memory_group",
                                      "format",
                                      "memory_bytes",
                                      "roughly_with_bytes",
                                      "attention",
                                      "ffn",
                                      "experts",
                                      "layer",
                                      "head",
                                      "embed",
                                      "context",
                                      "chunk_context_ns",
                                      "sequences",
                                      "mixed",
                                      "wait_ns",
                                      "wake_ns",
                                      "sample_ns",
                                      "copy",
                                      "packed_ratio",
                                      "together",
                                      "context_together",
                                      "copies",
                                      "attends",
                                      "attends_partially",
                                      "holds_vocabulary",
                                      "buckets",
                                      "uncompiled",
                                      "own_memory"}));
  DeviceProfile device;
  RETURN_IF_ERROR(fields.text("name", &device.name));
  RETURN_IF_ERROR(fields.text("kind", &device.kind));
  RETURN_IF_ERROR(fields.text("memory_group", &device.memory_group, false));
  RETURN_IF_ERROR(fields.text("format", &device.format, false));
  if (fields.find("memory_bytes") == nullptr) return fields.wrong("memory_bytes", "is missing");
  const JsonFields memory(*fields.find("memory_bytes"), fields.where() + ".memory_bytes");
  RETURN_IF_ERROR(memory.check_names({"total", "free"}));
  RETURN_IF_ERROR(memory.whole("total", &device.memory_total, 0, INT64_MAX));
  RETURN_IF_ERROR(memory.whole("free", &device.memory_free, 0, INT64_MAX));
  RETURN_IF_ERROR(fields.whole("roughly_with_bytes", &device.roughly_with, 0, INT64_MAX, false));
  RETURN_IF_ERROR(fields.flag("own_memory", &device.own_memory));
  RETURN_IF_ERROR(fields.flag("attends", &device.attends));
  RETURN_IF_ERROR(fields.flag("attends_partially", &device.attends_partially));
  RETURN_IF_ERROR(fields.flag("holds_vocabulary", &device.holds_vocabulary));
  RETURN_IF_ERROR(fields.whole_numbers("buckets", &device.buckets, kCostPointsMax, false));
  RETURN_IF_ERROR(fields.whole_numbers("uncompiled", &device.uncompiled, kCostPointsMax, false));
  if (fields.find("chunk_context_ns") != nullptr)
    RETURN_IF_ERROR(fields.number("chunk_context_ns", &device.chunk_context_ns.emplace(), 0, kCostNsMax));
  RETURN_IF_ERROR(fields.number("mixed", &device.mixed, 0, kMixedMax, false));
  RETURN_IF_ERROR(fields.number("wait_ns", &device.wait_ns, 0, kCostNsMax, false));
  RETURN_IF_ERROR(fields.number("wake_ns", &device.wake_ns, 0, kCostNsMax, false));
  if (const hf::JsonValue* copy = fields.find("copy")) {
    const JsonFields rates(*copy, fields.where() + ".copy");
    RETURN_IF_ERROR(rates.check_names({"latency_us", "gb_per_s"}));
    RETURN_IF_ERROR(read_rates(rates, &device.copy));
  }
  RETURN_IF_ERROR(fields.whole("sample_ns", &device.sample_ns, 0, static_cast<int64_t>(kCostNsMax)));
  RETURN_IF_ERROR(fields.number("packed_ratio", &device.packed_ratio, 1e-3, 64));
  RETURN_IF_ERROR(fields.number("context_together", &device.context_together, 1, kSlowdownMax, false));
  RETURN_IF_ERROR(read_parts(fields, &device));
  PlanInput alone;
  alone.devices.push_back(std::move(device));
  RETURN_IF_ERROR(check_plan_input(alone));
  return std::move(alone.devices[0]);
}

Result<hf::JsonValue> parse(std::string_view text) {
  if (text.size() > kProfileFileBytesMax) {
    return invalid_argument("{} bytes; such a file has at most {}", text.size(), kProfileFileBytesMax);
  }
  return hf::parse_json(text);
}

Status read_links(const JsonFields& file, PlanInput* input) {
  const hf::JsonValue::Array* links = nullptr;
  RETURN_IF_ERROR(file.list("links", &links, kLinksMax, false));
  for (size_t i = 0; links != nullptr && i < links->size(); ++i) {
    const JsonFields fields((*links)[i], fmt::format("links[{}]", i));
    RETURN_IF_ERROR(fields.check_names({"a", "b", "latency_us", "gb_per_s", "route"}));
    LinkProfile link;
    RETURN_IF_ERROR(fields.text("a", &link.a));
    RETURN_IF_ERROR(fields.text("b", &link.b));
    RETURN_IF_ERROR(read_rates(fields, &link));
    RETURN_IF_ERROR(fields.route("route", &link.route));
    input->links.push_back(std::move(link));
  }
  if (const hf::JsonValue* host = file.find("host_memory")) {
    const JsonFields fields(*host, "host_memory");
    RETURN_IF_ERROR(fields.check_names({"latency_us", "gb_per_s"}));
    RETURN_IF_ERROR(read_rates(fields, &input->host_memory));
  }
  const hf::JsonValue* caps = file.find("memory_caps");
  if (caps == nullptr) return ok_status();
  const JsonFields fields(*caps, "memory_caps");
  if (caps->object() == nullptr || caps->object()->size() > kPlanDevicesMax)
    return fields.wrong("", "is not an object");
  for (const auto& [name, bytes] : *caps->object()) {
    RETURN_IF_ERROR(fields.whole(name, &input->memory_caps[name], 0, INT64_MAX));
  }
  return ok_status();
}

}  // namespace

std::string to_json(const DeviceProfile& device) { return dump(device_json(device)); }

std::string to_json(const PlanInput& input) {
  ordered_json json = {{"devices", ordered_json::array()}, {"links", ordered_json::array()}};
  for (const DeviceProfile& device : input.devices) json["devices"].push_back(device_json(device));
  for (const LinkProfile& link : input.links) {
    ordered_json one = {{"a", link.a}, {"b", link.b}};
    one.update(rates_json(link));
    one["route"] = route_name(link.route);
    json["links"].push_back(std::move(one));
  }
  json["host_memory"] = rates_json(input.host_memory);
  if (!input.memory_caps.empty()) json["memory_caps"] = input.memory_caps;
  return dump(json);
}

Result<DeviceProfile> read_device_profile(std::string_view text) {
  ASSIGN_OR_RETURN(const hf::JsonValue json, parse(text));
  return read_device(json, "device");
}

Result<PlanInput> read_plan_input(std::string_view text) {
  ASSIGN_OR_RETURN(const hf::JsonValue json, parse(text));
  const JsonFields fields(json, "");
  RETURN_IF_ERROR(fields.check_names({"devices", "links", "host_memory", "memory_caps"}));
  const hf::JsonValue::Array* devices = nullptr;
  RETURN_IF_ERROR(fields.list("devices", &devices, kPlanDevicesMax));
  PlanInput input;
  for (size_t d = 0; d < devices->size(); ++d) {
    const std::string where = fmt::format("devices[{}]", d);
    ASSIGN_OR_RETURN(DeviceProfile device, read_device((*devices)[d], where));
    size_t copies = 0;
    RETURN_IF_ERROR(JsonFields((*devices)[d], where).whole("copies", &copies, 1, kPlanDevicesMax, false));
    if (input.devices.size() + std::max<size_t>(copies, 1) > kPlanDevicesMax) {
      return invalid_argument("more than {} devices", kPlanDevicesMax);
    }
    for (size_t i = 0; i < copies; ++i) {
      input.devices.push_back(device);
      input.devices.back().name += fmt::format("/{}", i);
    }
    if (copies == 0) input.devices.push_back(std::move(device));
  }
  RETURN_IF_ERROR(read_links(fields, &input));
  RETURN_IF_ERROR(check_plan_input(input));
  return input;
}

}  // namespace motley
