#include "device/worker/worker_state.hpp"

#include <cstring>

namespace motley::worker {

Status plugin_status(motley_code code, const motley_error& failure) {
  if (code == MOTLEY_OK) return ok_status();
  return Status(code, std::string(failure.text, strnlen(failure.text, sizeof failure.text)));
}

Status WorkerState::within_cap() const {
  if (memory_cap == 0) return ok_status();
  uint64_t used = shared_bytes;
  if (api->stats != nullptr) {
    motley_device_stats stats{};
    stats.struct_size = sizeof stats;
    motley_error failure{};
    if (api->stats(device, &stats, &failure) == MOTLEY_OK) used += stats.bytes_resident;
  }
  if (used <= memory_cap) return ok_status();
  return error(MOTLEY_RESOURCE_EXHAUSTED, "that would make {} bytes on the device, more than its memory cap of {}",
               used, memory_cap);
}

void WorkerState::close() {
  queues.clear();
  programs.clear();
  kv.clear();
  weights.clear();
  buffers.clear();
  staging.clear();
  if (motley_device* raw = device.exchange(nullptr); raw != nullptr) api->close(raw);
}

}  // namespace motley::worker
