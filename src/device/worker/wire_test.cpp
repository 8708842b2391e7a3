// What comes from the other side is not trusted: readers, the ring, shared memory and the arena on hostile input.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <random>

#include "device/worker/arena.hpp"
#include "device/worker/channel.hpp"
#include "device/worker/step_memory.hpp"
#include "device/worker/wire_structs.hpp"

namespace motley::worker {
namespace {

TEST(Wire, ArraysAndTexts_ComeBackAsTheyWere) {
  Writer writer;
  const uint32_t numbers[] = {1, 2, 3};
  writer.put_array(numbers, 3);
  writer.put_array(numbers, 0);
  writer.put_array<uint32_t>(nullptr, 7);
  writer.put_text("text");
  writer.put_text(static_cast<const char*>(nullptr));
  Reader reader(writer.bytes());
  const auto full = reader.get_array<uint32_t>(3), empty = reader.get_array<uint32_t>(3),
             null = reader.get_array<uint32_t>(7);
  EXPECT_EQ(full.items, (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_NE(empty.data(), nullptr);
  EXPECT_EQ(empty.count, 0u);
  EXPECT_EQ(null.data(), nullptr);
  EXPECT_EQ(null.count, 7u);
  EXPECT_EQ(reader.get_text(), "text");
  EXPECT_EQ(reader.get_text(), std::nullopt);
  EXPECT_TRUE(reader.done());
}

TEST(Wire, CountBeyondTheBytesOrTheLimit_IsRefusedWithoutReading) {
  Writer writer;
  writer.put<uint8_t>(1);
  writer.put<uint32_t>(1u << 30);
  Reader beyond_bytes(writer.bytes());
  EXPECT_EQ(beyond_bytes.get_array<uint64_t>(UINT32_MAX).items.size(), 0u);
  EXPECT_FALSE(beyond_bytes.ok());
  Reader beyond_limit(writer.bytes());
  beyond_limit.get_array<uint64_t>(4);
  EXPECT_FALSE(beyond_limit.ok());
  EXPECT_EQ(beyond_limit.get<uint32_t>(), 0u) << "nothing is read after a fault";
}

// A batch with everything in it.
Writer full_batch() {
  static const int32_t numbers[] = {0, 1, 2, 3};
  static const uint8_t generated[] = {0, 0, 1};
  static const uint32_t rows[] = {0, 2, 3}, blocks[] = {0, 1, 4};
  static motley_sample_row samples[1] = {};
  static const motley_token_count counts[] = {{1, 0, 1}, {2, 1, 1}};
  static const motley_token_bias biases[] = {{1, 0.5f}};
  samples[0].counts_end = 2, samples[0].pending_end = 1, samples[0].biases_end = 1;
  motley_batch batch{};
  batch.struct_size = sizeof batch;
  batch.rows = 3, batch.seqs = 2, batch.head_row_count = 1, batch.slot_count = 4;
  batch.token_ids = batch.token_slots = batch.positions = batch.kv_slots = numbers;
  batch.generated = generated;
  batch.seq_row_begin = rows, batch.seq_context = numbers, batch.seq_block_begin = blocks, batch.blocks = numbers;
  batch.head_rows = numbers, batch.samples = samples;
  batch.counts = counts, batch.pending = numbers, batch.biases = biases;
  Writer writer;
  EXPECT_TRUE(encode_batch(writer, batch));
  return writer;
}

TEST(Wire, Batch_ComesBackAsItWas) {
  const Writer writer = full_batch();
  Reader reader(writer.bytes());
  BatchCopy copy;
  ASSERT_TRUE(copy.decode(reader));
  EXPECT_TRUE(reader.done());
  const motley_batch batch = copy.view();
  EXPECT_EQ(batch.rows, 3u);
  EXPECT_EQ(batch.blocks[3], 3);
  EXPECT_EQ(batch.counts[1].id, 2);
  EXPECT_EQ(batch.adapters, nullptr);
}

// Whatever decodes holds only ranges inside its arrays; cut short it never decodes.
TEST(Wire, BatchDamagedAnywhere_NeverReachesBeyondItsArrays) {
  const Writer writer = full_batch();
  const std::vector<std::byte> good(writer.bytes().begin(), writer.bytes().end());
  for (size_t length = 0; length < good.size(); ++length) {
    Reader reader(std::span<const std::byte>(good.data(), length));
    BatchCopy copy;
    EXPECT_FALSE(copy.decode(reader)) << length;
  }
  std::mt19937 random(7);
  size_t decoded = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::byte> bad = good;
    for (int i = 0; i < 2; ++i) bad[random() % bad.size()] = static_cast<std::byte>(random());
    Reader reader(bad);
    BatchCopy copy;
    if (!copy.decode(reader)) continue;
    ++decoded;
    const motley_batch batch = copy.view();
    for (uint32_t s = 0; batch.seq_block_begin != nullptr && s <= batch.seqs; ++s) {
      ASSERT_LE(batch.seq_block_begin[s], copy.blocks.count);
    }
    for (uint32_t h = 0; batch.samples != nullptr && h < batch.head_row_count; ++h) {
      ASSERT_LE(batch.samples[h].counts_end, copy.counts.count);
      ASSERT_LE(batch.samples[h].biases_end, copy.biases.count);
    }
    if (batch.token_ids != nullptr) {
      ASSERT_EQ(copy.token_ids.items.size(), batch.rows);
    }
  }
  EXPECT_GT(decoded, 100u) << "the damage is too coarse to show anything";
}

TEST(Wire, BatchOfAbsurdNumbers_IsNotEncoded) {
  motley_batch batch{};
  batch.rows = UINT32_MAX;
  Writer writer;
  EXPECT_FALSE(encode_batch(writer, batch));
  const uint32_t begins[] = {0, UINT32_MAX};
  batch.rows = 1, batch.seqs = 1, batch.seq_block_begin = begins;
  EXPECT_FALSE(encode_batch(writer, batch));
}

TEST(Wire, KvArraysOfAnotherLength_AreRefused) {
  const int32_t heads[] = {1, 2};
  motley_kv_desc desc{};
  desc.layers = 2, desc.kv_heads = heads, desc.head_dim = heads;
  Writer writer;
  ASSERT_TRUE(encode_kv(writer, desc));
  std::vector<std::byte> bytes(writer.bytes().begin(), writer.bytes().end());
  const uint32_t three = 3;
  std::memcpy(bytes.data() + 12, &three, sizeof three);  // layers
  Reader reader(bytes);
  KvCopy copy;
  EXPECT_FALSE(copy.decode(reader));
}

// ---- ring ----

TEST(Ring, RecordsWrapAround_ComeOutInOrder) {
  const auto memory = StepMemory::create();
  ASSERT_TRUE(memory.ok()) << memory.error().to_string();
  RingWriter writer(*memory);
  RingReader reader(*memory);
  std::mt19937 random(3);
  uint32_t sent = 0, got = 0;
  uint64_t bytes = 0;
  while (bytes < 3 * kRingBytes) {
    RecordHeader header{};
    header.step = static_cast<uint16_t>(Step::kCopy), header.slot = 1, header.generation = sent;
    const std::vector<std::byte> body(random() % (kRecordBytesMax - 64), static_cast<std::byte>(sent));
    const Status pushed = writer.push(header, body);
    if (pushed.ok()) {
      ++sent;
      bytes += body.size();
      if (random() % 3 != 0) continue;
    } else {
      ASSERT_EQ(pushed.code(), MOTLEY_RESOURCE_EXHAUSTED);
    }
    Record record;
    while (*reader.pop(record)) {
      ASSERT_EQ(record.header.generation, got);
      if (!record.body.empty()) {
        ASSERT_EQ(record.body.front(), static_cast<std::byte>(got));
      }
      ++got;
    }
  }
  Record record;
  while (*reader.pop(record)) ++got;
  EXPECT_EQ(got, sent);
}

TEST(Ring, DamagedRecordsAndCounters_AreRefused) {
  const auto attempt = [](const std::function<void(StepMemory&, RecordHeader&)>& damage) {
    auto memory = StepMemory::create();
    RingWriter writer(*memory);
    RecordHeader header{};
    header.step = static_cast<uint16_t>(Step::kFence), header.slot = 1;
    EXPECT_TRUE(writer.push(header, {}).ok());
    std::memcpy(&header, memory->ring(), sizeof header);
    damage(*memory, header);
    std::memcpy(memory->ring(), &header, sizeof header);
    RingReader reader(*memory);
    Record record;
    return reader.pop(record).error().code();
  };
  EXPECT_EQ(attempt([](StepMemory&, RecordHeader&) {}), MOTLEY_OK);
  EXPECT_EQ(attempt([](StepMemory&, RecordHeader& h) { h.bytes = 0; }), MOTLEY_DATA_LOSS);
  EXPECT_EQ(attempt([](StepMemory&, RecordHeader& h) { h.bytes = 128; }), MOTLEY_DATA_LOSS);
  EXPECT_EQ(attempt([](StepMemory&, RecordHeader& h) { h.bytes = 63; }), MOTLEY_DATA_LOSS);
  EXPECT_EQ(attempt([](StepMemory&, RecordHeader& h) { h.step = 99; }), MOTLEY_DATA_LOSS);
  EXPECT_EQ(attempt([](StepMemory&, RecordHeader& h) { h.slot = kSlotCount; }), MOTLEY_DATA_LOSS);
  EXPECT_EQ(attempt([](StepMemory& m, RecordHeader&) { m.header().tail = 10; }), MOTLEY_DATA_LOSS);
  EXPECT_EQ(attempt([](StepMemory& m, RecordHeader&) { m.header().tail = UINT64_MAX; }), MOTLEY_DATA_LOSS);
}

TEST(Ring, HeadBeyondTheTail_IsNoRoomForTheHost) {
  const auto memory = StepMemory::create();
  RingWriter writer(*memory);
  memory->header().head = 4096;
  EXPECT_EQ(writer.push({}, {}).code(), MOTLEY_DATA_LOSS);
}

// ---- memory and messages ----

TEST(SharedMemory, UnsealedOrShort_IsNotMapped) {
  Descriptor plain(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(plain.get(), 8192), 0);
  EXPECT_EQ(SharedMemory::adopt(Descriptor(dup(plain.get())), 8192).error().code(), MOTLEY_DATA_LOSS);
  ASSERT_EQ(fcntl(plain.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_TRUE(SharedMemory::adopt(Descriptor(dup(plain.get())), 8192).ok());
  EXPECT_EQ(SharedMemory::adopt(Descriptor(dup(plain.get())), 8193).error().code(), MOTLEY_DATA_LOSS);
  EXPECT_EQ(SharedMemory::adopt(Descriptor(dup(plain.get())), 0).error().code(), MOTLEY_DATA_LOSS);
  EXPECT_EQ(SharedMemory::adopt(Descriptor(open("/dev/null", O_RDWR | O_CLOEXEC)), 1).error().code(), MOTLEY_DATA_LOSS);
  EXPECT_EQ(SharedMemory::create("test", uint64_t{1} << 62).error().code(), MOTLEY_RESOURCE_EXHAUSTED);
}

TEST(FileView, BytesOfAFile_AreReadFromAnyOffset) {
  std::FILE* const file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  std::vector<uint8_t> written(3 * 4096 + 100);
  for (size_t i = 0; i < written.size(); ++i) written[i] = static_cast<uint8_t>(i * 7 + i / 256);
  ASSERT_EQ(std::fwrite(written.data(), 1, written.size(), file), written.size());
  ASSERT_EQ(std::fflush(file), 0);
  const Descriptor fd(dup(fileno(file)));
  const uint64_t size = written.size();
  for (const auto& [offset, bytes] :
       {std::pair<uint64_t, uint64_t>{0, size}, {4096, 10}, {5000, 7000}, {size - 1, 1}}) {
    auto view = FileView::map(fd, offset, bytes);
    ASSERT_TRUE(view.ok()) << offset;
    const FileView moved = std::move(*view);
    EXPECT_EQ(0, std::memcmp(moved.data(), written.data() + offset, bytes)) << offset;
    EXPECT_EQ(moved.bytes(), bytes);
  }
  for (const auto& [offset, bytes] : {std::pair<uint64_t, uint64_t>{0, size + 1},
                                      {size, 1},
                                      {size - 1, 2},
                                      {1, UINT64_MAX},
                                      {UINT64_MAX, 1},
                                      {0, 0}}) {
    EXPECT_EQ(FileView::map(fd, offset, bytes).error().code(), MOTLEY_DATA_LOSS) << offset << " " << bytes;
  }
  EXPECT_EQ(FileView::map(Descriptor(open("/dev/zero", O_RDONLY | O_CLOEXEC)), 0, 1).error().code(), MOTLEY_DATA_LOSS);
  std::fclose(file);
}

TEST(Channel, HeaderOfAnotherVersionOrWithWildLengths_IsRefused) {
  struct Header {
    uint32_t magic = kMagic;
    uint16_t version = kVersion, call = 1;
    uint64_t id = 0;
    uint32_t body_bytes = 0, descriptors = 0;
  };
  const auto attempt = [](const Header& header) {
    auto ends = *Channel::pair(SOCK_STREAM);
    EXPECT_EQ(write(ends.first.get(), &header, sizeof header), static_cast<ssize_t>(sizeof header));
    ends.first.reset();
    return Channel(std::move(ends.second)).receive(kForever).error().code();
  };
  Header header;
  EXPECT_EQ(attempt(header), MOTLEY_OK);
  header.version = kVersion + 1;
  EXPECT_EQ(attempt(header), MOTLEY_DATA_LOSS);
  header = {}, header.call = 60000;
  EXPECT_EQ(attempt(header), MOTLEY_DATA_LOSS);
  header = {}, header.body_bytes = UINT32_MAX;
  EXPECT_EQ(attempt(header), MOTLEY_DATA_LOSS);
  header = {}, header.body_bytes = 8;  // and then the end
  EXPECT_EQ(attempt(header), MOTLEY_UNAVAILABLE);
  header = {}, header.descriptors = 1;  // that never come
  EXPECT_EQ(attempt(header), MOTLEY_DATA_LOSS);
}

TEST(Channel, SilentPeer_DeadlineExceeded) {
  auto ends = *Channel::pair(SOCK_STREAM);
  EXPECT_EQ(Channel(std::move(ends.second)).receive(0).error().code(), MOTLEY_DEADLINE_EXCEEDED);
}

TEST(Arena, TakenAndGivenBackInAnyOrder_NeverOverlapsAndIsWholeAgain) {
  Arena arena(1 << 16);
  std::mt19937 random(5);
  std::vector<std::pair<uint64_t, uint64_t>> held;
  for (int round = 0; round < 5'000; ++round) {
    if (random() % 2 == 0) {
      const uint64_t bytes = 1 + random() % 5000;
      if (const auto offset = arena.take(bytes)) {
        EXPECT_EQ(*offset % 64, 0u);
        EXPECT_LE(*offset + bytes, uint64_t{1} << 16);
        for (const auto& [at, length] : held) EXPECT_TRUE(*offset >= at + length || at >= *offset + bytes);
        held.emplace_back(*offset, bytes);
      }
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      arena.give(held.back().first, held.back().second);
      held.pop_back();
    }
  }
  for (const auto& [offset, bytes] : held) arena.give(offset, bytes);
  EXPECT_EQ(arena.take(1 << 16), 0u);
  EXPECT_EQ(arena.take(1), std::nullopt);
}

}  // namespace
}  // namespace motley::worker
