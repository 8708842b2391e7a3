// Devices of fixed shapes, through the plugin's file: buckets, padding, formats, F16, compiling, blobs, residents.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>

#include "motley/backend.h"
#include "sim/plugin_testing.hpp"

namespace {

constexpr uint64_t kSoon_ns = 60'000'000'000;  // an event that should fire
constexpr int64_t kWidth = 64;
constexpr uint32_t kBuckets[] = {4, 16};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr const char* kFixed = R"(kind = "npu"
memory_bytes = 4194304
bandwidth_gb_s = 1
dispatch_us = 5
gflops = {f32 = 100}
dynamic_rows = false
paged_attention = false
)";

using motley::sim::testing::Answer;
using motley::sim::testing::Owned;

const motley_backend& sim() { return motley::sim::testing::plugin_table(MOTLEY_BINARY_DIR "/lib/motley/sim.so"); }

void says(const Answer& answer, motley_code code, const std::string& part) {
  EXPECT_EQ(answer.code, code) << answer.text;
  EXPECT_NE(answer.text.find(part), std::string::npos) << answer.text;
}

// out = op(in, in), both [ROWS, kWidth].
struct Graph {
  explicit Graph(int32_t kind) {
    for (motley_value& v : values) v.dtype = MOTLEY_F32, v.rank = 2, v.dims[0] = MOTLEY_DIM_ROWS, v.dims[1] = kWidth;
    add(kind, 0, 1);
  }
  motley_op& add(int32_t kind, int32_t in, int32_t out) {
    motley_op op{};
    std::fill(std::begin(op.in), std::end(op.in), MOTLEY_NONE);
    std::fill(std::begin(op.out), std::end(op.out), MOTLEY_NONE);
    std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
    op.kind = kind, op.in[0] = in, op.out[0] = out;
    if (kind == MOTLEY_OP_ADD || kind == MOTLEY_OP_MUL) op.in[1] = in;
    if (kind == MOTLEY_OP_SCALE) op.attr.scale.factor = 3;
    if (kind == MOTLEY_OP_PAGED_ATTENTION) op.attr.attention = {0, 1, 1, kWidth, 1, 0, 0};
    ops.push_back(op);
    return ops.back();
  }
  motley_segment segment() const {
    motley_segment s{};
    s.struct_size = sizeof s, s.cut = MOTLEY_CUT_STAGE, s.layer_end = 1;
    s.values = values, s.value_count = 3, s.ops = ops.data(), s.op_count = static_cast<uint32_t>(ops.size());
    s.inputs = &input, s.input_count = 1, s.outputs = &output, s.output_count = 1, s.weight_count = weights;
    return s;
  }
  motley_value values[3]{};
  std::vector<motley_op> ops;
  int32_t input = 0, output = 1;
  uint32_t weights = 0;
};

class Rig {
 public:
  explicit Rig(const std::string& toml, bool virtual_time = true) {
    const std::string path = testing::TempDir() + "rules_test_" + std::to_string(getpid()) + ".toml";
    std::ofstream(path) << toml;
    motley_device_desc desc{};
    desc.struct_size = sizeof desc;
    motley_error error{};
    EXPECT_EQ(sim().describe(path.c_str(), &desc, &error), MOTLEY_OK) << error.text;
    unlink(path.c_str());
    open(desc, virtual_time);
  }
  explicit Rig(const motley_device_desc& desc) { open(desc, true); }
  ~Rig() { queue_.reset(); }

