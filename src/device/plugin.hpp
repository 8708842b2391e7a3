// Plugin: one loaded shared library and its table of functions.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "motley/backend.h"

namespace motley {

// Immutable after open; safe from any thread. Must outlive every handle made through api().
class Plugin {
 public:
  // NOT_FOUND, FAILED_PRECONDITION (no entry, another ABI), with the loader's own words.
  static Result<std::unique_ptr<Plugin>> open(const std::filesystem::path& file);
  ~Plugin();
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;

  const motley_backend& api() const { return *api_; }
  const std::filesystem::path& file() const { return file_; }
  // Empty with a reason in the status when the plugin finds no device. left_out: what it saw beside those it lists.
  Result<std::vector<motley_device_desc>> enumerate(std::string* left_out = nullptr) const;
  // A device that is not enumerated but can be named. UNIMPLEMENTED where the plugin has none.
  Result<motley_device_desc> describe(const std::string& spec) const;

 private:
  Plugin(void* library, const motley_backend* api, std::filesystem::path file)
      : library_(library), api_(api), file_(std::move(file)) {}
  void* library_;
  const motley_backend* api_;
  std::filesystem::path file_;
};

// The ABI's answer as a Status; `what` names the call.
Status to_status(motley_code code, const motley_error& error, std::string_view what);

}  // namespace motley
