#include "sim/rules.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace motley::sim {
namespace {

using kit::fail;

constexpr uint64_t bit(int index) { return uint64_t{1} << index; }
// What they do depends on the rows' contents, or on how many there are of a sequence.
constexpr uint64_t kRaggedOps = bit(MOTLEY_OP_KV_WRITE) | bit(MOTLEY_OP_PAGED_ATTENTION) | bit(MOTLEY_OP_SAMPLE) |
                                bit(MOTLEY_OP_TOPK_ROUTER) | bit(MOTLEY_OP_GROUPED_MATMUL) |
                                bit(MOTLEY_OP_COMBINE_EXPERTS);
constexpr uint64_t kAttentionOps = bit(MOTLEY_OP_KV_WRITE) | bit(MOTLEY_OP_PAGED_ATTENTION);
// Ops that only move numbers, and ADD.
constexpr uint64_t kExactOps = bit(MOTLEY_OP_ADD) | bit(MOTLEY_OP_SPLIT) | bit(MOTLEY_OP_CONCAT) | bit(MOTLEY_OP_CAST) |
                               bit(MOTLEY_OP_SELECT_ROWS) | bit(MOTLEY_OP_KV_WRITE) | bit(MOTLEY_OP_SAMPLE);

std::string names_of_formats(uint64_t formats) {
  std::string names;
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype)
    if (const kit::Format* format = formats & bit(dtype) ? kit::find_format(dtype) : nullptr)
      names += (names.empty() ? "" : ", ") + std::string(format->name);
  return names;
}

}  // namespace

uint64_t ops_of(const Rules& rules, uint64_t ops) {
  ops &= ~rules.without_ops;
  if (!rules.dynamic_rows) ops &= ~kRaggedOps;
  if (!rules.paged_attention) ops &= ~kAttentionOps;
  return ops;
}

void check_ops(const Rules& rules, const kit::Plan& plan, uint32_t* bad_op) {
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const int32_t kind = plan.ops[i].kind;
    *bad_op = static_cast<uint32_t>(i);
    if (ops_of(rules, bit(kind)) == 0)
      fail(MOTLEY_UNIMPLEMENTED, "op %zu: this device has no %s", i, kit::op_name(kind));
  }
}

void check_format(const Spec& spec, const motley_weight_desc& desc) {
  const Rules& rules = spec.rules;
  const bool refuses = std::any_of(spec.faults.begin(), spec.faults.end(),
                                   [](const Fault& fault) { return fault.what == Fault::kFormat; });
  if (const kit::Format* format = kit::find_format(desc.format); refuses && desc.uses != MOTLEY_WEIGHT_VECTOR)
    fail(MOTLEY_UNIMPLEMENTED, "a weight in %s: this device takes none after all (a fault of its description)",
         format ? format->name : "an unknown format");
  if (rules.weight_formats == 0 || desc.uses == MOTLEY_WEIGHT_VECTOR) return;
  const kit::Format* format = kit::find_format(desc.format);
  if (format && rules.weight_formats & bit(desc.format)) return;
  fail(MOTLEY_UNIMPLEMENTED, "a weight in %s: this device holds %s alone; ask for it as the format",
       format ? format->name : "an unknown format", names_of_formats(rules.weight_formats).c_str());
}

std::vector<std::byte> converted(const motley_weight_desc& desc) {
  motley_weight_desc whole = desc;  // checks shape and bytes
  whole.format = whole.dtype;
  whole.row_range_count = whole.col_range_count = whole.expert_range_count = 0;
  const kit::WeightSource source(whole);
  const int64_t size = kit::element_bytes(desc.format);
  if (desc.format != MOTLEY_F32 && desc.format != MOTLEY_F16 && desc.format != MOTLEY_BF16)
    fail(MOTLEY_UNIMPLEMENTED, "weights are converted to F32, F16 and BF16 alone");
  const auto rows = static_cast<size_t>(source.rows()), cols = static_cast<size_t>(source.cols());
  std::vector<std::byte> out(static_cast<size_t>(source.experts()) * rows * cols * static_cast<size_t>(size));
  std::vector<float> row(cols);
  std::byte* to = out.data();
  for (int64_t e = 0; e < source.experts(); ++e) {
    for (int64_t r = 0; r < source.rows(); ++r) {
      source.read_row(e, r, row.data());
      for (const float x : row) {
        const uint16_t half = desc.format == MOTLEY_F16 ? kit::f32_to_f16(x) : kit::f32_to_bf16(x);
        std::memcpy(to, size == 4 ? static_cast<const void*>(&x) : &half, static_cast<size_t>(size));
        to += size;
      }
    }
  }
  return out;
}