  struct Compiled {
    Answer answer;
    Owned<motley_programs> programs{nullptr, nullptr};
  };
  Compiled compile(const Graph& graph, std::vector<uint32_t> buckets = {std::begin(kBuckets), std::end(kBuckets)},
                   const std::vector<std::byte>& blob = {}, motley_weight* const* weights = nullptr) {
    const motley_segment segment = graph.segment();
    motley_compile_options options{};
    options.struct_size = sizeof options;
    options.buckets = buckets.data(), options.bucket_count = static_cast<uint32_t>(buckets.size());
    if (!blob.empty()) options.blob = blob.data(), options.blob_bytes = blob.size();
    motley_programs* raw = nullptr;
    motley_error error{};
    const motley_code code = sim().compile(device_.get(), &segment, weights, &options, &raw, &error);
    return {{code, error.text}, {raw, sim().programs_free}};
  }
  std::vector<std::byte> exported(motley_programs* programs) {
    uint64_t bytes = 0;
    motley_error error{};
    EXPECT_EQ(sim().export_programs(programs, nullptr, &bytes, &error), MOTLEY_OK) << error.text;
    std::vector<std::byte> blob(bytes);
    EXPECT_EQ(sim().export_programs(programs, blob.data(), &bytes, &error), MOTLEY_OK) << error.text;
    return blob;
  }
  motley_query_result query(const Graph& graph) {
    const motley_segment segment = graph.segment();
    motley_query_result result{};
    result.struct_size = sizeof result;
    motley_error error{};
    EXPECT_EQ(sim().query(device_.get(), &segment, kBuckets, 2, &result, &error), MOTLEY_OK) << error.text;
    return result;
  }

  struct Ran {
    Answer answer;
    std::vector<float> out;
    int64_t start_ns = 0, end_ns = 0;
  };
  // `rows` rows of `in` in a bucket; the buffers hold as many rows as `in`.
  Ran run(motley_programs* programs, uint32_t bucket, uint32_t rows, const std::vector<float>& in) {
    const uint64_t bytes = in.size() * sizeof(float);
    const auto x = buffer(bytes), y = buffer(bytes);
    motley_error error{};
    motley_event* event = nullptr;
    EXPECT_EQ(sim().copy_from_host(queue_.get(), x.get(), 0, in.data(), bytes, &event, &error), MOTLEY_OK);
    EXPECT_EQ(wait(event).code, MOTLEY_OK);
    const motley_binding bindings[] = {{0, x.get(), 0}, {1, y.get(), 0}};
    const std::vector<uint8_t> generated(rows, 1);
    motley_batch batch{};
    batch.struct_size = sizeof batch, batch.rows = rows, batch.generated = generated.data();
    motley_enqueue_args args{};
    args.struct_size = sizeof args, args.bucket = bucket;
    args.bindings = bindings, args.binding_count = 2, args.batch = &batch;
    Ran ran;
    event = nullptr;
    ran.answer = {sim().enqueue(queue_.get(), programs, &args, &event, &error), error.text};
    if (!event) return ran;
    motley_error failed{};
    ran.answer = {sim().event_wait(event, kSoon_ns, &failed), failed.text};
    motley_event_times times{};
    times.struct_size = sizeof times;
    EXPECT_EQ(sim().event_times(event, &times, &error), MOTLEY_OK) << error.text;
    sim().event_release(event);
    ran.start_ns = times.start_ns, ran.end_ns = times.end_ns;
    ran.out.resize(in.size());
    if (ran.answer.code != MOTLEY_OK) return ran;
    EXPECT_EQ(sim().copy_to_host(queue_.get(), ran.out.data(), y.get(), 0, bytes, &event, &error), MOTLEY_OK);
    EXPECT_EQ(wait(event).code, MOTLEY_OK);
    return ran;
  }
  Answer pack(int32_t dtype, int32_t format, const std::vector<std::byte>& data, int64_t rows, int64_t cols,
              motley_weight_info* info, const std::vector<motley_range>& row_ranges = {}) {
    motley_weight_desc desc{};
    desc.struct_size = sizeof desc, desc.name = "w", desc.dtype = dtype, desc.format = format;
    desc.uses = MOTLEY_WEIGHT_MATMUL, desc.experts = 1, desc.rows = rows, desc.cols = cols;
    desc.data = data.data(), desc.bytes = data.size();
    desc.row_ranges = row_ranges.data(), desc.row_range_count = static_cast<uint32_t>(row_ranges.size());
    motley_weight* raw = nullptr;
    motley_error error{};
    info->struct_size = sizeof *info;
    const motley_code code = sim().pack(device_.get(), &desc, &raw, info, &error);
    const Owned<motley_weight> owned{raw, sim().weight_free};
    return {code, error.text};
  }
  Answer try_alloc(uint64_t bytes) {
    motley_buffer* raw = nullptr;
    motley_error error{};
    const motley_code code = sim().alloc(device_.get(), bytes, MOTLEY_USE_ACTIVATION, nullptr, &raw, &error);
    const Owned<motley_buffer> owned{raw, sim().free};
    return {code, error.text};
  }
  motley_device_stats stats() {
    motley_device_stats out{};
    out.struct_size = sizeof out;
    motley_error error{};
    EXPECT_EQ(sim().stats(device_.get(), &out, &error), MOTLEY_OK) << error.text;
    return out;
  }
  motley_device* device() { return device_.get(); }

