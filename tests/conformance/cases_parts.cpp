// The cuts around partner attention, whose work is token-wise: in every bucket, with every number of rows; and the
// blobs that they may be compiled from.
#include <algorithm>
#include <numeric>

#include "harness.hpp"
#include "kit/kit.hpp"

namespace motley::conformance {

namespace {

constexpr int64_t kR = MOTLEY_DIM_ROWS;
constexpr int64_t kHidden = 64, kFfn = 96, kVocab = 97;
constexpr int32_t kHeads = 4, kKvHeads = 2, kHeadDim = 16;
const std::vector<uint32_t> kBuckets = {1, 16, 64, 128};
constexpr uint32_t kRowCounts[] = {1, 5, 16, 17, 64, 128};

struct Part {
  std::string name;
  GraphBuilder graph;
  std::map<int32_t, int64_t> inputs;  // widths
};

class PartBuilder {
 public:
  PartBuilder(Random& random, int32_t dtype) : random_(random), dtype_(dtype) {}

  // Which of them: behind an attention, before one, and the head.
  Part build(const char* name, int32_t cut, bool behind, bool before, bool head) {
    part_ = {};
    part_.name = name;
    part_.graph.cut = cut;
    residual_ = input(kHidden);
    if (behind) {
      part_.graph.outputs.push_back(residual_);
      add(matmul(input(kHeads * kHeadDim), kHidden, kHeads * kHeadDim));
      const int32_t y = norm(residual_);
      const int32_t gate = matmul(y, kFfn, kHidden), up = matmul(y, kFfn, kHidden), both = value(kFfn);
      part_.graph.op(MOTLEY_OP_SILU_MUL, {gate, up}, {both});
      add(matmul(both, kHidden, kFfn));
    }
    if (before) {
      const int32_t y = norm(residual_);
      rope(matmul(y, kHeads * kHeadDim, kHidden), kHeads);
      rope(matmul(y, kKvHeads * kHeadDim, kHidden), kKvHeads);
      part_.graph.outputs.push_back(matmul(y, kKvHeads * kHeadDim, kHidden));
    }
    if (head) {
      const int32_t chosen = part_.graph.value(MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, kHidden});
      part_.graph.op(MOTLEY_OP_SELECT_ROWS, {norm(residual_)}, {chosen});
      const int32_t logits = part_.graph.output(MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, kVocab});
      part_.graph.op(MOTLEY_OP_MATMUL, {chosen}, {logits}, {matrix(kVocab, kHidden)});
    }
    return std::move(part_);
  }

 private:
  int32_t value(int64_t width) { return part_.graph.value(MOTLEY_F32, {kR, width}); }
  int32_t input(int64_t width) {
    const int32_t id = part_.graph.input(MOTLEY_F32, {kR, width});
    part_.inputs[id] = width;
    return id;
  }
  int32_t matrix(int64_t rows, int64_t cols) {
    return part_.graph.weight(random_weight(random_, dtype_, MOTLEY_WEIGHT_MATMUL, rows, cols));
  }
  int32_t matmul(int32_t x, int64_t rows, int64_t cols) {
    const int32_t out = value(rows);
    part_.graph.op(MOTLEY_OP_MATMUL, {x}, {out}, {matrix(rows, cols)});
    return out;
  }
  int32_t norm(int32_t x) {
    auto w = random_.normals(kHidden, 0.1f);
    for (float& each : w) each += 1;
    const int32_t out = value(kHidden);
    part_.graph.op(MOTLEY_OP_RMSNORM, {x}, {out}, {part_.graph.weight(vector_weight(w))}).attr.norm = {1e-5f, kHidden};
    return out;
  }
  void add(int32_t x) { part_.graph.op(MOTLEY_OP_ADD, {residual_, x}, {residual_}); }
  void rope(int32_t x, int32_t heads) {
    const int32_t out = part_.graph.output(MOTLEY_F32, {kR, int64_t{heads} * kHeadDim});
    part_.graph.op(MOTLEY_OP_ROPE, {x}, {out}).attr.rope = {
        MOTLEY_ROPE_NEOX, heads, kHeadDim, kHeadDim, 10000, 1, 1, 1, 0, 1, 4};
  }

  Random& random_;
  const int32_t dtype_;
  Part part_;
  int32_t residual_ = 0;
};

