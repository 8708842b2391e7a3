// Every fuzz target on its seeds, once. The target itself aborts on what it does not allow.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

#define X(name) extern "C" int name(const uint8_t* data, size_t size);
MOTLEY_FUZZ_TARGETS
#undef X

namespace {

namespace fs = std::filesystem;

struct Target {
  const char* name;
  int (*run)(const uint8_t*, size_t);
};
std::ostream& operator<<(std::ostream& out, const Target& target) { return out << target.name; }

constexpr Target kTargets[] = {
#define X(name) {#name, name},
    MOTLEY_FUZZ_TARGETS
#undef X
};

std::vector<fs::path> seeds_of(const std::string& target) {
  const std::string folder = target.substr(0, target.size() - std::string("_fuzz").size());
  std::vector<fs::path> seeds;
  for (const auto& entry : fs::directory_iterator(fs::path(MOTLEY_FUZZ_CORPUS) / folder)) seeds.push_back(entry.path());
  std::sort(seeds.begin(), seeds.end());
  return seeds;
}

class FuzzSeeds : public testing::TestWithParam<Target> {};

TEST_P(FuzzSeeds, EverySeedIsReadOrRefused) {
  const auto seeds = seeds_of(GetParam().name);
  EXPECT_FALSE(seeds.empty());
  for (const fs::path& seed : seeds) {
    SCOPED_TRACE(seed.filename().string());
    std::ifstream file(seed, std::ios::binary);
    ASSERT_TRUE(file.good());
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    EXPECT_EQ(GetParam().run(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzSeeds, testing::ValuesIn(kTargets),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
