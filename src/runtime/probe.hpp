// Probe: parts of a model compiled on one device, to be run by themselves. For measuring; one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.hpp"
#include "device/description.hpp"
#include "device/handles.hpp"
#include "model/model.hpp"
#include "motley/backend.h"
#include "planner/placement.hpp"
#include "runtime/buckets.hpp"
#include "runtime/driver.hpp"
#include "runtime/uncompiled_rows.hpp"

namespace motley {

struct LayerRange {
  uint32_t first = 0, count = 0;
};

// Which share of some layers, or of the first and last stage, a probe holds.
struct ProbeShare {
  LayerRange layers;  // as many as there are; of none: embedding and head instead
  int64_t kv_heads = 0, ffn_columns = 0, experts = 0, vocab_rows = 0;
  bool whole = false;        // instead all of each layer, and all layers in one program (cut STAGE)
  uint32_t kv_blocks = 512;  // of its pool; loads that see more share some
};

// Of one layer, each waited for.
struct PartTimes {
  double attention_ns = 0, ffn_ns = 0;
};

// What a part runs on. Logits are asked for the first rows, as many as ProbeOptions says.
struct ProbeLoad {
  uint32_t rows = 1;
  uint32_t context = 1;       // positions that the last row sees
  bool one_sequence = false;  // the rows are the end of one; else each is a sequence of its own
  bool prompt = false;        // a prompt's rows; else generated ones, which may be of another numeric class
  uint32_t decoding = 0;      // of the rows, fewer than all: generated ones that come first, each of a sequence of its
                              // own that is kDecodingContext long

  static constexpr uint32_t kDecodingContext = 16;
};

inline constexpr uint64_t kProgramWaitNs = 120ull * 1'000'000'000;

struct ProbeOptions {
  std::vector<uint32_t> buckets;  // as PartOptions
  int32_t kv_dtype = 0;
  bool attends = true;        // else a partner does, and programs are those around it
  uint64_t memory_bytes = 0;  // that are free; a small part of them holds its KV pool
  bool virtual_time = false;
  int64_t virtual_ns = 0;                           // when it begins then; 0 = at a time of its own
  uint64_t wait_ns = kProgramWaitNs;                // for what is timed to end
  std::shared_ptr<UncompiledRows> uncompiled = {};  // as PartOptions
  uint32_t logit_rows_max = 64;  // that logits are asked for: a row a sequence; beyond, time grows with the rows
};

// As what the device says of itself asks for; of `buckets`, whether it runs any rows is not read.
Result<ProbeOptions> probe_options(const Model& model, const Device& device, const DeviceDescription& description,
                                   BucketOptions buckets, int64_t kv_dtype, bool virtual_time);

class Probe {
 public:
  static constexpr uint32_t kBlockSize = 16;
  // `clock` as of Driver. The device must not run anything else meanwhile if times are to mean something.
  static Result<std::unique_ptr<Probe>> create(const Model& model, const Device& device, const ProbeShare& share,
                                               const ProbeOptions& options);

  // Programs of the part, a layer each, that time_ns() runs in turn; 0 = the probe has no such part.
  size_t programs(motley_cut cut) const { return find(cut).size(); }
  // Nanoseconds of one run of the part, the mean of `runs` behind one another: of each layer in turn, so that a layer's
  // weights lie no nearer than in a model. context >= rows of one sequence.
  Result<double> time_ns(motley_cut cut, const ProbeLoad& load, uint32_t runs);
  // The same of both parts of a split layer, by turns and each waited for: as a driver runs them, which meets others
  // behind each. In between, the other part has taken the caches. A part without units adds the last sum, if that.
  // `meet` is called after each; its time does not count.
  Result<PartTimes> parts_ns(const ProbeLoad& load, uint32_t layers, const std::function<Status()>& meet = {});
  // Writes the positions that these loads see. What was never written may lie nowhere: it is read faster than memory
  // is, and the first time slower.
  Status write_kv(uint32_t positions);
  uint32_t positions() const { return kv_blocks_ * kBlockSize; }  // of its pool
  uint64_t weight_bytes() const {
    uint64_t bytes = 0;
    for (const auto& weight : driver_->part().weights()) bytes += weight->info.bytes;
    return bytes;
  }
  const std::vector<std::shared_ptr<const PackedWeight>>& weights() const { return driver_->part().weights(); }
  uint64_t source_bytes() const { return source_bytes_; }  // of the same weights in the model's file
  bool of_vocabulary() const { return of_vocabulary_; }    // embedding and head instead of layers

 private:
  Probe(const Device& device, std::unique_ptr<Driver> driver) : device_(device), driver_(std::move(driver)) {}
  using Programs = std::vector<const TapeProgram*>;
  // By layer.
  std::vector<Programs> find(motley_cut cut) const;
  void add_sequence(uint32_t rows, uint32_t context, bool generated);
  void fill_batch(const ProbeLoad& load);
  Status enqueue(const std::vector<Programs>& programs, size_t first, uint32_t runs, std::vector<EventHandle>* events);
  Status wait(Status status, const std::vector<EventHandle>& events);
  // Of as many runs of these in turn, behind one another.
  Result<double> run_ns(const std::vector<Programs>& programs, size_t first, uint32_t runs);

  const Device& device_;
  uint64_t source_bytes_ = 0;
  bool of_vocabulary_ = false;
  uint32_t kv_blocks_ = 1;
  uint32_t logit_rows_max_ = 1;
  bool waits_ = false;  // for each program, as for a partner
  size_t next_layer_ = 0;
  bool virtual_time_ = false;
  uint64_t wait_ns_ = kProgramWaitNs;
  int64_t virtual_ns_ = 0;
  motley_batch batch_{};
  std::vector<int32_t> tokens_, slots_, positions_, kv_slots_, contexts_, blocks_, head_rows_;
  std::vector<uint8_t> generated_;
  std::vector<uint32_t> row_begin_, block_begin_;
  std::vector<motley_sample_row> samples_;
  std::unique_ptr<Driver> driver_;  // ends first: until its queue is empty, the batch is read
};

}  // namespace motley
