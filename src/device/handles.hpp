// RAII over the plugin ABI: each handle frees its object once. Move-only; the plugin must outlive them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.hpp"
#include "device/plugin.hpp"
#include "device/worker/worker_options.hpp"
#include "motley/backend.h"

namespace motley {

class WorkerProcess;

// Destroy is the table's entry that frees a T; a table without it (null) has nothing to free.
template <typename T, void (*motley_backend::*Destroy)(T*)>
class Handle {
 public:
  Handle() = default;
  Handle(const motley_backend* api, T* raw) : api_(api), raw_(raw) {}
  Handle(Handle&& other) noexcept : api_(other.api_), raw_(std::exchange(other.raw_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      api_ = other.api_;
      raw_ = std::exchange(other.raw_, nullptr);
    }
    return *this;
  }
  ~Handle() { reset(); }

  T* get() const { return raw_; }
  explicit operator bool() const { return raw_ != nullptr; }
  void reset() {
    if (raw_ != nullptr && api_->*Destroy != nullptr) (api_->*Destroy)(raw_);
    raw_ = nullptr;
  }

 private:
  const motley_backend* api_ = nullptr;
  T* raw_ = nullptr;
};

using QueueHandle = Handle<motley_queue, &motley_backend::queue_destroy>;
using BufferHandle = Handle<motley_buffer, &motley_backend::free>;
using WeightHandle = Handle<motley_weight, &motley_backend::weight_free>;
using KvHandle = Handle<motley_kv, &motley_backend::kv_destroy>;
using ProgramsHandle = Handle<motley_programs, &motley_backend::programs_free>;
using EventHandle = Handle<motley_event, &motley_backend::event_release>;
using RawDevice = Handle<motley_device, &motley_backend::close>;

struct PackedWeight {
  std::vector<std::byte> source;  // what the weight aliases, where nobody else keeps it; outlives the handle
  WeightHandle weight;
  motley_weight_info info{};
  int32_t source_dtype = 0;               // as the model has it
  double squares = 0, error_squares = 0;  // sums over its elements, where it was made another format
};

// What formats a device may hold matrices in: the model's (or F16, of FP8 BF16, where it has no such); or of floats,
// and of what it has no such of, 8 bits or 4, of which each is an integer times a block's scale.
enum class Quality { kExact, kBalanced, kFast };

struct DeviceOptions {
  uint32_t threads = 0;  // 0 = the device's default
  std::string cores;     // "" = all
  std::string variant;   // "" = the best
  uint64_t memory_cap = 0;
  bool deterministic = false;
  bool virtual_time = false;    // of simulated devices (device/virtual_time.hpp)
  uint64_t weight_formats = 0;  // that it holds (motley_device_desc.weight_dtypes); 0 = every one
  Quality quality = Quality::kExact;
};

inline constexpr uint64_t kBlobBytesMax = 4ull << 30;  // of a segment's programs

// What a device expects of a segment.
struct QueryResult {
  uint64_t workspace_bytes = 0;  // of the largest bucket
  uint64_t compile_ns = 0;       // of all buckets together
  uint64_t program_bytes = 0;    // likewise
};

// An opened device. Thread-safe as the ABI says: one thread at a time per queue.
class Device {
 public:
  static Result<Device> open(const Plugin& plugin, uint32_t index, const DeviceOptions& options);
  // The same device in a process of its own, behind the same table; api() lives as long as the Device. The plugin's
  // file is opened there, not here. Differences: docs/contracts/worker.md.
  static Result<Device> open_isolated(const std::filesystem::path& plugin_file, uint32_t index,
                                      const DeviceOptions& options, const WorkerOptions& worker);

  const motley_backend& api() const { return *api_; }
  motley_device* raw() const { return device_.get(); }
  // Null unless it was opened by open_isolated().
  WorkerProcess* worker() const { return worker_; }

  Result<QueueHandle> create_queue() const;
  Result<BufferHandle> allocate(uint64_t bytes, motley_use use) const;
  // The buffer's memory as the host sees it; FAILED_PRECONDITION when it is separate.
  Result<void*> map(const BufferHandle& buffer) const;
  Result<PackedWeight> pack(const motley_weight_desc& desc) const;
  Quality quality() const { return quality_; }
  bool holds(int32_t format) const {
    return weight_formats_ == 0 || format < 0 || format >= MOTLEY_DTYPE_COUNT || (weight_formats_ >> format & 1) != 0;
  }
  // What it holds a matrix of that format in, of what the quality allows. With kExact the same, or F16 (BF16, F32; of
  // FP8 BF16 first) where it has no such; else a format of fewer bits for floats, and for what it has no such of, if it
  // has one.
  int32_t format_of(int32_t dtype, Quality quality) const;
  Result<KvHandle> create_kv(const motley_kv_desc& desc) const;
  Result<motley_kv_layout> kv_layout(const motley_kv_desc& desc) const;
  // Of all layers [0, layers) of the pool, from the canonical format (docs/formats/kv.md). The host's memory is
  // borrowed until the event has fired.
  Result<EventHandle> import_kv(const QueueHandle& queue, const KvHandle& kv, std::span<const int32_t> blocks,
                                uint32_t layers, std::span<const std::byte> from) const;
  // The other way round.
  Result<EventHandle> export_kv(const QueueHandle& queue, const KvHandle& kv, std::span<const int32_t> blocks,
                                uint32_t layers, std::span<std::byte> to) const;
  // Whether import_kv() and export_kv() are there.
  bool moves_kv() const { return api_->kv_import != nullptr && api_->kv_export != nullptr; }
  // UNIMPLEMENTED with the plugin's reason unless the segment runs natively.
  Result<QueryResult> query(const motley_segment& segment, std::span<const uint32_t> buckets) const;
  // With a blob that export_programs() gave; FAILED_PRECONDITION: it is stale, or not of this segment and these
  // buckets.
  Result<ProgramsHandle> compile(const motley_segment& segment, std::span<motley_weight* const> weights,
                                 std::span<const uint32_t> buckets, std::span<const std::byte> blob = {}) const;
  // Whether export_programs() is there.
  bool makes_blobs() const { return api_->export_programs != nullptr; }
  Result<std::vector<std::byte>> export_programs(const ProgramsHandle& programs) const;
  Result<EventHandle> enqueue(const QueueHandle& queue, const ProgramsHandle& programs,
                              const motley_enqueue_args& args) const;
  // The host's memory is borrowed until the event has fired.
  Result<EventHandle> copy_to_host(const QueueHandle& queue, std::span<std::byte> to, const BufferHandle& from) const;
  Result<EventHandle> copy_from_host(const QueueHandle& queue, const BufferHandle& to,
                                     std::span<const std::byte> from) const;
  // Waits for the event: what its work ended with, or DEADLINE_EXCEEDED.
  Status wait(const EventHandle& event, uint64_t timeout_ns) const;
  Result<motley_event_times> times(const EventHandle& event) const;
  Result<motley_device_stats> stats() const;

 private:
  Device(const motley_backend* api, motley_device* device, WorkerProcess* worker, const DeviceOptions& options)
      : api_(api),
        device_(api, device),
        worker_(worker),
        weight_formats_(options.weight_formats),
        quality_(options.quality) {}
  const motley_backend* api_;
  RawDevice device_;
  WorkerProcess* worker_;  // owned by the device
  uint64_t weight_formats_;
  Quality quality_;
};

}  // namespace motley
