// The streaming kernels against sums in double, and against themselves: a row's bits are the same in any company. Needs
// a GPU; without one every test here is skipped.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "cuda/driver.hpp"
#include "cuda/products/library.hpp"
#include "cuda/products/pack.hpp"
#include "cuda/products/stream.hpp"

namespace motley::cuda {
namespace {

struct Tested {
  int32_t dtype;
  std::vector<size_t> halves;  // where a block has scales in F16
};
const std::vector<Tested> kFormats = {
    {MOTLEY_BF16, {}},     {MOTLEY_F16, {}},        {MOTLEY_F8_E4M3_S64, {}}, {MOTLEY_MXFP4, {}},
    {MOTLEY_Q4_0, {0}},    {MOTLEY_Q4_1, {0, 2}},   {MOTLEY_Q5_0, {0}},       {MOTLEY_Q5_1, {0, 2}},
    {MOTLEY_Q8_0, {0}},    {MOTLEY_Q2_K, {80, 82}}, {MOTLEY_Q3_K, {108}},     {MOTLEY_Q4_K, {0, 2}},
    {MOTLEY_Q5_K, {0, 2}}, {MOTLEY_Q6_K, {208}},    {MOTLEY_IQ4_NL, {0}},     {MOTLEY_IQ4_XS, {0}}};

class Streaming : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (find_gpus(&why).empty()) GTEST_SKIP() << why;
    memory_ = std::make_unique<CudaMemory>(0);
    memory_->use();
    if (!prepare_stream()) GTEST_SKIP() << "this GPU has too little shared memory";
  }

  std::vector<float> normals(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = normal(random_);
    return values;
  }

  // Random codes; scales of about 0.01.
  std::vector<uint8_t> random_blocks(const kit::Format& format, int64_t count) {
    std::vector<uint8_t> bytes(static_cast<size_t>(count / format.block * format.bytes));
    if (format.block == 1) {
      for (size_t i = 0; i < bytes.size(); i += 2) {
        const float x = normals(1)[0];
        put(bytes, i, format.dtype == MOTLEY_F16 ? kit::f32_to_f16(x) : kit::f32_to_bf16(x));
      }
      return bytes;
    }
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
    for (size_t i = 0; i < bytes.size(); i += static_cast<size_t>(format.bytes)) {
      if (format.dtype == MOTLEY_F8_E4M3_S64) {
        const float one = 0.01f + 0.001f * normals(1)[0];
        std::memcpy(bytes.data() + i, &one, sizeof one);
        for (int c = 4; c < format.bytes; ++c)
          if (uint8_t& code = bytes[i + static_cast<size_t>(c)]; (code & 0x7f) == 0x7f) code ^= 1;  // is no number
      }
      if (format.dtype == MOTLEY_MXFP4) bytes[i] = static_cast<uint8_t>(120 + random_() % 4);
      const auto& tested = *std::ranges::find(kFormats, format.dtype, &Tested::dtype);
      for (const size_t at : tested.halves) put(bytes, i + at, kit::f32_to_f16(0.01f + 0.001f * normals(1)[0]));
    }
    return bytes;
  }
  static void put(std::vector<uint8_t>& bytes, size_t at, uint16_t word) {
    bytes[at] = static_cast<uint8_t>(word), bytes[at + 1] = static_cast<uint8_t>(word >> 8);
  }

  CudaWeight weight(int32_t dtype, int64_t experts, int64_t rows, int64_t cols) {
    blocks_ = random_blocks(*kit::find_format(dtype), experts * rows * cols);
    motley_weight_desc desc{};
    desc.struct_size = sizeof desc, desc.name = "w", desc.dtype = desc.format = dtype;
    desc.uses = MOTLEY_WEIGHT_MATMUL;
    desc.experts = experts, desc.rows = rows, desc.cols = cols;
    desc.data = blocks_.data(), desc.bytes = blocks_.size();
    const kit::WeightSource source(desc);
    file_.assign(static_cast<size_t>(experts * rows * cols), 0);
    for (int64_t r = 0; r < experts * rows; ++r) source.read_row(r / rows, r % rows, file_.data() + r * cols);
    return CudaWeight(*memory_, source, true);
  }

