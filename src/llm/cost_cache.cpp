#include "llm/cost_cache.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "planner/profile_json.hpp"

namespace motley {
namespace {

constexpr uint64_t kSpecBytesMax = 1u << 20;
constexpr int kVersion = 17;  // of what is measured and how

}  // namespace

std::string text_digest(std::string_view text) { return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size())); }

std::string model_digest(const Model& model) {
  const ModelConfig& c = model.config();
  std::string text = fmt::format("{} {} {} {} {} {} {} {} {}", c.architecture, c.layers, c.hidden, c.vocab_size,
                                 c.heads, c.kv_heads, c.head_dim, c.ffn, c.context_length);
  const auto& weights = model.graph().weights;
  for (size_t i = 0; i < weights.size(); ++i) {
    const WeightSource& source = model.weight(i);
    text += fmt::format("\n{} {} {} {} {}", weights[i].name, source.dtype, source.experts, source.rows, source.cols);
  }
  return text_digest(text);
}

std::string machine_digest(std::span<const ListedDevice> devices) {
  std::string text;
  for (const ListedDevice& device : devices) {
    const motley_device_desc& d = device.description.desc;
    text +=
        fmt::format("{} {} {} {} {} {:x} {} {} {}\n", device.description.name, d.vendor, d.model, d.variant, d.driver,
                    d.weight_dtypes, d.memory_total, device.plugin->api().name, device.plugin->api().version);
    const auto file = read_file(device.spec.substr(device.spec.find(':') + 1), kSpecBytesMax);
    if (file.ok()) text += *file;  // a preset is no file
  }
  return text_digest(text);
}

std::filesystem::path CostCache::file_of(std::string_view machine, std::string_view model) const {
  return folder_ / fmt::format("costs-{}-{}-{}.json", kVersion, machine, model);
}

std::optional<std::string> CostCache::read_text(std::string_view machine, std::string_view kind) const {
  const std::filesystem::path file = file_of(machine, kind);
  std::error_code failed;
  if (!std::filesystem::exists(file, failed)) return std::nullopt;
  auto text = read_file(file, kProfileFileBytesMax);
  if (!text.ok()) return std::nullopt;
  return *std::move(text);
}

void CostCache::write_text(std::string_view machine, std::string_view kind, std::string_view text) const {
  const Status written = write_file(file_of(machine, kind), fmt::format("{}\n", text));
  if (!written.ok()) log_warning("{}; the next start measures again", written.message());
}

void CostCache::note(std::string_view machine, std::string_view kind, std::string_view text) const {
  std::error_code failed;
  if (text.empty()) {
    std::filesystem::remove(file_of(machine, kind), failed);
  } else {
    write_text(machine, kind, text);
  }
}

std::optional<PlanInput> CostCache::read(std::string_view machine, std::string_view model) const {
  const auto text = read_text(machine, model);
  if (!text) return std::nullopt;
  auto input = read_plan_input(*text);
  if (input.ok()) return *std::move(input);
  log_warning("{}: {}; measuring again", file_of(machine, model).string(), input.error().message());
  return std::nullopt;
}

void CostCache::write(std::string_view machine, std::string_view model, const PlanInput& input) const {
  write_text(machine, model, to_json(input));
}

}  // namespace motley
