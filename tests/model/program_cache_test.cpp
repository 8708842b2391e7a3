// What a simulated device of fixed row counts has compiled, kept on disk.
#include "runtime/program_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <memory>

#include "base/file.hpp"
#include "model/sim_file.hpp"

namespace motley {
namespace {

constexpr std::array<uint32_t, 2> kRows = {4, 16};
using Files = std::vector<std::filesystem::path>;

// One ADD, of a value and itself.
struct Sum {
  Sum() {
    for (motley_value& value : values) value.dtype = MOTLEY_F32, value.rank = 2, value.dims[0] = MOTLEY_DIM_ROWS;
    for (motley_value& value : values) value.dims[1] = 8;
    std::fill(std::begin(op.in), std::end(op.in), MOTLEY_NONE);
    std::fill(std::begin(op.out), std::end(op.out), MOTLEY_NONE);
    std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
    op.kind = MOTLEY_OP_ADD, op.in[0] = op.in[1] = 0, op.out[0] = 1;
    segment.struct_size = sizeof segment, segment.cut = MOTLEY_CUT_STAGE, segment.layer_end = 1;
    segment.values = values, segment.value_count = 2, segment.ops = &op, segment.op_count = 1;
    segment.inputs = &input, segment.input_count = 1, segment.outputs = &output, segment.output_count = 1;
  }
  Sum(const Sum&) = delete;
  motley_value values[2]{};
  motley_op op{};
  int32_t input = 0, output = 1;
  motley_segment segment{};
};

class ProgramsOnDisk : public ::testing::Test {
 protected:
  ProgramsOnDisk() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-programs-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
  }
  ~ProgramsOnDisk() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  static std::string with_driver(const char* version) {
    return fmt::format(
        "kind = \"npu\"\nmemory_bytes = 1000000000\nbandwidth_gb_s = 10\ngflops = {{f32 = 10}}\ndynamic_rows = false\n"
        "paged_attention = false\ncompile_s = 10\ncompile_wall = 0\ndriver = \"{}\"\n",
        version);
  }
  // On a device of its own: how many row counts came from the disk.
  uint64_t hits(const ProgramCache& cache, const char* identity = "npu", const char* driver = "1",
                std::span<const uint32_t> rows = kRows) {
    auto& file = files_[driver];
    if (file == nullptr) file = std::make_unique<testing::SimFile>(with_driver(driver));
    const Device device = file->open();
    const auto programs = cache.compile(device, identity, sum_.segment, {}, rows);
    EXPECT_TRUE(programs.ok()) << programs.error().message();
    EXPECT_TRUE(cache.holds(identity, sum_.segment, rows));
    return device.stats()->blob_hits;
  }
  Files files() const {
    Files found;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) found.push_back(entry.path());
    return found;
  }

  const Sum sum_;
  std::map<std::string, std::unique_ptr<testing::SimFile>> files_;  // by driver
  std::filesystem::path folder_;
};

TEST_F(ProgramsOnDisk, AreFoundByALaterStart_OfTheSameDeviceAndRows) {
  const ProgramCache cache(folder_ / "programs");
  EXPECT_FALSE(cache.holds("npu", sum_.segment, kRows));
  EXPECT_EQ(hits(cache), 0u);
  EXPECT_EQ(hits(cache), 2u);
  EXPECT_EQ(hits(ProgramCache(folder_ / "programs")), 2u);
  EXPECT_EQ(hits(cache, "another"), 0u);
  EXPECT_EQ(hits(cache, "npu", "1", std::array<uint32_t, 1>{4}), 0u);
}

TEST_F(ProgramsOnDisk, ThatThePluginRefuses_AreCompiledAgain) {
  const ProgramCache cache(folder_);
  EXPECT_EQ(hits(cache), 0u);
  EXPECT_EQ(hits(cache, "npu", "2"), 0u);
  EXPECT_EQ(hits(cache, "npu", "2"), 2u);
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(ProgramsOnDisk, Broken_AreCompiledAgain) {
  const ProgramCache cache(folder_);
  EXPECT_EQ(hits(cache), 0u);
  const std::string whole = *read_file(files().at(0), 1 << 20);
  std::string flipped = whole;
  flipped.back() ^= 1;
  for (const std::string& text : {whole.substr(0, whole.size() - 1), whole.substr(0, 3), std::string(), flipped}) {
    ASSERT_TRUE(write_file(files().at(0), text).ok());
    EXPECT_EQ(hits(cache), 0u);
    EXPECT_EQ(hits(cache), 2u);
  }
}

TEST_F(ProgramsOnDisk, BeyondTheLimit_TheOldestGo) {
  const ProgramCache all(folder_);
  EXPECT_EQ(hits(all), 0u);
  const uint64_t bytes = std::filesystem::file_size(files().at(0));
  const auto now = std::filesystem::file_time_type::clock::now();
  std::filesystem::last_write_time(files().at(0), now - std::chrono::hours(2));
  EXPECT_EQ(hits(all, "second"), 0u);
  EXPECT_EQ(hits(all), 2u);  // used again
  const ProgramCache two(folder_, 2 * bytes);
  EXPECT_EQ(hits(two, "third"), 0u);
  EXPECT_EQ(files().size(), 2u);
  EXPECT_TRUE(two.holds("npu", sum_.segment, kRows));
  EXPECT_FALSE(two.holds("second", sum_.segment, kRows));
}

TEST_F(ProgramsOnDisk, AFolderThatCannotBeMade_CompilesAllTheSame) {
  std::ofstream(folder_ / "file") << "x";
  const ProgramCache cache(folder_ / "file" / "programs");
  const testing::SimFile file(with_driver("1"));
  const Device device = file.open();
  EXPECT_TRUE(cache.compile(device, "npu", sum_.segment, {}, kRows).ok());
}

}  // namespace
}  // namespace motley