  kit::Allocation room(int64_t bytes) { return kit::Allocation(*memory_, static_cast<uint64_t>(bytes)); }
  std::vector<float> read(const kit::Allocation& from, int64_t count) { return read(from.data(), count); }
  std::vector<float> read(const std::byte* from, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), from, values.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  static Job job_of(const CudaWeight& w) {
    Job job{};
    job.dtype = w.format, job.cols = static_cast<int32_t>(w.cols), job.count = 1, job.tiles = tiles_of(w.rows);
    job.row_bytes = w.view().row_bytes, job.expert_bytes = w.view().expert_bytes;
    job.products[0] = {w.view().data, nullptr, nullptr, static_cast<int32_t>(w.rows), 0};
    return job;
  }

  // Rows as products find them.
  DeviceBytes rows_as(Stored stored, const std::vector<float>& x) {
    if (stored == Stored::kF32) return DeviceBytes(*memory_, x.data(), x.size() * 4);
    std::vector<uint16_t> numbers(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      numbers[static_cast<size_t>(stored == Stored::kTileOrder ? in_tile_order(at) : at)] = kit::f32_to_bf16(x[i]);
    }
    return DeviceBytes(*memory_, numbers.data(), numbers.size() * 2);
  }

  std::vector<float> product(Job job, const std::vector<float>& x, int64_t few_rows_max = kFewRowsBest,
                             Stored stored = Stored::kF32) {
    const int64_t width = job.products[0].width;
    job.rows = static_cast<int64_t>(x.size()) / job.cols;
    const DeviceBytes in = rows_as(stored, x);
    const kit::Allocation out = room(job.rows * width * 4), scratch = room(stream_scratch(job, job.rows));
    const kit::Allocation counters = room(stream_counters(job, job.rows) * 4);
    job.x = {in.as<float>(), stored}, job.products[0].out = reinterpret_cast<float*>(out.data());
    multiply_rows(job, scratch.data(), reinterpret_cast<uint32_t*>(counters.data()), nullptr, few_rows_max);
    multiply_rows(job, scratch.data(), reinterpret_cast<uint32_t*>(counters.data()), nullptr,
                  few_rows_max);  // counters are zero
    return read(out, job.rows * width);
  }

  // Of a sample of results: the norm of the difference to sums in double, over that of the sums.
  double error(const std::vector<float>& x, const std::vector<float>& got, int64_t width, int64_t cols) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < got.size(); i += 1 + got.size() / 500) {
      const auto row = static_cast<int64_t>(i) / width, n = static_cast<int64_t>(i) % width;
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k)
        sum += double{x[static_cast<size_t>(row * cols + k)]} * file_[static_cast<size_t>(n * cols + k)];
      difference += (got[i] - sum) * (got[i] - sum), size += sum * sum;
    }
    return std::sqrt(difference / size);
  }

  std::mt19937 random_{7};
  std::unique_ptr<CudaMemory> memory_;
  std::vector<uint8_t> blocks_;
  std::vector<float> file_;
};

TEST_F(Streaming, RowsAreRight_AndTheSameInAnyCompany) {
  for (const auto& [dtype, halves] : kFormats) {
    for (const auto& [width, cols] : {std::pair{400, 2816}, {56, 256}, {2100, 5120}, {20400, 1024}, {120, 544}}) {
      if (cols % kit::find_format(dtype)->block != 0) continue;
      const CudaWeight w = weight(dtype, 1, width, cols);
      const std::vector<float> x = normals(int64_t{300} * cols);
      const std::vector<float> all = product(job_of(w), x);
      EXPECT_LT(error(x, all, width, cols), dtype == MOTLEY_F16 ? 5e-4 : 4e-3)
          << kit::find_format(dtype)->name << " " << width << " x " << cols;
      for (const int rows : {1, 3, 8, 9, 16, 31, 64, 70, 128}) {
        const std::vector<float> some(x.end() - int64_t{rows} * cols, x.end());
        for (const int64_t few_rows_max : {int64_t{0}, int64_t{kFewRows}}) {
          const std::vector<float> got = product(job_of(w), some, few_rows_max);
          EXPECT_TRUE(std::equal(got.begin(), got.end(), all.end() - int64_t{rows} * width))
              << kit::find_format(dtype)->name << " " << width << " x " << cols << ", rows " << rows;
        }
      }
    }
  }
}