  int64_t now_ns = 1'000'000;

 private:
  void open(const motley_device_desc& desc, bool virtual_time) {
    motley_open_options options{};
    options.struct_size = sizeof options;
    if (virtual_time) options.virtual_now = [](void* user) { return *static_cast<int64_t*>(user); };
    options.virtual_user = &now_ns;
    motley_device* raw = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().open(desc.index, &options, &raw, &error), MOTLEY_OK) << error.text;
    device_ = {raw, sim().close};
    motley_queue* queue = nullptr;
    EXPECT_EQ(sim().queue_create(device_.get(), &queue, &error), MOTLEY_OK) << error.text;
    queue_ = {queue, sim().queue_destroy};
  }
  Owned<motley_buffer> buffer(uint64_t bytes) {
    motley_buffer* raw = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().alloc(device_.get(), bytes, MOTLEY_USE_ACTIVATION, nullptr, &raw, &error), MOTLEY_OK) << error.text;
    return {raw, sim().free};
  }
  Answer wait(motley_event* event) {
    motley_error error{};
    const motley_code code = sim().event_wait(event, kSoon_ns, &error);
    sim().event_release(event);
    return {code, error.text};
  }
  Owned<motley_device> device_{nullptr, nullptr};
  Owned<motley_queue> queue_{nullptr, nullptr};
};

std::string with(const std::string& more) { return kFixed + more; }
std::vector<float> rows_of(uint32_t rows, float value) { return std::vector<float>(rows * kWidth, value); }

motley_device_desc preset(const char* name) {
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  motley_error error{};
  EXPECT_EQ(sim().describe(name, &desc, &error), MOTLEY_OK) << error.text;
  return desc;
}
bool has(uint64_t mask, int bit) { return mask >> bit & 1; }

TEST(SimRules, PresetsOfNpus_DescribeWhatTheyHave) {
  for (const char* name : {"intel-npu-like", "xdna-like", "hexagon-like"}) {
    const motley_device_desc d = preset(name);
    EXPECT_EQ(d.kind, MOTLEY_KIND_NPU);
    EXPECT_EQ(d.caps & (MOTLEY_CAP_DYNAMIC_ROWS | MOTLEY_CAP_PAGED_ATTENTION | MOTLEY_CAP_WEIGHTS_AS_ARGS), 0u) << name;
    EXPECT_EQ(d.weight_dtypes, uint64_t{1} << MOTLEY_F16 | uint64_t{1} << MOTLEY_Q8_0 | uint64_t{1} << MOTLEY_Q4_0);
    EXPECT_EQ(d.kv_dtypes, 0u);
    EXPECT_EQ(d.result_dtype, MOTLEY_F16);
    EXPECT_TRUE(has(d.ops, MOTLEY_OP_MATMUL) && has(d.ops, MOTLEY_OP_ROPE));
    for (const int op : {MOTLEY_OP_KV_WRITE, MOTLEY_OP_PAGED_ATTENTION, MOTLEY_OP_SAMPLE, MOTLEY_OP_GROUPED_MATMUL})
      EXPECT_FALSE(has(d.ops, op)) << name << " " << op;
    EXPECT_EQ(has(d.ops, MOTLEY_OP_EMBED), std::string(name) != "hexagon-like");
    EXPECT_EQ(has(d.ops, MOTLEY_OP_SELECT_ROWS), std::string(name) != "hexagon-like");
  }
  const motley_device_desc ascend = preset("ascend-like");
  EXPECT_NE(ascend.caps & MOTLEY_CAP_DYNAMIC_ROWS, 0u);
  EXPECT_NE(ascend.caps & MOTLEY_CAP_PAGED_ATTENTION, 0u);
  EXPECT_EQ(ascend.caps & MOTLEY_CAP_COLLECTIVES, 0u);
}

