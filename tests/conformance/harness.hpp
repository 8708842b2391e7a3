// What the cases are written with: devices, graphs, batches, and comparison.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "conformance.hpp"

namespace motley::conformance {

constexpr uint64_t kPatience_ns = 120'000'000'000;  // an event that has not fired by then is a failure

// A broken call where the case needs it to work; ends the case.
struct Stop {
  std::string text;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t bits() {
    state_ += 0x9E3779B97F4A7C15ull;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t count) { return static_cast<uint32_t>(bits() % count); }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  float normal() {
    return static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.28318530717958648 * uniform()));
  }
  std::vector<float> normals(size_t count, float scale = 1) {
    std::vector<float> out(count);
    for (float& x : out) x = normal() * scale;
    return out;
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(static_cast<uint32_t>(i))]);
  }

 private:
  uint64_t state_;
};

// ---- descriptions that own their data ----

struct HostWeight {
  int32_t dtype = MOTLEY_F32;
  int32_t format = MOTLEY_NONE;  // to be packed to; none: dtype
  uint32_t uses = MOTLEY_WEIGHT_MATMUL;
  int64_t experts = 1, rows = 1, cols = 0;
  std::vector<std::byte> data;
  std::vector<motley_range> row_ranges, col_ranges, expert_ranges;
  motley_weight_desc desc() const;
};
HostWeight random_weight(Random& random, int32_t dtype, uint32_t uses, int64_t rows, int64_t cols, int64_t experts = 1);
HostWeight vector_weight(std::vector<float> values);
// Of a dot product of one of its rows with independent numbers of variance 1.
double dot_magnitude(const HostWeight& weight);

struct GraphBuilder {
  std::vector<motley_value> values;
  std::vector<motley_op> ops;
  std::vector<int32_t> inputs, outputs;
  std::vector<HostWeight> weights;
  int32_t cut = MOTLEY_CUT_STAGE;

  int32_t value(int32_t dtype, std::vector<int64_t> dims);
  int32_t input(int32_t dtype, std::vector<int64_t> dims);
  int32_t output(int32_t dtype, std::vector<int64_t> dims);
  int32_t weight(HostWeight w);
  motley_op& op(int32_t kind, std::vector<int32_t> in, std::vector<int32_t> out, std::vector<int32_t> weight = {});
  motley_segment segment() const;
};

struct SequenceRows {
  int32_t first_position = 0, rows = 1;
  std::vector<int32_t> blocks;
  bool generated = false;
};

struct BatchData {
  std::vector<int32_t> token_ids, token_slots, positions, kv_slots, seq_context, blocks, head_rows, pending;
  std::vector<uint8_t> generated;
  std::vector<uint32_t> seq_row_begin{0}, seq_block_begin{0};
  std::vector<motley_sample_row> samples;
  std::vector<motley_token_count> counts;
  std::vector<motley_token_bias> biases;
  uint32_t slot_count = 0;

  uint32_t rows() const { return static_cast<uint32_t>(positions.size()); }
  // Appends the rows of one sequence; kv slots follow from its blocks.
  void add(const SequenceRows& sequence, uint32_t block_size);
  motley_batch view() const;
};
BatchData plain_batch(uint32_t rows);  // one sequence from position 0, no KV

using Bytes = std::vector<std::byte>;
template <class T>
Bytes to_bytes(const std::vector<T>& from) {
  Bytes out(from.size() * sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), from.data(), out.size());
  return out;
}
template <class T>
std::vector<T> from_bytes(const Bytes& from) {
  std::vector<T> out(from.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), from.data(), out.size() * sizeof(T));
  return out;
}

struct KvShapeSpec {
  int32_t dtype = MOTLEY_F32;
  uint32_t block_size = 16, blocks = 8;
  std::vector<int32_t> kv_heads, head_dim, windows;
  motley_kv_desc desc() const;
};

// ---- a device under test ----

template <class T>
struct Freer {
  void (*free)(T*) = nullptr;
  void operator()(T* raw) const {
    if (free) free(raw);
  }
};
template <class T>
using Owned = std::unique_ptr<T, Freer<T>>;

struct Program {  // what one compile needs to stay alive
  std::vector<Owned<motley_weight>> weights;
  Owned<motley_programs> programs;
  std::vector<motley_value> values;
  std::vector<int32_t> inputs, outputs;
  std::vector<uint32_t> buckets;
};

class Device {
 public:
  // Both throw Stop. Of the options given to open, variant is set here.
  Device(const motley_backend& api, const Options& options, uint32_t threads);
  Device(const motley_backend& api, const Options& options, motley_open_options open);