TEST_F(Streaming, RowsAlreadyRounded_HaveTheSameProducts) {
  constexpr int64_t kWidth = 400, kCols = 2816;
  for (const auto& [dtype, halves] : kFormats) {
    if (dtype == MOTLEY_F16) continue;
    const CudaWeight w = weight(dtype, 1, kWidth, kCols);
    for (const int64_t rows : {1, 4, 5, 8, 9, 64, 70}) {
      const std::vector<float> x = normals(rows * kCols), wanted = product(job_of(w), x);
      for (const int64_t few_rows_max : {int64_t{0}, int64_t{kFewRows}}) {
        EXPECT_EQ(product(job_of(w), x, few_rows_max, Stored::kBf16), wanted)
            << kit::find_format(dtype)->name << ", rows " << rows;
        if (tile_bytes(dtype) > 0) {
          EXPECT_EQ(product(job_of(w), x, few_rows_max, Stored::kTileOrder), wanted)
              << kit::find_format(dtype)->name << ", rows " << rows;
        }
      }
    }
  }
}

TEST_F(Streaming, ChosenExperts_AreTheirProducts) {
  constexpr int64_t kExperts = 6, kWidth = 200, kCols = 1280, kRows = 90, kChoices = 2;
  for (const auto& [dtype, halves] : kFormats) {
    const CudaWeight w = weight(dtype, kExperts, kWidth, kCols);
    const std::vector<float> x = normals(kRows * kCols);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < kRows * kChoices; ++i) ids.push_back(static_cast<int32_t>(random_() % kExperts));
    std::vector<std::vector<float>> of_expert;
    for (int64_t e = 0; e < kExperts; ++e) {
      Job job = job_of(w);
      job.products[0].data += e * job.expert_bytes;
      of_expert.push_back(product(job, x));
    }
    for (const int64_t rows : {int64_t{1}, int64_t{4}, kRows}) {
      const DeviceBytes in(*memory_, x.data(), static_cast<uint64_t>(rows * kCols) * 4);
      const DeviceBytes on_gpu(*memory_, ids.data(), static_cast<uint64_t>(rows * kChoices) * 4);
      const kit::Allocation out = room(rows * kChoices * kWidth * 4), fault = room(4);
      int32_t* const told = reinterpret_cast<int32_t*>(fault.data());
      const DeviceBytes place(*memory_, &told, sizeof told);
      const kit::Allocation scratch = room(choice_scratch(rows * kChoices, rows, kCols, kExperts));
      Job job = job_of(w);
      job.x = {in.as<float>(), Stored::kF32}, job.rows = rows,
      job.products[0].out = reinterpret_cast<float*>(out.data());
      multiply_chosen(job, {on_gpu.as<int32_t>(), nullptr, kExperts, kChoices, false, place.as<FaultPlace>()}, kExperts,
                      scratch.data(), nullptr);
      const std::vector<float> got = read(out, rows * kChoices * kWidth);
      for (int64_t p = 0; p < rows * kChoices; ++p) {
        const auto& wanted = of_expert[static_cast<size_t>(ids[static_cast<size_t>(p)])];
        ASSERT_TRUE(std::equal(got.begin() + p * kWidth, got.begin() + (p + 1) * kWidth,
                               wanted.begin() + p / kChoices * kWidth))
            << kit::find_format(dtype)->name << " rows " << rows << " pair " << p;
      }
    }
  }
}

