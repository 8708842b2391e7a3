#include "sim/catalogue.hpp"

#include <cstdio>

#include "kit/kit.hpp"
#include "sim/inner.hpp"
#include "sim/rules.hpp"

namespace motley::sim {
namespace {

// The name as given where it fits, else the end of it, which holds the file's name.
std::string label_of(const std::string& name) {
  constexpr size_t kRoom = sizeof motley_device_desc::label - 1;
  return name.size() <= kRoom ? name : name.substr(name.size() - kRoom);
}

}  // namespace

Catalogue& Catalogue::instance() {
  static Catalogue catalogue;
  return catalogue;
}

Catalogue::Catalogue() {
  for (const Spec& preset : presets()) entries_.push_back({preset.label, "", preset});
}

motley_device_desc Catalogue::describe(const std::string& name) {
  std::lock_guard lock(mutex_);
  for (uint32_t i = 0; i < presets().size(); ++i)
    if (entries_[i].name == name) return describe_locked(i);
  Entry entry{name, read_spec_file(name), {}};
  for (uint32_t i = 0; i < entries_.size(); ++i)
    if (entries_[i].name == entry.name && entries_[i].text == entry.text) return describe_locked(i);
  entry.spec = parse_spec(entry.text, name);
  entry.spec.label = label_of(name);
  entry.spec.text_hash = hash_of_text(entry.text);
  if (entries_.size() >= kDevicesMax)
    kit::fail(MOTLEY_RESOURCE_EXHAUSTED, "%s: this process has described %zu devices", name.c_str(), kDevicesMax);
  entries_.push_back(std::move(entry));
  return describe_locked(static_cast<uint32_t>(entries_.size() - 1));
}

motley_device_desc Catalogue::describe(uint32_t index) {
  std::lock_guard lock(mutex_);
  if (index >= entries_.size()) kit::fail(MOTLEY_NOT_FOUND, "simulated device %u of %zu", index, entries_.size());
  return describe_locked(index);
}

Spec Catalogue::spec(uint32_t index) {
  std::lock_guard lock(mutex_);
  if (index >= entries_.size()) kit::fail(MOTLEY_NOT_FOUND, "simulated device %u of %zu", index, entries_.size());
  return entries_[index].spec;
}

motley_device_desc Catalogue::describe_locked(uint32_t index) const {
  const Spec& spec = entries_[index].spec;
  const motley_device_desc cpu = inner_desc();
  motley_device_desc desc{};
  desc.index = index;
  std::snprintf(desc.family, sizeof desc.family, "SIM");
  std::snprintf(desc.label, sizeof desc.label, "%s", spec.label.c_str());
  desc.kind = spec.kind;
  desc.tier = MOTLEY_TIER_CONTRACT_TESTED;
  desc.simulated = 1;
  std::snprintf(desc.vendor, sizeof desc.vendor, "Motley");
  const bool large = spec.declared_gflops >= 1000;
  std::snprintf(desc.model, sizeof desc.model, "simulated; declares %.3g %s/s, %.4g GB/s",
                large ? spec.declared_gflops / 1000 : spec.declared_gflops, large ? "TFLOP" : "GFLOP",
                spec.declared_bandwidth_gb_s);
  if (spec.rules.compile_s > 0) std::snprintf(desc.driver, sizeof desc.driver, "%s", spec.rules.driver.c_str());
  desc.memory_total = desc.memory_free = spec.memory_bytes;
  desc.memory_group = spec.memory_group;
  desc.caps = cpu.caps & ~static_cast<uint64_t>(MOTLEY_CAP_HOST_MEMORY);
  const Rules& rules = spec.rules;
  if (!rules.dynamic_rows) desc.caps &= ~static_cast<uint64_t>(MOTLEY_CAP_DYNAMIC_ROWS);
  if (!rules.paged_attention)
    desc.caps &= ~static_cast<uint64_t>(MOTLEY_CAP_PAGED_ATTENTION | MOTLEY_CAP_PARTIAL_ATTENTION);
  desc.ops = ops_of(rules, cpu.ops);
  desc.weight_dtypes = rules.weight_formats ? cpu.weight_dtypes & rules.weight_formats : cpu.weight_dtypes;
  desc.kv_dtypes = rules.paged_attention ? cpu.kv_dtypes : 0;
  desc.result_dtype = rules.f16_results || rules.f16_sums ? MOTLEY_F16 : MOTLEY_F32;
  desc.alignment = cpu.alignment;
  desc.queues_max = cpu.queues_max, desc.queue_depth = spec.queue_depth;
  return desc;
}

}  // namespace motley::sim
