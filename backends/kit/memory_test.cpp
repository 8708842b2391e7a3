// A backend with memory of its own: the host may not follow its addresses.
#include "kit/memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "kit/kv.hpp"
#include "kit/reference_backend.hpp"

namespace motley::kit {
namespace {

constexpr uintptr_t kFar = uintptr_t{1} << 62;  // no address of a process is as high

std::byte* near(const std::byte* far) { return reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(far) - kFar); }
std::byte* far(std::byte* near) { return reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(near) + kFar); }

int begun = 0, ended = 0, finished = 0;
bool broken = false;
std::vector<std::vector<uint64_t>> keys;

class FarStream : public Stream {
 public:
  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    std::memmove(near(to), near(from), bytes);
  }
  void to_host(void* to, const std::byte* from, uint64_t bytes) override { std::memcpy(to, near(from), bytes); }
  void from_host(std::byte* to, const void* from, uint64_t bytes) override { std::memcpy(near(to), from, bytes); }
  bool begin(const motley_batch&, std::span<const int32_t>, const Plan&, std::span<const uint64_t> key) override {
    ++begun;
    keys.emplace_back(key.begin(), key.end());
    return keys.size() < 2 || keys.back() != keys[keys.size() - 2];
  }
  bool end() override { return ++ended > 1; }  // the first record comes to nothing
  void finish() override { ++finished; }
  std::unique_ptr<Mark> mark() override;
};

// What the stream has done is known when its mark is waited for.
class FarMark : public Mark {
 public:
  void wait() override {
    if (broken) fail(MOTLEY_UNAVAILABLE, "the far side is gone");
  }
};
std::unique_ptr<Mark> FarStream::mark() { return std::make_unique<FarMark>(); }

class FarMemory : public Memory {
 public:
  bool in_host() const override { return false; }
  std::byte* allocate(uint64_t bytes) override { return far(main_memory().allocate(bytes)); }
  void release(std::byte* at, uint64_t bytes) noexcept override { main_memory().release(near(at), bytes); }
  std::unique_ptr<Stream> stream() override { return std::make_unique<FarStream>(); }
  bool runs_ahead() const override { return true; }
};

class FarKernels : public RefKernels {
 public:
  const KernelTable& table() const override {
    static const KernelTable table = [] {
      KernelTable t{};
      t[MOTLEY_OP_SCALE].run = [](const OpCall& call) {
        if (!dynamic_cast<FarStream*>(call.stream)) call.fail(MOTLEY_INTERNAL, "not the queue's stream");
        auto* from = reinterpret_cast<float*>(near(call.in[0].bytes()));
        auto* to = reinterpret_cast<float*>(near(call.out[0].bytes()));
        for (int64_t i = 0; i < call.out[0].width; ++i) to[i] = from[i] * call.op->attr.scale.factor;
      };
      return t;
    }();
    return table;
  }
  Memory& memory() const override {
    static FarMemory memory;
    return memory;
  }
};

class FarBackend : public RefBackend {
 public:
  std::vector<motley_device_desc> devices(std::string* why) override {
    *why = "one more is too old";
    return RefBackend::devices(why);
  }
  std::unique_ptr<Kernels> open(uint32_t, const OpenOptions&) override { return std::make_unique<FarKernels>(); }
};

class FarDevice : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(api.open(0, nullptr, &device, &error), MOTLEY_OK) << error.text;
    ASSERT_EQ(api.queue_create(device, &queue, &error), MOTLEY_OK);
  }
  void TearDown() override {
    api.queue_destroy(queue);
    api.close(device);
  }
  motley_code wait(motley_event* event) {
    const motley_code code = api.event_wait(event, UINT64_MAX, &error);
    api.event_release(event);
    return code;
  }
  motley_buffer* buffer(std::vector<float> values) {
    motley_buffer* made = nullptr;
    EXPECT_EQ(api.alloc(device, values.size() * 4, MOTLEY_USE_ACTIVATION, nullptr, &made, &error), MOTLEY_OK);
    motley_event* event = nullptr;
    EXPECT_EQ(api.copy_from_host(queue, made, 0, values.data(), values.size() * 4, &event, &error), MOTLEY_OK);
    EXPECT_EQ(wait(event), MOTLEY_OK);
    return made;
  }
  std::vector<float> read(motley_buffer* from, size_t count) {
    std::vector<float> values(count);
    motley_event* event = nullptr;
    EXPECT_EQ(api.copy_to_host(queue, values.data(), from, 0, count * 4, &event, &error), MOTLEY_OK);
    EXPECT_EQ(wait(event), MOTLEY_OK);
    return values;
  }
  const motley_backend& api = *backend_table<FarBackend>(MOTLEY_BACKEND_ABI, "far", "0");
  motley_device* device = nullptr;
  motley_queue* queue = nullptr;
  motley_error error{};
};

TEST_F(FarDevice, Enumerate_SaysWhatIsNotListed) {
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  uint32_t count = 0;
  ASSERT_EQ(api.enumerate(&desc, 1, &count, &error), MOTLEY_OK);
  EXPECT_EQ(count, 1u);
  EXPECT_STREQ(error.text, "one more is too old");
}