// Both round activations and weights alike: only the order of sums differs. A row is the same in any company here too.
TEST_F(Streaming, Library_IsNearThem) {
  std::string why;
  const auto library = Library::open(&why);
  if (!library) GTEST_SKIP() << why;
  constexpr int64_t kWidth = 512, kCols = 2048, kRows = 1000;
  const CudaWeight w = weight(MOTLEY_Q4_K, 1, kWidth, kCols);
  const std::vector<float> x = normals(kRows * kCols), own = product(job_of(w), x);
  const DeviceBytes in(*memory_, x.data(), x.size() * 4), ordered = rows_as(Stored::kTileOrder, x);
  const kit::Allocation weights = room(kWidth * kCols * 2), rounded = room(kRows * kCols * 2),
                        out = room(kRows * kWidth * 4);
  const kit::Allocation workspace = room(static_cast<int64_t>(Library::kWorkspace));
  round_rows({in.as<float>(), Stored::kF32}, kRows, kCols, false, rounded.data(), kCols, nullptr);
  for (const Stored stored : {Stored::kBf16, Stored::kTileOrder}) {
    to_bf16(w.format, w.view(), 0, kWidth, stored == Stored::kTileOrder, weights.data(), nullptr);
    LibraryCall call{weights.data(), rounded.data(), nullptr, nullptr, reinterpret_cast<float*>(out.data()),
                     kWidth,         kCols,          kRows,   kCols,   kWidth};
    if (stored == Stored::kTileOrder) call.x = ordered.as<uint16_t>();
    EXPECT_TRUE(library->knows(call));
    library->multiply(call, workspace.data(), nullptr);
    const std::vector<float> all = read(out, kRows * kWidth);
    double difference = 0, size = 0;
    for (size_t i = 0; i < all.size(); ++i)
      difference += (all[i] - own[i]) * (all[i] - own[i]), size += own[i] * own[i];
    EXPECT_LT(std::sqrt(difference / size), 1e-5);
    for (const int64_t few : {1, 5, 37, 128, 190, 257}) {
      call.rows = few;
      library->multiply(call, workspace.data(), nullptr);
      const std::vector<float> got = read(out, few * kWidth);
      EXPECT_TRUE(std::equal(got.begin(), got.end(), all.begin())) << few << " rows";
    }
  }
}

TEST_F(Streaming, OrderedRows_AreInTileOrder) {
  constexpr int64_t kRows = 3, kCols = 1024;
  const CudaWeight w = weight(MOTLEY_Q4_K, 1, 64, kCols);
  const std::vector<float> x = normals(kRows * kCols);
  const DeviceBytes wanted = rows_as(Stored::kTileOrder, x);
  for (const Stored stored : {Stored::kF32, Stored::kBf16}) {
    const DeviceBytes in = rows_as(stored, x);
    const kit::Allocation ordered = room(kRows * kCols * 2);
    Job job = job_of(w);
    job.x = {in.as<float>(), stored}, job.rows = kRows;
    order_rows(job, ordered.data(), nullptr);
    EXPECT_EQ(read(ordered, kRows * kCols / 2), read(wanted.as<std::byte>(), kRows * kCols / 2));
  }
}

TEST(TileOrder, KeepsPairsAndEach256Columns) {
  std::vector<int64_t> places;
  for (int64_t i = 0; i < 3 * kOrdered; ++i) {
    const int64_t place = in_tile_order(i);
    EXPECT_EQ(place / kOrdered, i / kOrdered);
    if (i % 2 == 1) {
      EXPECT_EQ(place, places.back() + 1);
    }
    places.push_back(place);
  }
  std::ranges::sort(places);
  for (int64_t i = 0; i < 3 * kOrdered; ++i) EXPECT_EQ(places[static_cast<size_t>(i)], i);
}