TEST(SimRules, OnlyCompiledBuckets_Run) {
  Rig rig(kFixed);
  const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));
  ASSERT_EQ(compiled.answer.code, MOTLEY_OK) << compiled.answer.text;
  motley_programs* programs = compiled.programs.get();
  says(rig.run(programs, 2, 1, rows_of(16, 1)).answer, MOTLEY_OUT_OF_RANGE, "bucket 2 of 2");
  says(rig.run(programs, 0, 5, rows_of(16, 1)).answer, MOTLEY_OUT_OF_RANGE, "5 rows; the program takes 4");
  says(rig.run(programs, 1, 17, rows_of(17, 1)).answer, MOTLEY_OUT_OF_RANGE, "17 rows; the program takes 16");
  says(rig.run(programs, 1, 3, rows_of(15, 1)).answer, MOTLEY_OUT_OF_RANGE, "the bucket's rows");
  EXPECT_EQ(rig.stats().programs, 0u);
  EXPECT_EQ(rig.run(programs, 0, 3, rows_of(4, 1)).answer.code, MOTLEY_OK);
  EXPECT_EQ(rig.run(programs, 1, 3, rows_of(16, 1)).answer.code, MOTLEY_OK);
  EXPECT_EQ(rig.stats().programs, 2u);
  EXPECT_EQ(rig.stats().rows, 6u);
  EXPECT_EQ(rig.stats().padded_rows, 20u);
}

TEST(SimRules, PaddingRows_AreComputedAndTakeTheirTime) {
  Rig rig(kFixed);
  const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));
  std::vector<float> in = rows_of(16, 2);
  std::fill_n(in.begin() + kWidth, kWidth, kNaN);
  const auto one = rig.run(compiled.programs.get(), 0, 1, in), all = rig.run(compiled.programs.get(), 0, 4, in);
  EXPECT_EQ(one.out[0], 4);
  EXPECT_TRUE(std::isnan(one.out[kWidth])) << "a padding row is computed from what lies there";
  EXPECT_EQ(one.out[3 * kWidth], 4);
  EXPECT_EQ(one.end_ns - one.start_ns, all.end_ns - all.start_ns);
  const auto larger = rig.run(compiled.programs.get(), 1, 1, in);
  EXPECT_EQ(larger.out[0], 4);
  EXPECT_GT(larger.end_ns - larger.start_ns, one.end_ns - one.start_ns);
}

TEST(SimRules, ResultsInF16_AreRoundedAndOverflow) {
  Rig rig(with("f16_results = true\n"));
  std::vector<float> in = rows_of(4, 1.0f / 3);
  in[1] = 30000, in[2] = -30000, in[3] = 1e-9f;
  const auto scale = rig.compile(Graph(MOTLEY_OP_SCALE), {4});
  const auto scaled = rig.run(scale.programs.get(), 0, 4, in).out;
  EXPECT_EQ(scaled[0], 1.0f);
  EXPECT_EQ(scaled[1], INFINITY);
  EXPECT_EQ(scaled[2], -INFINITY);
  EXPECT_EQ(scaled[3], 0);
  const auto add = rig.compile(Graph(MOTLEY_OP_ADD), {4});
  const auto added = rig.run(add.programs.get(), 0, 4, in).out;
  EXPECT_EQ(added[0], 2 * in[0]) << "sums, as of residual streams, stay F32";
  EXPECT_EQ(added[1], 60000);
  Graph chain(MOTLEY_OP_MUL);  // 300^2 overflows inside, although its square root would not
  chain.ops[0].out[0] = 2;
  chain.add(MOTLEY_OP_SOFTCAP, 2, 1).attr.scale.factor = 10;
  const auto chained = rig.compile(chain, {4});
  ASSERT_EQ(chained.answer.code, MOTLEY_OK) << chained.answer.text;
  EXPECT_EQ(rig.run(chained.programs.get(), 0, 4, rows_of(4, 300)).out[0], 10);
  EXPECT_EQ(Rig(kFixed).run(Rig(kFixed).compile(Graph(MOTLEY_OP_SCALE), {4}).programs.get(), 0, 4, in).answer.code,
            MOTLEY_INVALID_ARGUMENT)
      << "programs are a device's own";
}

