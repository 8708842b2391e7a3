// Kit: what turns a table of per-op kernels into a device plugin, in host memory or in a device's own.
//
// A backend supplies a `Backend` (which devices there are) and a `Kernels` object per open device (how to pack weights,
// one kernel per op kind, an optional rewrite of the op list). Kit supplies everything else of motley_backend: buffers,
// queues, events, copies, KV pools, checked programs, arenas, the thread team, statistics and errors.
//
// Inside kit an operating error is an `Error` thrown; the C border catches it, so no exception leaves the plugin.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "motley/backend.h"
#include "motley/blocks.hpp"

namespace motley::kit {

namespace blocks = motley::blocks;

class Error : public std::exception {
 public:
  Error(motley_code code, std::string text) : code_(code), text_(std::move(text)) {}
  motley_code code() const { return code_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  motley_code code_;
  std::string text_;
};

// printf into an Error.
[[noreturn]] void fail(motley_code code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- number formats (formats.cpp) ----

// One row of the table of formats. Formulas: docs/formats/gguf.md.
struct Format {
  int32_t dtype;
  const char* name;
  int32_t block;      // elements
  int32_t bytes;      // of a block
  int32_t sub_block;  // a column cut may fall on its multiples
  // Writes `count` floats (a multiple of block).
  void (*dequantise)(const void* blocks, int64_t count, float* out);
  // Row bytes for `columns` elements (a multiple of block).
  int64_t row_bytes(int64_t columns) const { return columns / block * bytes; }
};
const Format* find_format(int32_t dtype);  // null: not in the table
uint64_t weight_formats();                 // the mask of all of them
int64_t element_bytes(int32_t dtype);      // of F32 F16 BF16 F8_E4M3 I8 I32; 0 for others

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);  // round to nearest even
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);  // round to nearest even
float f8_e4m3_to_f32(uint8_t bits);
uint8_t f32_to_f8_e4m3(float value);  // round to nearest even; what is larger becomes 448, the largest
float e8m0_to_f32(uint8_t exponent);  // 2^(exponent - 128), half of OCP's value: MXFP4's elements are doubled

// ---- weights (weight.cpp) ----

// Which items of an axis a shard keeps, in the order in which it keeps them.
class Kept {
 public:
  Kept() = default;
  Kept(std::vector<motley_range> ranges, int64_t source_count);
  int64_t count() const { return count_; }
  int64_t source_count() const { return source_count_; }
  bool whole() const { return ranges_.size() == 1 && count_ == source_count_; }
  std::span<const motley_range> ranges() const { return ranges_; }  // joined where they touch; never empty
  int64_t source_of(int64_t kept) const;
  // -1: a source item that is not kept. The source item must be one.
  int64_t kept_of(int64_t source) const;
  bool operator==(const Kept& other) const;

 private:
  std::vector<motley_range> ranges_;
  std::vector<int64_t> starts_;  // first kept item of each range
  int64_t count_ = 0, source_count_ = 0;
};

// What pack() is to keep: a checked motley_weight_desc with its ranges applied. Borrows desc.data.
class WeightSource {
 public:
  // Checks shape, bytes, ranges and cut borders; throws Error.
  explicit WeightSource(const motley_weight_desc& desc);

  const char* name() const { return name_.c_str(); }
  const Format& format() const { return *format_; }
  int32_t wanted_format() const { return wanted_; }  // motley_weight_desc.format
  uint32_t uses() const { return uses_; }
  // After the ranges.
  int64_t experts() const { return experts_.count(); }
  int64_t rows() const { return rows_.count(); }
  int64_t cols() const { return cols_.count(); }
  const Kept& kept_experts() const { return experts_; }
  const Kept& kept_rows() const { return rows_; }
  // True if all columns are kept: then row_data() is the whole row as the file has it.
  bool whole_columns() const { return cols_.whole(); }
  bool whole() const { return cols_.whole() && rows_.whole() && experts_.whole(); }
  std::span<const motley_range> col_ranges() const { return cols_.ranges(); }
  // The file's row behind (expert and row after ranges), from its first source column.
  const std::byte* row_data(int64_t expert, int64_t row) const;
  int64_t source_cols() const { return cols_.source_count(); }
  // The kept columns of a row, de-quantised exactly as the whole row would be.
  void read_row(int64_t expert, int64_t row, float* out) const;

