// DevicePart: what a device holds of a shard: packed weights, KV pool, compiled programs. Drivers run it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "device/handles.hpp"
#include "model/model.hpp"
#include "runtime/holdings.hpp"
#include "runtime/program_cache.hpp"
#include "runtime/segment.hpp"
#include "runtime/shard.hpp"
#include "runtime/uncompiled_rows.hpp"

namespace motley {

struct PartOptions {
  std::vector<uint32_t> buckets;  // row counts that programs are compiled for, ascending; the last is a step's most
  uint32_t pool = 0;              // the name of its KV pool
  KvShape kv;                     // of its section of it
  uint32_t block_begin = 0;       // of the section, as the scheduler counts the pool's blocks
  std::stop_token stop;           // of making it
  // Where programs are looked for and kept, under this name for the device; null: nowhere.
  std::shared_ptr<const ProgramCache> cache;
  std::string identity;
  bool shares_programs = false;  // with parts of the same holdings that compile the same: it takes long
  // Told which of the buckets do not compile; the part is made without them. Null: all must.
  std::shared_ptr<UncompiledRows> uncompiled;
  bool others = false;  // row counts are left beside the buckets: told, too, where none of these compiles
};

// By the shard's pieces; null where a piece is no program.
std::vector<std::unique_ptr<Segment>> segments_of(const ShardGraph& shard);

// A piece of the shard, compiled.
struct PartProgram {
  Segment segment;
  std::shared_ptr<const ProgramsHandle> programs;  // other parts may run them, too
};

// Immutable once created; several drivers may run it at once, each on a queue of its own.
class DevicePart {
 public:
  // Compiles it, on weights and a KV pool that are taken from `holdings` or made there. `model` and `device` are
  // borrowed.
  static Result<std::shared_ptr<const DevicePart>> create(const Model& model, const Device& device, ShardGraph shard,
                                                          PartOptions options, Holdings* holdings);

  const Model& model() const { return model_; }
  const Device& device() const { return device_; }
  const ShardGraph& shard() const { return shard_; }
  const PartOptions& options() const { return options_; }
  uint32_t rows_max() const { return options_.buckets.back(); }
  // By the shard's pieces; null where a piece is no program.
  const PartProgram* program(size_t piece) const { return programs_[piece].get(); }
  motley_kv* kv() const { return kv_ == nullptr ? nullptr : kv_->handle.get(); }
  const KvHandle& kv_handle() const { return kv_->handle; }                // where it has one
  uint64_t kv_number() const { return kv_ == nullptr ? 0 : kv_->number; }  // as of HeldKv; 0: it has none
  // By the shard's weights; other parts may use them, too.
  const std::vector<std::shared_ptr<const PackedWeight>>& weights() const { return weights_; }
  // Zeros to the first blocks of the KV pool. UNIMPLEMENTED where the device takes no KV from the host.
  Status clear_kv(const QueueHandle& queue, uint32_t first_blocks, uint64_t timeout_ns) const;

 private:
  DevicePart(const Model& model, const Device& device, ShardGraph shard, PartOptions options)
      : model_(model), device_(device), shard_(std::move(shard)), options_(std::move(options)) {}
  Status compile(Holdings* holdings);
  Status compile_all(Holdings* holdings);
  Result<std::shared_ptr<const ProgramsHandle>> programs_of(const Segment& segment, Holdings* holdings) const;
  Result<ProgramsHandle> compile(const Segment& segment, std::span<const uint32_t> buckets) const;
  void drop_uncompiled(const Segment& segment, const Status& failed);

  const Model& model_;
  const Device& device_;
  const ShardGraph shard_;
  PartOptions options_;
  std::vector<std::shared_ptr<const PackedWeight>> weights_;
  std::shared_ptr<const HeldKv> kv_;
  std::vector<std::unique_ptr<PartProgram>> programs_;
};

}  // namespace motley