double compile_seconds(const Rules& rules, const kit::Plan& plan) {
  const double seconds = rules.compile_s + rules.compile_op_s * static_cast<double>(plan.ops.size());
  return rules.compile_max_s > 0 ? std::min(seconds, rules.compile_max_s) : seconds;
}

RoundedSegment::RoundedSegment(const motley_segment& from)
    : values_(from.values, from.values + from.value_count), view_(from) {
  for (uint32_t i = 0; i < from.op_count; ++i) {
    const size_t at = ops_.size();
    ops_.push_back(from.ops[i]);
    if (bit(from.ops[i].kind) & kExactOps) continue;
    for (int out = 0; out < MOTLEY_OP_OUTPUTS_MAX; ++out) {
      const int32_t id = from.ops[i].out[out];
      if (id == MOTLEY_NONE || values_[static_cast<size_t>(id)].dtype != MOTLEY_F32) continue;
      const int32_t exact = like(id, MOTLEY_F32), half = like(id, MOTLEY_F16);
      ops_[at].out[out] = exact;
      for (const auto& [in, to] : {std::pair{exact, half}, {half, id}}) {
        motley_op cast{};
        cast.kind = MOTLEY_OP_CAST;
        std::fill(std::begin(cast.in), std::end(cast.in), MOTLEY_NONE);
        std::fill(std::begin(cast.out), std::end(cast.out), MOTLEY_NONE);
        std::fill(std::begin(cast.weight), std::end(cast.weight), MOTLEY_NONE);
        cast.in[0] = in, cast.out[0] = to;
        ops_.push_back(cast);
      }
    }
  }
  view_.values = values_.data(), view_.value_count = static_cast<uint32_t>(values_.size());
  view_.ops = ops_.data(), view_.op_count = static_cast<uint32_t>(ops_.size());
}

int32_t RoundedSegment::like(int32_t value, int32_t dtype) {
  values_.push_back(values_[static_cast<size_t>(value)]);
  values_.back().dtype = dtype;
  return static_cast<int32_t>(values_.size()) - 1;
}

PaddedBatch::PaddedBatch(const motley_batch& from, uint32_t bucket, bool head_rows) : view_(from) {
  const auto pad = [](auto& to, const auto*& array, uint32_t count, uint32_t size, auto value) {
    if (!array) return;
    to.assign(array, array + count);
    to.resize(size, value);
    array = to.data();
  };
  pad(token_ids_, view_.token_ids, from.rows, bucket, 0);
  pad(token_slots_, view_.token_slots, from.rows, bucket, -1);
  pad(positions_, view_.positions, from.rows, bucket, 0);
  pad(kv_slots_, view_.kv_slots, from.rows, bucket, -1);
  pad(generated_, view_.generated, from.rows, bucket, uint8_t{0});
  view_.rows = bucket;
  if (!head_rows) return;
  if (from.head_row_count > 0 && from.head_rows)
    head_rows_.assign(from.head_rows, from.head_rows + from.head_row_count);
  head_rows_.resize(bucket, 0);
  view_.head_rows = head_rows_.data(), view_.head_row_count = bucket;
}

namespace {

constexpr char kMagic[8] = {'m', 'o', 't', 'l', 'e', 'y', 's', '2'};

constexpr uint64_t kFnvStart = 0xcbf29ce484222325ull;
uint64_t fnv(uint64_t hash, const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ at[i]) * 0x100000001b3ull;
  return hash;
}

// Numbers, one by one: what lies between and behind them in a struct or a union may be anything.
template <class... Numbers>
uint64_t mixed(uint64_t hash, const Numbers&... numbers) {
  static_assert((std::is_arithmetic_v<Numbers> && ...));
  ((hash = fnv(hash, &numbers, sizeof numbers)), ...);
  return hash;
}