// What lets rows in bf16 be of one class: few rows by own kernels have the bits that they have among many.
TEST_F(Streaming, Serial_IsTheLibrary) {
  std::string why;
  const auto library = Library::open(&why);
  if (!library) GTEST_SKIP() << why;
  constexpr int64_t kRows = 300;
  for (const auto& [width, cols] :
       {std::pair{400, 2816}, {64, 264}, {2104, 5120}, {20400, 1024}, {40000, 264}, {4096, 14336}}) {
    const CudaWeight w = weight(MOTLEY_BF16, 1, width, cols);
    const std::vector<float> x = normals(kRows * cols), bias = normals(width);
    const DeviceBytes in(*memory_, x.data(), x.size() * 4), b(*memory_, bias.data(), bias.size() * 4);
    const kit::Allocation rounded = room(kRows * cols * 2), out = room(kRows * width * 4);
    const kit::Allocation workspace = room(static_cast<int64_t>(Library::kWorkspace));
    round_rows({in.as<float>(), Stored::kF32}, kRows, cols, false, rounded.data(), cols, nullptr);
    auto* const to = reinterpret_cast<float*>(out.data());
    LibraryCall call{w.view().data, rounded.data(), b.as<float>(), nullptr, to, width, cols, kRows, cols, width};
    ASSERT_TRUE(library->knows(call));
    library->multiply(call, workspace.data(), nullptr);
    const std::vector<float> all = read(out, kRows * width);
    const auto check = [&](const std::vector<float>& got, int64_t rows, const char* by) {
      EXPECT_TRUE(std::equal(got.begin(), got.begin() + rows * width, all.begin()))
          << width << " x " << cols << ", " << rows << " rows by " << by;
    };
    for (const int64_t rows : {5, 16, 17, 33, 65, 130, 200, 257}) {
      call.rows = rows;
      library->multiply(call, workspace.data(), nullptr);
      check(read(out, rows * width), rows, "the library");
    }
    Job job = job_of(w);
    job.products[0].bias = b.as<float>(), job.products[0].out = to, job.x = {rounded.data(), Stored::kBf16};
    for (const int64_t rows : {1, 2, 4, 5, 8, 16, 17, 31, 32, 33, 64}) {
      job.rows = rows;
      ASSERT_LE(rows, serial_rows_max(job));
      EXPECT_EQ(cudaMemset(to, 0xff, static_cast<size_t>(kRows * width) * 4), cudaSuccess);
      multiply_serially(job, cols, nullptr);
      const std::vector<float> got = read(out, (rows + 1) * width);
      check(got, rows, "the serial kernel");
      EXPECT_TRUE(std::all_of(got.end() - width, got.end(), [](float v) { return std::isnan(v); })) << rows;
    }
  }
}

// Products of one input, of widths that fill no tile, are what each is alone; and SILU_MUL of two is that of their
// sums.
TEST_F(Streaming, SerialOfSeveral_IsItsProducts) {
  constexpr int64_t kCols = 328, kRows = 40, kRoom = 700;
  const CudaWeight w = weight(MOTLEY_BF16, 1, kRoom, kCols);
  const std::vector<float> x = normals(kRows * kCols), bias = normals(kRoom);
  const DeviceBytes in(*memory_, x.data(), x.size() * 4), b(*memory_, bias.data(), bias.size() * 4);
  const kit::Allocation rounded = room(kRows * kCols * 2), out = room(kRows * kRoom * 4);
  round_rows({in.as<float>(), Stored::kF32}, kRows, kCols, false, rounded.data(), kCols, nullptr);
  const auto results = [&](const Job& job) {
    EXPECT_EQ(cudaMemset(out.data(), 0xff, kRows * kRoom * 4), cudaSuccess);
    multiply_serially(job, kCols, nullptr);
    return read(out, kRows * kRoom);
  };
  // Results of a product begin kRows times as far in as its weight rows do.
  const auto job_of_widths = [&](const std::vector<int32_t>& widths, int64_t rows, bool biased) {
    Job job = job_of(w);
    job.x = {rounded.data(), Stored::kBf16}, job.rows = rows, job.count = job.tiles = 0;
    int64_t before = 0;  // weight rows
    for (const int32_t width : widths) {
      job.products[job.count++] = {w.view().data + before * job.row_bytes, biased ? b.as<float>() + before : nullptr,
                                   out.data() + before * kRows * 4, width, job.tiles};
      job.tiles += tiles_of(width), before += width;
    }
    return job;
  };
  const std::vector<float> plain = results(job_of_widths({401}, kRows, false));
  EXPECT_LT(error(x, {plain.begin(), plain.begin() + kRows * 401}, 401, kCols), 4e-3);
  const std::vector<int32_t> widths = {401, 73, 130};
  const std::vector<float> all = results(job_of_widths(widths, 37, true));
  for (int i = 0, before = 0; i < 3; before += widths[static_cast<size_t>(i++)]) {
    Job alone = job_of_widths(widths, 3, true);
    alone.products[0] = alone.products[i], alone.products[0].first = 0;
    alone.count = 1, alone.tiles = tiles_of(alone.products[0].width);
    const std::vector<float> wanted = results(alone);
    const auto at = static_cast<long>(before * kRows), end = at + 3 * widths[static_cast<size_t>(i)];
    EXPECT_TRUE(std::isfinite(wanted[static_cast<size_t>(at)]));
    EXPECT_TRUE(std::equal(wanted.begin() + at, wanted.begin() + end, all.begin() + at)) << i;
  }
  constexpr int32_t kWidth = 333;
  const std::vector<float> two = results(job_of_widths({kWidth, kWidth}, kRows, true));
  for (const auto& [gate, rounds] : {std::pair(0, false), {1, false}, {0, true}}) {
    const auto gated = [&, gate = gate, rounds = rounds](int64_t rows) {
      Job job = job_of_widths({kWidth, kWidth}, rows, true);
      job.gated = out.data(), job.gate = gate;
      job.products[0].bf16 = job.products[1].bf16 = rounds;
      return results(job);
    };
    const std::vector<float> few = gated(3), many = gated(kRows);
    EXPECT_TRUE(std::equal(few.begin(), few.begin() + 3 * kWidth, many.begin()));
    for (size_t i = 0; i < kRows * kWidth; ++i) {
      const auto product = [&, rounds = rounds](size_t at) {
        return double{rounds ? kit::bf16_to_f32(kit::f32_to_bf16(two[at])) : two[at]};
      };
      const double a = product(i), c = product(kRows * kWidth + i), silu = gate == 0 ? a : c;
      ASSERT_NEAR(many[i], a * c / (1 + std::exp(-silu)), 1e-3 + 1e-5 * std::abs(a * c)) << gate << " " << i;
    }
  }
}

