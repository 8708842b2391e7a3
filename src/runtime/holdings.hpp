// Holdings: what devices hold of a model, each thing once: packed weights, KV pools, and programs that take long to
// compile, shared by all parts that need the same. Whoever uses a thing keeps it; with its last user it is freed.
// Thread-safe; the model outlives it, and the devices everything of theirs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "device/handles.hpp"
#include "model/model.hpp"
#include "runtime/shard.hpp"

namespace motley {

// Positions and format of a KV pool.
struct KvShape {
  uint32_t blocks = 0, block_size = 0;
  int32_t dtype = 0;
};

// A KV pool of a device, with a number that no other of this process has.
struct HeldKv {
  KvHandle handle;
  uint64_t number = 0;
};

class Holdings {
 public:
  explicit Holdings(const Model& model) : model_(model) {}

  // One thing at a time is made under each key, without a lock on the others: a device that hangs while it packs keeps
  // waiting who needs the same of it, and nobody else.

  // Packs what the shard keeps of a weight where the device does not have it yet, and lets go of the file's pages
  // unless the packed form needs them.
  Result<std::shared_ptr<const PackedWeight>> weight(const Device& device, const ShardWeight& weight);
  // The same if the device has it; null where it does not.
  std::shared_ptr<const PackedWeight> find_weight(const Device& device, const ShardWeight& weight);
  // Of all weights that were packed so far, as devices hold them.
  uint64_t packed_bytes() const { return packed_bytes_; }
  // What a device has compiled under a text that says all that it depends on, or what `make` compiles.
  Result<std::shared_ptr<const ProgramsHandle>> programs(const Device& device, const std::string& of,
                                                         const std::function<Result<ProgramsHandle>()>& make);
  // The pool of that name: whatever parts of a device ask for the same layers, heads and shape under it share it.
  Result<std::shared_ptr<const HeldKv>> kv(const Device& device, uint32_t pool, int32_t layer_begin,
                                           std::span<const UnitRange> heads, std::span<const KvLayer> layers,
                                           const KvShape& shape);

 private:
  template <typename T>
  using Things = std::map<std::string, std::weak_ptr<const T>>;
  template <typename T, typename Make>
  Result<std::shared_ptr<const T>> find_or_make(Things<T>* things, const std::string& key, const Make& make);

  const Model& model_;
  std::atomic<uint64_t> packed_bytes_{0};
  std::mutex mutex_;  // guards the rest
  std::condition_variable made_;
  std::set<std::string> making_;  // keys of all
  Things<PackedWeight> weights_;
  Things<HeldKv> pools_;
  Things<ProgramsHandle> programs_;
};

}  // namespace motley