 private:
  std::string name_;
  const Format* format_;
  int32_t wanted_;
  uint32_t uses_;
  const std::byte* data_;
  Kept experts_, rows_, cols_;
};

// A packed weight. Backends derive their own; immutable after pack, read by all threads.
class Weight {
 public:
  virtual ~Weight() = default;
  // Row `row` of expert `expert`, de-quantised. The contract of EMBED and of the reference kernels; a weight in a
  // device's own memory has kernels of its own and leaves it out.
  virtual void read_row(int64_t expert, int64_t row, float* out) const;
  // The whole of a MOTLEY_WEIGHT_VECTOR weight in f32, where the kernels read it; null for others.
  virtual const float* vector() const { return nullptr; }

  int64_t experts = 1, rows = 0, cols = 0;  // held
  Kept kept_experts, kept_rows;             // EMBED's tokens and GROUPED_MATMUL's ids are of the source
  uint32_t uses = 0;
  int32_t format = 0;           // motley_dtype it is held in
  uint64_t bytes = 0;           // resident
  bool aliases_source = false;  // the mapped file must stay

 protected:
  Weight() = default;
  explicit Weight(const WeightSource& source)
      : experts(source.experts()),
        rows(source.rows()),
        cols(source.cols()),
        kept_experts(source.kept_experts()),
        kept_rows(source.kept_rows()),
        uses(source.uses()) {}
};

// A weight in its file format: aliases the source if all of it is kept, else copies the rows it needs.
std::unique_ptr<Weight> pack_reference(const WeightSource& source);

// ---- memory and streams (memory.cpp has the host's) ----

struct Plan;

// A stream's work up to a point.
class Mark {
 public:
  virtual ~Mark() = default;
  // Waits until it is done; throws what went wrong in it. Called once, by any one thread; a stream's marks in order.
  virtual void wait() = 0;
};

// What one queue's work runs on, in order; used by one thread at a time. Everything but finish() may return before it
// is done. Throws Error.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void copy(std::byte* to, const std::byte* from, uint64_t bytes) = 0;  // inside the device; may overlap
  virtual void to_host(void* to, const std::byte* from, uint64_t bytes) = 0;
  virtual void from_host(std::byte* to, const void* from, uint64_t bytes) = 0;
  // The steps of a program follow; they read this batch. `key` (empty in host memory) is all that the steps depend on
  // besides the batch's contents: a stream that has recorded steps of an equal key may enqueue its record and answer
  // false; then the steps are left out.
  virtual bool begin(const motley_batch& batch, std::span<const int32_t> row_sequence, const Plan& plan,
                     std::span<const uint64_t> key) = 0;
  // The steps are enqueued. False: they did not count (a record came to nothing), and have to come again.
  virtual bool end() { return true; }
  // What comes waits for the programs that `other`, of the same memory, has been given. No program of it is between
  // begin and end.
  virtual void follow(Stream& /*other*/) {}
  // Waits for all of the above; throws what went wrong in it.
  virtual void finish() = 0;
  // Of all of the above. Null, as here, of a stream that has finished it.
  virtual std::unique_ptr<Mark> mark() {
    finish();
    return nullptr;
  }
};

// Where buffers, KV pools and the arena lie. Thread-safe.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual bool in_host() const = 0;                               // the host may read and write it
  virtual std::byte* allocate(uint64_t bytes) = 0;                // zeroed, on a border of desc.alignment; throws Error
  virtual void release(std::byte*, uint64_t bytes) noexcept = 0;  // once what its streams have been given is done
  virtual void busy(std::byte*, uint64_t /*bytes*/) noexcept {}   // a hint: read and written all over, again and again
  virtual std::unique_ptr<Stream> stream() = 0;
  // Its streams' marks may be of work that is not done: kit then goes on to a queue's next work meanwhile.
  virtual bool runs_ahead() const { return false; }
};
Memory& main_memory();

// ---- KV (kv.cpp) ----

inline constexpr int32_t kHeadDimMax = 4096;

enum class KvOrder {
  kPositionMajor,  // [block][position][kv_head][dim]
  kKeysByDim       // k [block][kv_head][dim][position], v [block][kv_head][position][dim]: scores of several positions
                   // are one vector
};