// y = the sum of x, of 192 columns from the second 64 on.
std::vector<float> sums_of(const std::string& rules, const std::vector<float>& row) {
  constexpr int64_t kColumns = 192;
  Rig rig(with(rules));
  const std::vector<float> ones(kWidth * (kColumns + 64), 1);
  const motley_range kept{64, 64 + kColumns};
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc, desc.name = "w", desc.dtype = desc.format = MOTLEY_F32;
  desc.uses = MOTLEY_WEIGHT_MATMUL, desc.experts = 1, desc.rows = kWidth, desc.cols = kColumns + 64;
  desc.data = ones.data(), desc.bytes = ones.size() * sizeof(float);
  desc.col_ranges = &kept, desc.col_range_count = 1;
  motley_weight* raw = nullptr;
  motley_error error{};
  motley_weight_info info{};
  info.struct_size = sizeof info;
  EXPECT_EQ(sim().pack(rig.device(), &desc, &raw, &info, &error), MOTLEY_OK) << error.text;
  const Owned<motley_weight> weight{raw, sim().weight_free};
  EXPECT_EQ(rig.stats().bytes_resident, info.bytes) << "the sums' parts are not the device's";
  Graph product(MOTLEY_OP_MATMUL);
  product.values[0].dims[1] = kColumns, product.ops[0].weight[0] = 0, product.weights = 1;
  const auto compiled = rig.compile(product, {4}, {}, &raw);
  EXPECT_EQ(compiled.answer.code, MOTLEY_OK) << compiled.answer.text;
  std::vector<float> in(4 * kColumns);
  std::copy(row.begin(), row.end(), in.begin());
  const auto ran = rig.run(compiled.programs.get(), 0, 4, in);
  EXPECT_EQ(ran.answer.code, MOTLEY_OK) << ran.answer.text;
  return {ran.out.begin(), ran.out.begin() + kWidth};
}

TEST(SimRules, SumsInF16_LoseWhatAWiderSumKeeps) {
  std::vector<float> row(192);
  row[0] = 2048, row[70] = 1, row[130] = 1;  // F16 has every second whole number here
  EXPECT_EQ(sums_of("f16_results = true\n", row), std::vector<float>(kWidth, 2050));
  EXPECT_EQ(sums_of("f16_sums = true\n", row), std::vector<float>(kWidth, 2048));
  EXPECT_EQ(sums_of("f16_results = true\nf16_sums = true\n", row), std::vector<float>(kWidth, 2048));
  row[70] = 2;
  EXPECT_EQ(sums_of("f16_sums = true\n", row), std::vector<float>(kWidth, 2052)) << "2051 is half way";
  row[0] = row[70] = 40000, row[130] = -40000;
  EXPECT_EQ(sums_of("f16_results = true\n", row), std::vector<float>(kWidth, 40000));
  EXPECT_EQ(sums_of("f16_sums = true\n", row), std::vector<float>(kWidth, INFINITY));
}

TEST(SimRules, WeightsOfOtherFormats_AreConvertedWhereAskedElseRefused) {
  Rig rig(with("weight_formats = [\"F16\"]\n"));
  const std::vector<std::byte> floats(64 * kWidth * 4), quantised(64 * kWidth / 32 * 34);
  motley_weight_info info{};
  says(rig.pack(MOTLEY_F32, MOTLEY_F32, floats, 64, kWidth, &info), MOTLEY_UNIMPLEMENTED, "holds F16 alone");
  says(rig.pack(MOTLEY_Q8_0, MOTLEY_Q8_0, quantised, 64, kWidth, &info), MOTLEY_UNIMPLEMENTED, "Q8_0");
  says(rig.pack(MOTLEY_F16, MOTLEY_Q8_0, floats, 128, kWidth, &info), MOTLEY_UNIMPLEMENTED, "Q8_0");
  EXPECT_EQ(rig.pack(MOTLEY_F32, MOTLEY_F16, floats, 64, kWidth, &info).code, MOTLEY_OK);
  EXPECT_EQ(info.format, MOTLEY_F16);
  const uint64_t whole = info.bytes;
  EXPECT_EQ(rig.pack(MOTLEY_Q8_0, MOTLEY_F16, quantised, 64, kWidth, &info, {{0, 16}}).code, MOTLEY_OK);
  EXPECT_EQ(info.format, MOTLEY_F16);
  EXPECT_EQ(info.bytes * 4, whole) << "converted as a whole, kept in part";
  says(rig.pack(MOTLEY_Q8_0, MOTLEY_F16, floats, 64, kWidth, &info), MOTLEY_INVALID_ARGUMENT, "");
}

