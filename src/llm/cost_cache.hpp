// CostCache: what was measured of devices, kept on disk.
//
// One file for each set of devices and model shape, named by a digest of both; the JSON is planner/profile_json.hpp's,
// read as strictly as any file. A file that cannot be read is measured anew; writing is by rename, so that two programs
// may share the folder.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "llm/device_set.hpp"
#include "model/model.hpp"
#include "planner/profile.hpp"

namespace motley {

// 16 hexadecimal digits.
std::string text_digest(std::string_view text);
// Such as change with anything that decides how long the model's parts take: names, shapes and types of its weights,
// and its sizes.
std::string model_digest(const Model& model);
// The same of the devices: names, models, kernel variants, memory, plugin versions; what a described one's file says.
std::string machine_digest(std::span<const ListedDevice> devices);

class CostCache {
 public:
  explicit CostCache(std::filesystem::path folder) : folder_(std::move(folder)) {}
  // Any text under a kind of its own.
  std::optional<std::string> read_text(std::string_view machine, std::string_view kind) const;
  void write_text(std::string_view machine, std::string_view kind, std::string_view text) const;
  // The same; "" removes it.
  void note(std::string_view machine, std::string_view kind, std::string_view text) const;
  std::optional<PlanInput> read(std::string_view machine, std::string_view model) const;
  // A failure is logged: the next start measures again.
  void write(std::string_view machine, std::string_view model, const PlanInput& input) const;

 private:
  std::filesystem::path file_of(std::string_view machine, std::string_view model) const;
  std::filesystem::path folder_;
};

}  // namespace motley