// One layer of a pool. The values of (block, position in the block, head) begin at v + offset(...) elements, its keys
// at k + key_offset(...), where those of one position lie key_dim_stride apart. I8: value = element * scale; scales lie
// beside, f32, at scale_offset(...).
struct KvLayer {
  int32_t kv_heads = 0, head_dim = 0, window = 0;
  std::byte *k = nullptr, *v = nullptr;
  float *k_scale = nullptr, *v_scale = nullptr;                    // null unless I8
  int64_t block_stride = 0, position_stride = 0, head_stride = 0;  // elements
  int64_t key_position_stride = 0, key_dim_stride = 1;
  int64_t scale_block_stride = 0, scale_position_stride = 0, scale_head_stride = 0;
  int64_t offset(int64_t block, int64_t position, int64_t head) const {
    return block * block_stride + position * position_stride + head * head_stride;
  }
  int64_t key_offset(int64_t block, int64_t position, int64_t head) const {
    return block * block_stride + position * key_position_stride + head * head_stride;
  }
  int64_t scale_offset(int64_t block, int64_t position, int64_t head) const {
    return block * scale_block_stride + position * scale_position_stride + head * scale_head_stride;
  }
};

struct KvPool {
  int32_t dtype = MOTLEY_F32;
  int32_t element_bytes = 4;
  uint32_t block_size = 0, blocks = 0;
  std::vector<KvLayer> layers;
  uint64_t serial = 0;  // no other pool of the process has it
};

// What pools may hold.
constexpr uint64_t kKvDtypes = uint64_t{1} << MOTLEY_F32 | uint64_t{1} << MOTLEY_F16 | uint64_t{1} << MOTLEY_BF16 |
                               uint64_t{1} << MOTLEY_F8_E4M3 | uint64_t{1} << MOTLEY_I8;

// Stores `count` floats as dtype at `to`; I8: round to nearest even with *scale = max|x| / 127. All KV_WRITEs of a
// plugin go through this rule (docs/formats/kv.md), so that pools can be exchanged.
void kv_store(int32_t dtype, const float* from, int64_t count, std::byte* to, float* scale);
void kv_load(int32_t dtype, const std::byte* from, int64_t count, float scale, float* to);
// Elements that lie together to others `stride` elements apart, and back.
void kv_scatter(int32_t element_bytes, const std::byte* from, int64_t count, std::byte* to, int64_t stride);
void kv_gather(int32_t element_bytes, const std::byte* from, int64_t stride, int64_t count, std::byte* to);

// ---- plans: a checked segment, ready to be rewritten (program.cpp) ----

// A value: rows x width, dense. `rows` is a MOTLEY_DIM_* or a fixed count; inner dims are folded into width, which is
// width / last runs of `last` elements.
struct PlanValue {
  int32_t dtype = MOTLEY_F32;
  int64_t rows = 0;
  int64_t width = 1;      // elements of a row
  int64_t row_bytes = 0;  // a fuse hook may add values of any row_bytes (quantised activations); dtype is then its own
  bool bound = false;     // given by the host (input or output); others live in the arena
  int64_t last = 1;       // elements of the last axis; divides width
};

struct OpCall;
using Kernel = void (*)(const OpCall&);

// One step of a plan. `kind` is the motley_op_kind it came from; a fuse hook may set any kernel, more inputs, more
// outputs and its own data, merge steps, or add steps.
struct PlanOp {
  int32_t kind = 0;
  std::vector<int32_t> in, out;  // value ids; MOTLEY_NONE = absent
  std::vector<int32_t> weight;   // indices into Plan::weights; MOTLEY_NONE = absent
  motley_attr attr{};
  Kernel kernel = nullptr;
  int64_t scratch_bytes = 0;            // private to each thread during the step
  int32_t kv_read = -1, kv_write = -1;  // the pool's layer that the step reads / writes
  uint32_t writes_in = 0;               // bit i: in[i] is written too (SAMPLE's slots)
  std::vector<motley_attr> more_attrs;  // of merged steps
  std::shared_ptr<const void> data;     // the backend's own, immutable
};