TEST(SimRules, OpsThatItHasNot_AreCutBeforeWithAReason) {
  Rig rig(with("without_ops = [\"MUL\"]\n"));
  EXPECT_EQ(rig.query(Graph(MOTLEY_OP_ADD)).support, MOTLEY_SUPPORT_NATIVE);
  Graph later(MOTLEY_OP_ADD);
  later.ops[0].out[0] = 2;
  later.add(MOTLEY_OP_PAGED_ATTENTION, 2, 1);
  auto asked = rig.query(later);
  EXPECT_EQ(asked.support, MOTLEY_SUPPORT_CUT);
  EXPECT_EQ(asked.cut_before, 1u);
  EXPECT_NE(std::string(asked.reason).find("no PAGED_ATTENTION"), std::string::npos) << asked.reason;
  asked = rig.query(Graph(MOTLEY_OP_MUL));
  EXPECT_EQ(asked.support, MOTLEY_SUPPORT_NO);
  EXPECT_NE(std::string(asked.reason).find("no MUL"), std::string::npos) << asked.reason;
  says(rig.compile(Graph(MOTLEY_OP_MUL)).answer, MOTLEY_UNIMPLEMENTED, "no MUL");
  const int32_t heads = 1, dim = 64;
  motley_kv_desc kv{};
  kv.struct_size = sizeof kv, kv.dtype = MOTLEY_F32, kv.block_size = 16, kv.blocks = 4, kv.layers = 1;
  kv.kv_heads = &heads, kv.head_dim = &dim;
  motley_kv* pool = nullptr;
  motley_error error{};
  EXPECT_EQ(sim().kv_create(rig.device(), &kv, &pool, &error), MOTLEY_UNIMPLEMENTED);
}

TEST(SimRules, AFaultOfFormat_RefusesEveryMatrix) {
  Rig rig(with("weight_formats = [\"F16\"]\n[[fault]]\nwhat = \"format\"\n"));
  const std::vector<std::byte> halves(64 * kWidth * 2);
  motley_weight_info info{};
  says(rig.pack(MOTLEY_F16, MOTLEY_F16, halves, 64, kWidth, &info), MOTLEY_UNIMPLEMENTED, "a weight in F16");
}

// From the second program on others have all but 100 KB.
TEST(SimRules, MemoryThatOthersTake_FailsWhatNoLongerFits) {
  Rig rig(with("[[fault]]\nwhat = \"memory\"\nat_program = 2\nleft_bytes = 100000\n"));
  const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));
  const auto small = rows_of(4, 1), large = rows_of(1024, 1);
  EXPECT_EQ(rig.run(compiled.programs.get(), 0, 4, large).answer.code, MOTLEY_OK);
  EXPECT_EQ(rig.try_alloc(200000).code, MOTLEY_OK);
  EXPECT_EQ(rig.run(compiled.programs.get(), 0, 4, small).answer.code, MOTLEY_OK) << "it fits into what is left";
  says(rig.try_alloc(200000), MOTLEY_RESOURCE_EXHAUSTED, "the memory cap of 100000");
  EXPECT_EQ(rig.stats().lost, 0);
  Rig full(with("[[fault]]\nwhat = \"memory\"\nat_program = 2\n"));
  const auto program = full.compile(Graph(MOTLEY_OP_ADD));
  EXPECT_EQ(full.run(program.programs.get(), 0, 4, small).answer.code, MOTLEY_OK);
  says(full.run(program.programs.get(), 0, 4, small).answer, MOTLEY_RESOURCE_EXHAUSTED, "have taken");
  EXPECT_EQ(full.stats().programs, 1u) << "what did not run is not counted";
}