TEST_F(FarDevice, Buffers_AreSeenThroughCopiesAlone) {
  motley_buffer* made = buffer({1, 2, 3});
  EXPECT_EQ(api.map(made), nullptr);
  EXPECT_EQ(read(made, 3), (std::vector<float>{1, 2, 3}));
  api.free(made);
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_EQ(api.alloc(device, 4096, MOTLEY_USE_STAGING, page, &made, &error), MOTLEY_UNIMPLEMENTED);
  munmap(page, 4096);
}

TEST_F(FarDevice, Program_RunsOnTheQueuesStreamUnlessItHasARecord) {
  const motley_value values[2] = {{MOTLEY_F32, 2, {MOTLEY_DIM_ROWS, 2, 0, 0}},
                                  {MOTLEY_F32, 2, {MOTLEY_DIM_ROWS, 2, 0, 0}}};
  motley_op op;
  std::memset(&op, 0xff, sizeof op);
  op.kind = MOTLEY_OP_SCALE, op.in[0] = 0, op.out[0] = 1, op.attr.scale.factor = 3;
  const int32_t in = 0, out = 1;
  motley_segment segment{};
  segment.struct_size = sizeof segment, segment.values = values, segment.value_count = 2;
  segment.ops = &op, segment.op_count = 1;
  segment.inputs = &in, segment.input_count = 1, segment.outputs = &out, segment.output_count = 1;
  const uint32_t bucket = 1;
  motley_compile_options options{};
  options.struct_size = sizeof options, options.buckets = &bucket, options.bucket_count = 1;
  motley_programs* programs = nullptr;
  ASSERT_EQ(api.compile(device, &segment, nullptr, &options, &programs, &error), MOTLEY_OK) << error.text;
  motley_buffer *from = buffer({1, 2}), *to = buffer({0, 0});
  motley_binding bindings[2] = {{0, from, 0}, {1, to, 0}};
  motley_batch batch{};
  const uint8_t generated = 0;
  batch.struct_size = sizeof batch, batch.rows = 1, batch.generated = &generated;
  motley_enqueue_args args{};
  args.struct_size = sizeof args, args.bindings = bindings, args.binding_count = 2, args.batch = &batch;
  begun = ended = 0;
  keys.clear();
  const auto run = [&] {
    motley_event* event = nullptr;
    ASSERT_EQ(api.enqueue(queue, programs, &args, &event, &error), MOTLEY_OK) << error.text;
    EXPECT_EQ(wait(event), MOTLEY_OK) << error.text;
  };
  run();
  EXPECT_EQ(begun, 1);
  EXPECT_EQ(ended, 2) << "steps that did not count come again";
  EXPECT_EQ(read(to, 2), (std::vector<float>{3, 6}));
  run();  // the same key: the stream says that it has enqueued the steps, and lies
  EXPECT_EQ(keys[0], keys[1]);
  EXPECT_EQ(ended, 2);
  motley_buffer* elsewhere = buffer({0, 0});
  bindings[1].buffer = elsewhere;
  run();
  EXPECT_NE(keys[2], keys[1]);
  EXPECT_EQ(read(elsewhere, 2), (std::vector<float>{3, 6}));
  api.free(elsewhere);
  api.programs_free(programs);
  api.free(from), api.free(to);
}

TEST_F(FarDevice, ErrorThatLosesIt_IsAnsweredFromThenOn) {
  motley_buffer* made = buffer({1});
  float value = 0;
  motley_event* event = nullptr;
  broken = true;
  ASSERT_EQ(api.copy_to_host(queue, &value, made, 0, 4, &event, &error), MOTLEY_OK);
  EXPECT_EQ(wait(event), MOTLEY_UNAVAILABLE);
  broken = false;
  motley_device_stats stats{};
  ASSERT_EQ(api.stats(device, &stats, &error), MOTLEY_OK);
  EXPECT_EQ(stats.lost, 1);
  motley_buffer* more = nullptr;
  EXPECT_EQ(api.alloc(device, 4, MOTLEY_USE_ACTIVATION, nullptr, &more, &error), MOTLEY_UNAVAILABLE);
  EXPECT_STREQ(error.text, "the device is lost: the far side is gone");
  EXPECT_EQ(api.copy_to_host(queue, &value, made, 0, 4, nullptr, &error), MOTLEY_UNAVAILABLE);
  api.free(made);
}

TEST(KvRuns, InTheirOrder_AreTheCanonicalBytes) {
  const int32_t heads[] = {2, 1}, dims[] = {4, 8};
  motley_kv_desc desc{};
  desc.struct_size = sizeof desc, desc.dtype = MOTLEY_I8, desc.block_size = 3, desc.blocks = 5, desc.layers = 2;
  desc.kv_heads = heads, desc.head_dim = dims;
  const KvShape shape = check_kv(desc);
  const KvMemory pool(shape, KvOrder::kPositionMajor, main_memory());
  std::byte* first = pool.pool().layers[0].k;
  for (uint64_t i = 0; i < shape.bytes_total; ++i) first[i] = static_cast<std::byte>(i * 7 + i / 251);
  const std::vector<int32_t> blocks = {4, 0, 2};
  std::vector<std::byte> canonical(shape.canonical_bytes(0, 2) * blocks.size()), joined;
  kv_to_canonical(pool.pool(), blocks, 0, 2, canonical.data());
  each_kv_run(pool.pool(), blocks, 0, 2,
              [&](const std::byte* run, uint64_t bytes) { joined.insert(joined.end(), run, run + bytes); });
  EXPECT_TRUE(joined == canonical);
}

}  // namespace
}  // namespace motley::kit