struct Plan {
  int32_t cut = 0;  // motley_cut
  std::vector<PlanValue> values;
  std::vector<PlanOp> ops;
  std::vector<const Weight*> weights;
  int64_t rows_max = 0;  // of the largest bucket
  uint32_t threads = 1;
  std::shared_ptr<const void> data;  // the backend's own, immutable
  // Adds an arena value and returns its id.
  int32_t add_value(int32_t dtype, int64_t rows, int64_t width, int64_t row_bytes);
};

// ---- kernels ----

// A value resolved for one enqueue. data is null for an absent one. Rows are 64-byte aligned only if row_bytes is a
// multiple of 64; arena values begin at 64-byte borders, bound ones wherever the host put them (element-aligned).
struct Tensor {
  void* data = nullptr;
  int64_t rows = 0;   // real rows: batch.rows, head rows, slots or the fixed count
  int64_t width = 0;  // elements of a row
  int64_t row_bytes = 0;
  int64_t last = 0;  // elements of the last axis
  int32_t dtype = MOTLEY_F32;
  float* f32(int64_t row = 0) const { return static_cast<float*>(data) + row * width; }
  int32_t* i32(int64_t row = 0) const { return static_cast<int32_t*>(data) + row * width; }
  std::byte* bytes(int64_t row = 0) const { return static_cast<std::byte*>(data) + row * row_bytes; }
};