TEST(SimRules, Compiling_TakesItsTimeBeforeTheFirstRun) {
  Rig rig(with("compile_s = 5\ncompile_op_s = 0.5\n"));
  const int64_t compile_ns = 2 * 5'500'000'000;  // two buckets
  EXPECT_EQ(rig.query(Graph(MOTLEY_OP_ADD)).compile_ns, static_cast<uint64_t>(compile_ns));
  const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));
  EXPECT_EQ(rig.stats().compile_ns, static_cast<uint64_t>(compile_ns));
  const auto first = rig.run(compiled.programs.get(), 0, 4, rows_of(4, 1));
  EXPECT_EQ(first.start_ns, 1'000'000 + compile_ns);
  const auto blob = rig.exported(compiled.programs.get());
  EXPECT_EQ(rig.compile(Graph(MOTLEY_OP_ADD), {4, 16}, blob).answer.code, MOTLEY_OK);
  EXPECT_EQ(rig.stats().blob_hits, 2u);
  EXPECT_EQ(rig.stats().compile_ns, static_cast<uint64_t>(compile_ns + compile_ns / 100));
  Rig bounded(with("compile_s = 5\ncompile_op_s = 500\ncompile_max_s = 60\n"));
  EXPECT_EQ(bounded.query(Graph(MOTLEY_OP_ADD)).compile_ns, 120'000'000'000u);
}

TEST(SimRules, CompilingInWallTime_LastsAPartOfIt) {
  Rig rig(with("compile_s = 30\ncompile_wall = 0.001\n"), false);
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(rig.compile(Graph(MOTLEY_OP_ADD), {4}).answer.code, MOTLEY_OK);
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(30));
  EXPECT_EQ(rig.stats().compile_ns, 30'000'000'000u);
}

TEST(SimRules, Blobs_AreOfWhatIsComputedAlone) {
  Rig rig(with("driver = \"1.7\"\n"));
  const auto compiled = rig.compile(Graph(MOTLEY_OP_SCALE));
  const auto blob = rig.exported(compiled.programs.get());
  Graph untidy(MOTLEY_OP_SCALE);
  std::memset(&untidy.ops[0].attr, 0x5a, sizeof untidy.ops[0].attr);  // of which an op of this kind has no use
  untidy.ops[0].attr.scale.factor = 3;
  for (motley_value& value : untidy.values) value.dims[2] = 77;  // beyond its rank
  EXPECT_EQ(rig.compile(untidy, {4, 16}, blob).answer.code, MOTLEY_OK);
  untidy.ops[0].attr.scale.factor = 4;
  says(rig.compile(untidy, {4, 16}, blob).answer, MOTLEY_FAILED_PRECONDITION, "another segment");
}

TEST(SimRules, StaleBlobs_AreRefusedWithTheReason) {
  Rig rig(with("driver = \"1.7\"\n"));
  const Graph graph(MOTLEY_OP_ADD);
  const auto compiled = rig.compile(graph);
  const auto blob = rig.exported(compiled.programs.get());
  EXPECT_EQ(rig.compile(graph, {4, 16}, blob).answer.code, MOTLEY_OK);
  Rig updated(with("driver = \"1.8\"\n"));
  says(updated.compile(graph, {4, 16}, blob).answer, MOTLEY_FAILED_PRECONDITION, "driver version 1.7, and this is 1.8");
  says(rig.compile(graph, {4}, blob).answer, MOTLEY_FAILED_PRECONDITION, "other buckets");
  says(rig.compile(Graph(MOTLEY_OP_MUL), {4, 16}, blob).answer, MOTLEY_FAILED_PRECONDITION, "another segment");
  Rig other(preset("intel-npu-like"));
  says(other.compile(graph, {4, 16}, blob).answer, MOTLEY_FAILED_PRECONDITION, "another device");
  Rig namesake(with("driver = \"1.7\"\nqueue_depth = 3\n"));  // a file of that name that holds something else
  says(namesake.compile(graph, {4, 16}, blob).answer, MOTLEY_FAILED_PRECONDITION, "another description");
  for (size_t i = 0; i < blob.size(); i += 7) {
    auto broken = blob;
    broken[i] ^= std::byte{1};
    EXPECT_EQ(rig.compile(graph, {4, 16}, broken).answer.code, MOTLEY_FAILED_PRECONDITION) << i;
  }
  says(rig.compile(graph, {4, 16}, {blob.begin(), blob.end() - 1}).answer, MOTLEY_FAILED_PRECONDITION, "broken");
  uint64_t room = blob.size() - 1;
  std::vector<std::byte> small(blob.size());
  motley_error error{};
  EXPECT_EQ(sim().export_programs(compiled.programs.get(), small.data(), &room, &error), MOTLEY_OUT_OF_RANGE);
}

