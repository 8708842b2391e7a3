// What a worker holds for its host: the plugin, the opened device, and the objects behind the host's ids.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/plugin.hpp"
#include "device/worker/shared_memory.hpp"
#include "device/worker/wire.hpp"

namespace motley::worker {

// Ids that the host chose, and what they stand for. Thread-safe.
template <class T>
class Table {
 public:
  // False for id 0 and one that is taken.
  bool add(uint64_t id, T object) {
    std::lock_guard lock(mutex_);
    return id != 0 && objects_.try_emplace(id, std::move(object)).second;
  }
  std::shared_ptr<typename T::element_type> find(uint64_t id) const {
    std::lock_guard lock(mutex_);
    const auto found = objects_.find(id);
    return found == objects_.end() ? nullptr : found->second;
  }
  T take(uint64_t id) {
    std::lock_guard lock(mutex_);
    const auto found = objects_.find(id);
    if (found == objects_.end()) return nullptr;
    T object = std::move(found->second);
    objects_.erase(found);
    return object;
  }
  void clear() {
    std::lock_guard lock(mutex_);
    objects_.clear();
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, T> objects_;
};

// One object of the plugin, freed with it, and the shared memory or file that it lies in or was made from.
template <class T>
struct Owned {
  Owned(T* object, void (*destroy)(T*)) : raw(object), free(destroy) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (raw != nullptr && free != nullptr) free(raw);
    if (counted != nullptr) *counted -= memory.bytes();
  }
  T* raw;
  void (*free)(T*);
  SharedMemory memory;
  FileView view;                             // no memory of the device's
  std::atomic<uint64_t>* counted = nullptr;  // where memory's bytes stand, if they count as the device's
};

struct WorkerQueue {
  WorkerQueue(motley_queue* queue, void (*destroy)(motley_queue*)) : owned(queue, destroy) {}
  Owned<motley_queue> owned;
  std::atomic<uint32_t> unfinished{0};  // step calls whose events have not been fired towards the host
};

// shared_ptr: a lookup keeps its object for the length of one call, whatever the host frees meanwhile.
template <class T>
using Objects = Table<std::shared_ptr<Owned<T>>>;

struct WorkerState {
  std::unique_ptr<Plugin> plugin;
  const motley_backend* api = nullptr;
  uint64_t memory_cap = 0;
  std::atomic<motley_device*> device{nullptr};  // one channel's thread opens it, all use it; set after the above
  std::atomic<uint64_t> shared_bytes{0};        // of the device's memory, those that the plugin does not know of
  Descriptor log_socket;

  Table<std::shared_ptr<WorkerQueue>> queues;
  Objects<motley_buffer> buffers;
  Objects<motley_weight> weights;
  Objects<motley_kv> kv;
  Objects<motley_programs> programs;
  Table<std::shared_ptr<SharedMemory>> staging;  // region id -> memory

  // Refuses when the plugin's memory and shared_bytes exceed the cap together.
  Status within_cap() const;
  // Frees everything, in the order that the ABI asks for.
  void close();
};

// A plugin's answer as it is, without a prefix: the host gives it on.
Status plugin_status(motley_code code, const motley_error& error);

}  // namespace motley::worker