// Two products of an input in one call of the library, and rows that are bf16 already.
TEST_F(Streaming, ABatch_IsItsProducts) {
  std::string why;
  const auto library = Library::open(&why);
  if (!library) GTEST_SKIP() << why;
  constexpr int64_t kWidth = 1024, kCols = 512, kRows = 100;
  const CudaWeight w = weight(MOTLEY_BF16, 1, 2 * kWidth, kCols);
  const std::vector<float> x = normals(kRows * kCols);
  const DeviceBytes in(*memory_, x.data(), x.size() * 4);
  const kit::Allocation rounded = room(kRows * kCols * 2), out = room(kRows * 2 * kWidth * 4);
  const kit::Allocation workspace = room(static_cast<int64_t>(Library::kWorkspace));
  round_rows({in.as<float>(), Stored::kF32}, kRows, kCols, false, rounded.data(), kCols, nullptr);
  LibraryCall call{w.view().data, rounded.data(), nullptr, nullptr, reinterpret_cast<float*>(out.data()),
                   kWidth,        kCols,          kRows,   kCols,   kWidth};
  for (int i = 0; i < 2; ++i) {
    LibraryCall one = call;
    one.w = w.view().data + i * kWidth * kCols * 2, one.out = call.out_at(i * kRows * kWidth);
    library->multiply(one, workspace.data(), nullptr);
  }
  const std::vector<float> wanted = read(out, kRows * 2 * kWidth);
  EXPECT_EQ(cudaMemset(out.data(), 0xff, kRows * 2 * kWidth * 4), cudaSuccess);
  call.batch = 2, call.w_step = kWidth * kCols, call.out_step = kRows * kWidth;
  ASSERT_TRUE(library->knows(call));
  library->multiply(call, workspace.data(), nullptr);
  const std::vector<float> both = read(out, kRows * 2 * kWidth);  // by another algorithm, perhaps
  for (size_t i = 0; i < both.size(); ++i) ASSERT_NEAR(both[i], wanted[i], 1e-3) << i;
  call.out_bf16 = true;
  ASSERT_TRUE(library->knows(call));
  library->multiply(call, workspace.data(), nullptr);
  std::vector<uint16_t> halves(kRows * 2 * kWidth);
  EXPECT_EQ(cudaMemcpy(halves.data(), out.data(), halves.size() * 2, cudaMemcpyDeviceToHost), cudaSuccess);
  for (size_t i = 0; i < halves.size(); ++i)
    ASSERT_NEAR(kit::bf16_to_f32(halves[i]), wanted[i], 1e-5 + std::abs(wanted[i]) / 250) << i;
}

}  // namespace
}  // namespace motley::cuda
