// ProgramCache: what devices have compiled, kept on disk, so that a later start does not wait for it again.
//
// A file for each segment, its row counts and its device. What is in it is the plugin's
// (motley_backend.export_programs) behind a head of ours with its length and a checksum. What does not match, and what
// the plugin refuses because it is of another driver, is compiled anew and replaced. Writing is by rename: several
// programs may share the folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "device/handles.hpp"

namespace motley {

inline constexpr uint64_t kProgramCacheBytesMax = 8ull << 30;  // what was used longest ago goes

// Thread-safe. Trouble with the folder is logged; then everything is compiled.
class ProgramCache {
 public:
  explicit ProgramCache(std::filesystem::path folder, uint64_t bytes_max = kProgramCacheBytesMax)
      : folder_(std::move(folder)), bytes_max_(bytes_max) {}

  // As Device::compile(). `identity`: any text that differs between devices, plugins and options whose programs do.
  Result<ProgramsHandle> compile(const Device& device, std::string_view identity, const motley_segment& segment,
                                 std::span<motley_weight* const> weights, std::span<const uint32_t> buckets) const;
  // Whether compile() would find it; the plugin may refuse it yet.
  bool holds(std::string_view identity, const motley_segment& segment, std::span<const uint32_t> buckets) const;

 private:
  std::filesystem::path file_of(std::string_view identity, const motley_segment& segment,
                                std::span<const uint32_t> buckets) const;
  void keep(const std::filesystem::path& file, std::span<const std::byte> blob) const;
  void make_room(uint64_t bytes) const;

  const std::filesystem::path folder_;
  const uint64_t bytes_max_;
};

}  // namespace motley