  const motley_backend& api() const { return api_; }
  motley_device* raw() const { return device_.get(); }
  motley_queue* queue() const { return queue_.get(); }
  const motley_device_desc& desc() const { return desc_; }
  bool has(uint64_t cap) const { return desc_.caps & cap; }

  Owned<motley_queue> make_queue() const;
  Owned<motley_buffer> buffer(uint64_t bytes) const;
  Owned<motley_weight> pack(const HostWeight& weight) const;
  Owned<motley_kv> kv(const KvShapeSpec& spec) const;
  Program compile(const GraphBuilder& graph, std::vector<uint32_t> buckets) const;
  void write(motley_buffer* to, const Bytes& from, uint64_t offset = 0) const;
  Bytes read(motley_buffer* from, uint64_t bytes, uint64_t offset = 0) const;
  void kv_import(motley_kv* kv, std::span<const int32_t> blocks, uint32_t layers, const Bytes& from) const;
  Bytes kv_export(motley_kv* kv, std::span<const int32_t> blocks, uint32_t layers, uint64_t bytes) const;
  // Runs once; rows of the bucket beyond the real ones are NaN. Answers the outputs' real rows. In the smallest bucket
  // that holds the rows, or in one given.
  std::map<int32_t, Bytes> run(const Program& program, const std::map<int32_t, Bytes>& inputs, const BatchData& batch,
                               motley_kv* kv = nullptr, std::optional<uint32_t> bucket = {}) const;
  // Waits and throws Stop unless OK.
  void finish(motley_event* event, const char* what) const;
  motley_code wait(motley_event* event, motley_error* error = nullptr) const;  // and releases it

 private:
  uint32_t bucket_for(const Program& program, uint32_t rows) const;
  const motley_backend& api_;
  motley_device_desc desc_{};
  Owned<motley_device> device_;
  Owned<motley_queue> queue_;
};

void require_ok(motley_code code, const motley_error& error, const char* what);

// ---- the judge ----

struct Tolerance {
  double norm;     // of the difference, relative to the reference's norm
  double largest;  // difference of one element, relative to the reference's root mean square
};
Tolerance matmul_tolerance(int32_t weight_dtype);
Tolerance attention_tolerance(int32_t kv_dtype);
// Of one op whose result is rounded to F16.
constexpr Tolerance kRoundedToF16{5e-4, 8e-3};
constexpr Tolerance kElementwise{2e-5, 2e-4};

class Judge {
 public:
  Judge(const motley_backend& backend, const Options& options);

  const Options& options() const { return options_; }
  Device& device() { return *device_; }  // under test, default threads
  Device& reference() { return *reference_; }
  // Another one of the plugin.
  std::unique_ptr<Device> open(uint32_t threads, bool deterministic = false) const;
  const motley_backend& api() const { return backend_; }
  bool supports(std::initializer_list<int> kinds) const;
  bool packs(int32_t dtype) const { return device_->desc().weight_dtypes >> dtype & 1; }
  // The first of F32, F16 and BF16 that the device packs; the first of all its types where it packs none of them.
  int32_t plain_dtype() const;
  // At least what rounding to F16 makes of one op's result, on a device that says that it does.
  Tolerance rounded(Tolerance tolerance) const;
  bool fixed_rows() const { return !device_->has(MOTLEY_CAP_DYNAMIC_ROWS); }

  void check(bool holds, const std::string& what);
  // `magnitude`: what the elements are of the order of, where too few of them show it (sums that may cancel).
  void near(const Bytes& got, const Bytes& wanted, Tolerance tolerance, const std::string& what, double magnitude = 0);
  void same(const Bytes& got, const Bytes& wanted, const std::string& what);
  void skip(const std::string& what);
  // Runs on both and compares every output, on a device of fixed rows in every bucket, which must give equal bits where
  // rows do not depend on one another.
  void compare(const GraphBuilder& graph, const std::map<int32_t, Bytes>& inputs, const BatchData& batch,
               Tolerance tolerance, const std::string& what, double magnitude = 0);
  Report& report() { return report_; }

 private:
  Tolerance widened(const GraphBuilder& graph, Tolerance tolerance) const;
  const motley_backend& backend_;
  Options options_;
  Report report_;
  std::unique_ptr<Device> device_, reference_;
};

// The groups.
void judge_description(Judge&);
void judge_ops(Judge&);
void judge_experts(Judge&);
void judge_weights(Judge&);
void judge_kv(Judge&);
void judge_attention(Judge&);
void judge_segments(Judge&);
void judge_invariance(Judge&);
void judge_parts(Judge&);
void judge_blobs(Judge&);
void judge_loss(Judge&);
void judge_sampling(Judge&);
void judge_noise(Judge&);
void judge_queues(Judge&);
void judge_errors(Judge&);

}  // namespace motley::conformance
