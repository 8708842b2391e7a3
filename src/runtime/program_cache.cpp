#include "runtime/program_cache.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"

namespace motley {
namespace {

constexpr char kMagic[8] = {'M', 'T', 'L', 'Y', 'P', 'R', 'G', '1'};

struct Head {
  char magic[8];
  uint64_t bytes, checksum;  // of what follows
};

Head head_of(std::span<const std::byte> blob) {
  Head head{};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  head.bytes = blob.size();
  head.checksum = hash_bytes(kHashStart, blob.data(), blob.size());
  return head;
}

// The blob in the text of a file; none where it is broken.
std::optional<std::span<const std::byte>> blob_in(std::string_view text) {
  if (text.size() < sizeof(Head)) return std::nullopt;
  const auto blob = std::as_bytes(std::span(text)).subspan(sizeof(Head));
  const Head wanted = head_of(blob);
  if (std::memcmp(text.data(), &wanted, sizeof wanted) != 0) return std::nullopt;
  return blob;
}

}  // namespace

std::filesystem::path ProgramCache::file_of(std::string_view identity, const motley_segment& segment,
                                            std::span<const uint32_t> buckets) const {
  uint64_t hash = hash_bytes(kHashStart, identity.data(), identity.size());
  hash = hash_bytes(hash, buckets.data(), buckets.size_bytes());
  return folder_ / fmt::format("{:016x}-{:016x}.programs", hash, segment.hash);
}

bool ProgramCache::holds(std::string_view identity, const motley_segment& segment,
                         std::span<const uint32_t> buckets) const {
  std::error_code failed;
  return std::filesystem::is_regular_file(file_of(identity, segment, buckets), failed);
}

Result<ProgramsHandle> ProgramCache::compile(const Device& device, std::string_view identity,
                                             const motley_segment& segment, std::span<motley_weight* const> weights,
                                             std::span<const uint32_t> buckets) const {
  if (!device.makes_blobs()) return device.compile(segment, weights, buckets);
  const std::filesystem::path file = file_of(identity, segment, buckets);
  std::error_code failed;
  if (std::filesystem::is_regular_file(file, failed)) {
    const auto text = read_file(file.string(), bytes_max_);
    const auto blob = text.ok() ? blob_in(*text) : std::nullopt;
    if (!blob) {
      log_warning("{} is broken; compiling again", file.string());
    } else {
      auto programs = device.compile(segment, weights, buckets, *blob);
      if (programs.ok()) std::filesystem::last_write_time(file, std::filesystem::file_time_type::clock::now(), failed);
      if (programs.ok() || programs.error().code() != MOTLEY_FAILED_PRECONDITION) return programs;
      log_info("{}: {}", file.string(), programs.error().message());
    }
  }
  ASSIGN_OR_RETURN(ProgramsHandle programs, device.compile(segment, weights, buckets));
  if (const auto blob = device.export_programs(programs); blob.ok()) keep(file, *blob);
  return programs;
}

void ProgramCache::keep(const std::filesystem::path& file, std::span<const std::byte> blob) const {
  const Head head = head_of(blob);
  const uint64_t bytes = sizeof head + blob.size();
  if (bytes > bytes_max_) return;
  make_room(bytes);
  std::string text(bytes, '\0');
  std::memcpy(text.data(), &head, sizeof head);
  if (!blob.empty()) std::memcpy(text.data() + sizeof head, blob.data(), blob.size());
  if (const Status written = write_file(file, text); !written.ok())
    log_warning("{}; the next start compiles again", written.message());
}

// Removes what was used longest ago until so many bytes more are within the limit.
void ProgramCache::make_room(uint64_t bytes) const {
  struct Kept {
    std::filesystem::file_time_type used;
    std::filesystem::path file;
    uint64_t bytes;
  };
  std::vector<Kept> kept;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, failed)) {
    if (entry.path().extension() != ".programs" || !entry.is_regular_file(failed)) continue;
    const Kept found{entry.last_write_time(failed), entry.path(), entry.file_size(failed)};
    if (failed) continue;  // another program has removed it meanwhile
    kept.push_back(found), bytes += found.bytes;
  }
  std::sort(kept.begin(), kept.end(), [](const Kept& a, const Kept& b) { return a.used < b.used; });
  for (const Kept& oldest : kept) {
    if (bytes <= bytes_max_) return;
    if (std::filesystem::remove(oldest.file, failed)) bytes -= oldest.bytes;
  }
}

}  // namespace motley
