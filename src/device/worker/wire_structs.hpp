// The ABI's structs on the wire: an encoder for what the host was given, and for the worker an owner of what came.
// decode() answers false for anything malformed; view() points into the owner.
#pragma once

#include "device/worker/wire.hpp"
#include "motley/backend.h"

namespace motley::worker {

struct OpenCall {
  uint32_t index = 0, threads = 0;
  uint64_t memory_cap = 0;
  int32_t deterministic = 0;
  std::optional<std::string> cores, cache_dir, variant,
      spec;  // spec: the device to describe first; index is its answer

  void encode(Writer& writer) const;
  bool decode(Reader& reader);
};

// False: more of something than can cross.
bool encode_weight(Writer& writer, const motley_weight_desc& desc);
struct WeightCopy {
  motley_weight_desc desc{};  // data is null; bytes is what was said
  bool has_data = false;
  std::string name;
  Array<motley_range> rows, cols, experts;
  bool decode(Reader& reader);
  motley_weight_desc view(const void* data) const;
};

bool encode_kv(Writer& writer, const motley_kv_desc& desc);
struct KvCopy {
  motley_kv_desc desc{};
  Array<int32_t> kv_heads, head_dim, windows;
  bool decode(Reader& reader);
  motley_kv_desc view() const;
};

bool encode_segment(Writer& writer, const motley_segment& segment);
struct SegmentCopy {
  motley_segment segment{};
  Array<motley_value> values;
  Array<motley_op> ops;
  Array<int32_t> inputs, outputs;
  bool decode(Reader& reader);
  motley_segment view() const;
};

// Lengths of a batch's last arrays follow from its own numbers; false if these are absurd.
bool encode_batch(Writer& writer, const motley_batch& batch);
// After decode every index range that a batch holds itself (blocks, counts, pending, biases) lies inside its array.
struct BatchCopy {
  motley_batch batch{};
  Array<int32_t> token_ids, token_slots, positions, kv_slots;
  Array<uint8_t> generated;
  Array<uint32_t> seq_row_begin, seq_block_begin;
  Array<int32_t> seq_context, blocks, head_rows, pending;
  Array<motley_sample_row> samples;
  Array<motley_token_count> counts;
  Array<motley_token_bias> biases;
  bool decode(Reader& reader);
  motley_batch view() const;

 private:
  bool ranges_hold() const;
};

struct BindingOnWire {
  int32_t value;
  uint32_t reserved;
  uint64_t buffer, offset;
};

}  // namespace motley::worker