uint64_t mixed_attr(uint64_t hash, int32_t kind, const motley_attr& attr) {
  switch (kind) {
    case MOTLEY_OP_EMBED: return mixed(hash, attr.embed.scale);
    case MOTLEY_OP_SCALE:
    case MOTLEY_OP_SOFTCAP: return mixed(hash, attr.scale.factor);
    case MOTLEY_OP_RMSNORM: return mixed(hash, attr.norm.eps, attr.norm.group);
    case MOTLEY_OP_ROPE: {
      const auto& r = attr.rope;
      hash = mixed(hash, r.style, r.heads, r.head_dim, r.n_rot, r.base, r.position_scale, r.magnitude);
      return mixed(hash, r.yarn_factor, r.yarn_ext_factor, r.yarn_low, r.yarn_high);
    }
    case MOTLEY_OP_KV_WRITE: return mixed(hash, attr.kv.layer, attr.kv.kv_heads, attr.kv.head_dim);
    case MOTLEY_OP_PAGED_ATTENTION: {
      const auto& a = attr.attention;
      return mixed(hash, a.layer, a.heads, a.kv_heads, a.head_dim, a.scale, a.window, a.softcap);
    }
    case MOTLEY_OP_TOPK_ROUTER: {
      const auto& r = attr.router;
      return mixed(hash, r.experts, r.top_k, r.gating, r.normalise, r.scale);
    }
    case MOTLEY_OP_CLAMPED_SWIGLU: return mixed(hash, attr.glu.alpha, attr.glu.limit);
    default: return hash;
  }
}

// Of what it computes; the host's own hash is not relied on.
uint64_t digest(const motley_segment& s) {
  uint64_t hash = mixed(kFnvStart, s.cut, s.layer_begin, s.layer_end, s.value_count, s.op_count, s.input_count);
  for (const motley_value& value : std::span(s.values, s.value_count)) {
    hash = mixed(hash, value.dtype, value.rank);
    for (int32_t i = 0; i < value.rank; ++i) hash = mixed(hash, value.dims[i]);
  }
  for (const motley_op& op : std::span(s.ops, s.op_count)) {
    hash = mixed(hash, op.kind);
    for (const auto* ids : {&op.in, &op.out, &op.weight})
      for (const int32_t id : *ids) hash = mixed(hash, id);
    hash = mixed_attr(hash, op.kind, op.attr);
  }
  hash = fnv(hash, s.inputs, s.input_count * sizeof *s.inputs);
  return fnv(hash, s.outputs, s.output_count * sizeof *s.outputs);
}

struct BlobHead {
  char magic[8];
  char device[32], driver[32];
  uint64_t description, segment, buckets, checksum;  // the checksum is of all before it
};

BlobHead head_of(const Spec& spec, const motley_segment& segment, std::span<const uint32_t> buckets) {
  BlobHead head{};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  std::snprintf(head.device, sizeof head.device, "%s", spec.label.c_str());
  std::snprintf(head.driver, sizeof head.driver, "%s", spec.rules.driver.c_str());
  head.description = spec.text_hash;
  head.segment = digest(segment);
  head.buckets = fnv(kFnvStart, buckets.data(), buckets.size_bytes());
  head.checksum = fnv(kFnvStart, &head, offsetof(BlobHead, checksum));
  return head;
}

}  // namespace

uint64_t hash_of_text(std::string_view text) { return fnv(kFnvStart, text.data(), text.size()); }

std::vector<std::byte> make_blob(const Spec& spec, const motley_segment& segment, std::span<const uint32_t> buckets) {
  const BlobHead head = head_of(spec, segment, buckets);
  const auto* bytes = reinterpret_cast<const std::byte*>(&head);
  return {bytes, bytes + sizeof head};
}

void check_blob(std::span<const std::byte> blob, const Spec& spec, const motley_segment& segment,
                std::span<const uint32_t> buckets) {
  BlobHead head{};
  if (blob.size() == sizeof head) std::memcpy(&head, blob.data(), sizeof head);
  if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0 ||
      head.checksum != fnv(kFnvStart, &head, offsetof(BlobHead, checksum)))
    fail(MOTLEY_FAILED_PRECONDITION, "the blob is broken or not of this plugin; compile without it");
  const BlobHead wanted = head_of(spec, segment, buckets);
  if (std::memcmp(head.device, wanted.device, sizeof head.device) != 0)
    fail(MOTLEY_FAILED_PRECONDITION, "the blob is of another device (%.31s); compile without it", head.device);
  if (std::memcmp(head.driver, wanted.driver, sizeof head.driver) != 0)
    fail(MOTLEY_FAILED_PRECONDITION, "the blob is of the driver version %.31s, and this is %.31s; compile without it",
         head.driver, wanted.driver);
  if (head.description != wanted.description)
    fail(MOTLEY_FAILED_PRECONDITION, "the blob is of another description of %.31s; compile without it", head.device);
  if (head.segment != wanted.segment || head.buckets != wanted.buckets)
    fail(MOTLEY_FAILED_PRECONDITION, "the blob is of another segment or of other buckets; compile without it");
}

}  // namespace motley::sim