std::vector<Part> parts_for(Judge& judge, Random& random, int32_t dtype) {
  PartBuilder builder(random, dtype);
  std::vector<Part> parts = {builder.build("PRE", MOTLEY_CUT_PRE, false, true, false),
                             builder.build("POSTPRE", MOTLEY_CUT_POSTPRE, true, true, false),
                             builder.build("POST", MOTLEY_CUT_POST, true, false, false)};
  if (judge.supports({MOTLEY_OP_SELECT_ROWS}))
    parts.push_back(builder.build("HEAD", MOTLEY_CUT_HEAD, false, false, true));
  else
    judge.skip("the HEAD part: no SELECT_ROWS");
  return parts;
}

bool skip_parts(Judge& judge) {
  const bool can =
      judge.supports({MOTLEY_OP_MATMUL, MOTLEY_OP_ADD, MOTLEY_OP_RMSNORM, MOTLEY_OP_ROPE, MOTLEY_OP_SILU_MUL});
  if (!can) judge.skip("parts around an attention");
  return !can;
}

// `rows` rows of the same numbers whatever their count.
std::map<int32_t, Bytes> given(const Part& part, uint32_t rows) {
  std::map<int32_t, Bytes> inputs;
  for (const auto& [id, width] : part.inputs)
    inputs[id] = to_bytes(Random(static_cast<uint64_t>(id) + 3).normals(rows * static_cast<size_t>(width)));
  return inputs;
}

BatchData batch_of(uint32_t rows) {
  BatchData b = plain_batch(rows);
  b.head_rows.resize((rows + 1) / 2);  // every other row
  for (size_t h = 0; h < b.head_rows.size(); ++h) b.head_rows[h] = static_cast<int32_t>(2 * h);
  return b;
}

Tolerance tolerance_of(Judge& judge, int32_t dtype) {
  const Tolerance one = judge.rounded(matmul_tolerance(dtype));
  return {one.norm * 5, one.largest * 5};  // which adds up
}

// Every number of rows in every bucket that holds them: near the reference; the same bits in all, and of the same rows
// among fewer, where rows do not depend on one another.
void judge_part(Judge& judge, const Part& part, int32_t dtype) {
  const std::string name = part.name + " in " + kit::find_format(dtype)->name;
  Device& device = judge.device();
  const bool invariant = device.has(MOTLEY_CAP_ROW_INVARIANT);
  const Program reference = judge.reference().compile(part.graph, kBuckets),
                program = device.compile(part.graph, kBuckets);
  const auto all = device.run(program, given(part, kBuckets.back()), batch_of(kBuckets.back()));
  for (const uint32_t rows : kRowCounts) {
    const auto inputs = given(part, rows);
    const BatchData batch = batch_of(rows);
    const auto wanted = judge.reference().run(reference, inputs, batch);
    for (uint32_t b = 0; b < kBuckets.size(); ++b) {
      if (kBuckets[b] < rows || (!judge.fixed_rows() && b + 1 < kBuckets.size())) continue;
      const auto got = device.run(program, inputs, batch, nullptr, judge.fixed_rows() ? b : 0);
      const std::string what = name + ", " + std::to_string(rows) + " rows in " + std::to_string(kBuckets[b]);
      for (const int32_t id : part.graph.outputs) {
        judge.near(got.at(id), wanted.at(id), tolerance_of(judge, dtype), what);
        Bytes before = all.at(id);
        before.resize(got.at(id).size());
        if (invariant) judge.same(got.at(id), before, what + " against among others");
      }
    }
  }
}

// ---- blobs ----

struct Compiled {
  motley_code code = MOTLEY_OK;
  motley_error error{};
  Program program;
};

Compiled compile_from(Device& device, const Part& part, const std::vector<uint32_t>& buckets, const Bytes& blob) {
  Compiled made;
  std::vector<motley_weight*> weights;
  for (const HostWeight& w : part.graph.weights) {
    made.program.weights.push_back(device.pack(w));
    weights.push_back(made.program.weights.back().get());
  }
  const motley_segment segment = part.graph.segment();
  motley_compile_options options{};
  options.struct_size = sizeof options;
  options.buckets = buckets.data(), options.bucket_count = static_cast<uint32_t>(buckets.size());
  options.blob = blob.data(), options.blob_bytes = blob.size();
  motley_programs* raw = nullptr;
  made.code = device.api().compile(device.raw(), &segment, weights.data(), &options, &raw, &made.error);
  made.program.programs = {raw, {device.api().programs_free}};
  made.program.values = part.graph.values, made.program.inputs = part.graph.inputs;
  made.program.outputs = part.graph.outputs, made.program.buckets = buckets;
  return made;
}