struct Range {
  int64_t begin, end;
};
// Thread `thread`'s part of [0, count) in whole grains; a pure function of its arguments.
inline Range part_of(int64_t count, uint32_t thread, uint32_t threads, int64_t grain = 1) {
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t begin = grains * thread / threads * grain, end = grains * (thread + 1) / threads * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

class Team;
class RunState;

// What a kernel gets. Every thread of the team calls the kernel with the same call but its own thread and scratch;
// it does its part and returns. What a step reads is complete before it starts (kit puts barriers where needed);
// steps without a dependency between them run without a barrier, so a kernel may write only its outputs.
struct OpCall {
  const PlanOp* op = nullptr;
  std::span<const Tensor> in, out;        // as op->in, op->out
  std::span<const Weight* const> weight;  // as op->weight; null = absent
  const motley_batch* batch = nullptr;    // checked: ids, ranges and slots lie within what they index
  const int32_t* row_sequence = nullptr;  // [rows] the sequence of each row
  bool holes = false;                     // some of the batch's blocks lie elsewhere
  const KvPool* kv = nullptr;             // null: the segment has no KV op
  std::byte* scratch = nullptr;           // op->scratch_bytes, 64-byte aligned, not cleared
  uint32_t thread = 0, threads = 1;
  RunState* run = nullptr;
  Stream* stream = nullptr;  // of the queue; a kernel of a device with memory of its own enqueues its work here
  std::atomic<int64_t>* taken = nullptr;  // where the part begins that take() gives next

  Range part(int64_t count, int64_t grain = 1) const { return part_of(count, thread, threads, grain); }
  // Work that any thread may do, for threads that are not equally fast: the next part of [0, count) that none has taken
  // yet, in whole grains; an empty one when all are taken. Parts become smaller towards the end. A step hands out one
  // range: every call of it names the same count.
  Range take(int64_t count, int64_t grain = 1) const;
  // All threads of the team meet. Every thread must call it the same number of times.
  void barrier() const;
  // The program's event fires with this code instead of OK (the first one wins); the run goes on. For data that only
  // shows itself at run time, e.g. a token in a slot beyond the vocabulary. `text` must be a literal.
  void fail(motley_code code, const char* text) const;
};

struct KernelEntry {
  Kernel run = nullptr;                                            // null: the op is not supported
  int64_t (*scratch_bytes)(const Plan&, const PlanOp&) = nullptr;  // null: none
};
using KernelTable = std::array<KernelEntry, MOTLEY_OP_KIND_COUNT>;

// The reference of every op: clear, in double where it matters, for any Weight (through read_row), any thread count.
// ALL_REDUCE is absent. A backend copies the table and replaces what it does better.
const KernelTable& reference_kernels();
uint64_t ops_of(const KernelTable& table);  // motley_device_desc.ops

// ---- what a backend supplies ----

struct OpenOptions {
  uint32_t threads = 0;          // 0 = default
  uint32_t threads_default = 0;  // what this machine suggests; 0 = one for each of `cores`
  std::vector<int> cores;        // never empty: where threads may run, the preferred ones first
  bool cores_given = false;      // the user named them: this device has them for itself
  uint64_t memory_cap = 0;       // 0 = none
  std::string cache_dir, variant;
  bool deterministic = false;
  motley_log_fn log = nullptr;
  void* log_user = nullptr;
};

// The kernels of one open device. Const calls come from several threads.
class Kernels {
 public:
  virtual ~Kernels() = default;
  virtual const KernelTable& table() const = 0;
  // MATMUL and GATHER weights; kit itself keeps VECTOR-only weights in f32 where memory is the host's, elsewhere they
  // come here too. Throws Error for what cannot be packed.
  virtual std::unique_ptr<Weight> pack(const WeightSource& source) const = 0;
  // May refuse an op that passed the general checks: a literal reason, or null.
  virtual const char* refuse(const Plan&, const PlanOp&) const { return nullptr; }
  // May rewrite the checked op list (merge, annotate, replace kernels, add arena values). Called once per compile.
  virtual void fuse(Plan&) const {}
  // Whether its PAGED_ATTENTION skips blocks that lie elsewhere (MOTLEY_CAP_PARTIAL_ATTENTION).
  virtual bool attends_partially() const { return false; }
  virtual KvOrder kv_order() const { return KvOrder::kPositionMajor; }  // the only one outside host memory
  // A device with memory of its own: kernels get its addresses and a batch of the host's (its stream's begin() may copy
  // it), run on one thread, and enqueue. Outlives what is allocated there.
  virtual Memory& memory() const { return main_memory(); }
  // Team size; cores may be fewer than threads (then threads share cores).
  virtual uint32_t threads(const OpenOptions& options) const;  // default: as the options say
};

class Backend {
 public:
  virtual ~Backend() = default;
  // struct_size, index, queues_max and queue_depth are filled by kit, and alignment with a page if it is 0; ops =
  // ops_of(table). `why` explains an empty answer, or what is left out.
  virtual std::vector<motley_device_desc> devices(std::string* why) = 0;
  virtual std::unique_ptr<Kernels> open(uint32_t index, const OpenOptions& options) = 0;  // throws Error
};

// Cores allowed to this process, ascending. parse_cores: "0-3,8"; throws Error on bad text or a core not allowed.
std::vector<int> allowed_cores();
std::vector<int> parse_cores(const char* text);

// Name, memory, default threads and the like of this machine's CPU, for descriptions.
void describe_host_cpu(motley_device_desc* desc);

namespace detail {
motley_code enumerate(Backend&, motley_device_desc*, uint32_t capacity, uint32_t* count, motley_error*) noexcept;
motley_code open(Backend&, uint32_t index, const motley_open_options*, motley_device**, motley_error*) noexcept;
// The table without enumerate and open.
motley_backend common_table(const char* name, const char* version);
}  // namespace detail

// The plugin's table; T is a default-constructible Backend, made on first use and kept.
template <class T>
const motley_backend* backend_table(uint32_t host_abi, const char* name, const char* version) {
  if (host_abi != MOTLEY_BACKEND_ABI) return nullptr;
  static T backend;
  static const motley_backend table = [&] {
    motley_backend t = detail::common_table(name, version);
    t.enumerate = [](motley_device_desc* out, uint32_t capacity, uint32_t* count, motley_error* error) {
      return detail::enumerate(backend, out, capacity, count, error);
    };
    t.open = [](uint32_t index, const motley_open_options* options, motley_device** out, motley_error* error) {
      return detail::open(backend, index, options, out, error);
    };
    return t;
  }();
  return &table;
}

}  // namespace motley::kit

// Defines a plugin's one exported symbol.
#define MOTLEY_KIT_PLUGIN(BackendType, name, version)                                                          \
  extern "C" __attribute__((visibility("default"))) const motley_backend* motley_backend_entry(uint32_t);      \
  extern "C" __attribute__((visibility("default"))) const motley_backend* motley_backend_entry(uint32_t abi) { \
    return motley::kit::backend_table<BackendType>(abi, name, version);                                        \
  }