TEST(SimRules, BucketThatIsToFail_FailsAloneWithAReason) {
  Rig rig(with("[[fault]]\nwhat = \"compile\"\nrows = 16\n"));
  says(rig.compile(Graph(MOTLEY_OP_ADD)).answer, MOTLEY_INTERNAL, "bucket of 16 rows");
  EXPECT_EQ(rig.compile(Graph(MOTLEY_OP_ADD), {4}).answer.code, MOTLEY_OK);
  says(Rig(with("[[fault]]\nwhat = \"compile\"\n")).compile(Graph(MOTLEY_OP_ADD)).answer, MOTLEY_INTERNAL, "4 rows");
}

TEST(SimRules, ProgramsBeyondThoseThatFit_AreLoadedAnew) {
  Rig rig(with("programs_resident = 1\nreload_us = 100\n"));
  const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));
  const auto lasts = [&](uint32_t bucket) {
    const auto ran = rig.run(compiled.programs.get(), bucket, 1, rows_of(16, 1));
    return ran.end_ns - ran.start_ns;
  };
  lasts(0);
  const int64_t there = lasts(0);
  lasts(1);
  EXPECT_EQ(lasts(0), there + 100'000);
  EXPECT_EQ(rig.stats().reloads, 3u);  // the second bucket was the last one compiled
  Rig roomy(with("programs_resident = 2\nreload_us = 100\n"));
  const auto both = roomy.compile(Graph(MOTLEY_OP_ADD));
  for (const uint32_t bucket : {0u, 1u, 0u, 1u}) roomy.run(both.programs.get(), bucket, 1, rows_of(16, 1));
  EXPECT_EQ(roomy.stats().reloads, 0u);
}

TEST(SimRules, ProgramsTakeMemory) {
  Rig rig(with("program_bytes = 1000\n"));
  rig.compile(Graph(MOTLEY_OP_ADD));  // the workspace stays
  const uint64_t before = rig.stats().bytes_resident;
  {
    const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));  // for two row counts
    EXPECT_EQ(rig.stats().bytes_resident, before + 2000);
  }
  EXPECT_EQ(rig.stats().bytes_resident, before);
  says(Rig(with("program_bytes = 1000000000000\n")).compile(Graph(MOTLEY_OP_ADD)).answer, MOTLEY_RESOURCE_EXHAUSTED,
       "programs");
}

TEST(SimRules, AllocationsBeyondTheMapLimit_AreRefused) {
  Rig rig(with("allocation_bytes = 65536\n"));
  EXPECT_EQ(rig.try_alloc(65536).code, MOTLEY_OK);
  says(rig.try_alloc(65537), MOTLEY_RESOURCE_EXHAUSTED, "65536");
}

TEST(SimRules, LostInTheMiddle_EveryFurtherCallSaysSo) {
  Rig rig(with("[[fault]]\nat_program = 2\nwhat = \"death\"\n"));
  const auto compiled = rig.compile(Graph(MOTLEY_OP_ADD));
  EXPECT_EQ(rig.run(compiled.programs.get(), 0, 1, rows_of(4, 1)).answer.code, MOTLEY_OK);
  EXPECT_EQ(rig.run(compiled.programs.get(), 0, 1, rows_of(4, 1)).answer.code, MOTLEY_UNAVAILABLE);
  says(rig.compile(Graph(MOTLEY_OP_ADD)).answer, MOTLEY_UNAVAILABLE, "lost");
  uint64_t bytes = 0;
  motley_error error{};
  EXPECT_EQ(sim().export_programs(compiled.programs.get(), nullptr, &bytes, &error), MOTLEY_UNAVAILABLE);
  EXPECT_EQ(rig.stats().lost, 1);
}

}  // namespace