// Empty where the device makes none.
Bytes exported(Judge& judge, const Program& program) {
  const motley_backend& api = judge.api();
  motley_error error{};
  uint64_t bytes = 0;
  if (!api.export_programs) return {};
  const motley_code asked = api.export_programs(program.programs.get(), nullptr, &bytes, &error);
  if (asked == MOTLEY_UNIMPLEMENTED) return {};
  require_ok(asked, error, "export_programs");
  Bytes blob(bytes);
  if (bytes > 1) {
    uint64_t room = bytes - 1;
    const motley_code small = api.export_programs(program.programs.get(), blob.data(), &room, &error);
    judge.check(small != MOTLEY_OK && error.text[0], "a blob into too little room is refused");
  }
  require_ok(api.export_programs(program.programs.get(), blob.data(), &bytes, &error), error, "export_programs");
  judge.check(bytes == blob.size() && bytes > 0, "the size of a blob is as told before");
  return blob;
}

void stale(Judge& judge, const Part& part, const std::vector<uint32_t>& buckets, const Bytes& blob,
           const std::string& what) {
  const Compiled made = compile_from(judge.device(), part, buckets, blob);
  judge.check(made.code == MOTLEY_FAILED_PRECONDITION && made.error.text[0] && !made.program.programs,
              what + " is refused with FAILED_PRECONDITION and a reason");
}

uint64_t blob_hits(Judge& judge) {
  motley_device_stats stats{};
  stats.struct_size = sizeof stats;
  motley_error error{};
  require_ok(judge.api().stats(judge.device().raw(), &stats, &error), error, "stats");
  return stats.blob_hits;
}

}  // namespace

void judge_parts(Judge& judge) {
  if (skip_parts(judge)) return;
  if (judge.device().has(MOTLEY_CAP_WEIGHTS_AS_ARGS))
    judge.skip("weights as arguments: the contract hands weights over at compile alone");
  for (const int32_t dtype : {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16, MOTLEY_Q8_0}) {
    if (!judge.packs(dtype)) continue;
    Random random(judge.options().seed + 40 + static_cast<uint64_t>(dtype));
    for (const Part& part : parts_for(judge, random, dtype)) judge_part(judge, part, dtype);
  }
}

void judge_blobs(Judge& judge) {
  if (skip_parts(judge)) return;
  const int32_t dtype = judge.plain_dtype();
  if (kit::find_format(dtype)->block > 1) return judge.skip("blobs");
  Random random(judge.options().seed + 41);
  const std::vector<Part> parts = parts_for(judge, random, dtype);
  const Part &part = parts[1], &other = parts[2];
  Device& device = judge.device();
  const Program first = device.compile(part.graph, kBuckets);
  const Bytes blob = exported(judge, first);
  if (blob.empty()) return judge.skip("blobs");
  const uint64_t hits = blob_hits(judge);
  const Compiled again = compile_from(device, part, kBuckets, blob);
  require_ok(again.code, again.error, "compile from a blob");
  judge.check(blob_hits(judge) == hits + kBuckets.size(), "statistics count what was made of a blob");
  judge.check(exported(judge, again.program) == blob, "what was made of a blob exports it");
  for (const uint32_t rows : {1u, 17u, 128u}) {
    const auto a = device.run(first, given(part, rows), batch_of(rows));
    const auto b = device.run(again.program, given(part, rows), batch_of(rows));
    for (const int32_t id : part.graph.outputs)
      judge.same(b.at(id), a.at(id), "a program of a blob, " + std::to_string(rows) + " rows");
  }
  stale(judge, other, kBuckets, blob, "the blob of another segment");
  stale(judge, part, {1, 16}, blob, "the blob of other buckets");
  stale(judge, part, kBuckets, {blob.begin(), blob.begin() + static_cast<long>(blob.size() / 2)}, "half a blob");
  stale(judge, part, kBuckets, Bytes(blob.size(), std::byte{0x5a}), "a blob of noise");
}

}  // namespace motley::conformance
