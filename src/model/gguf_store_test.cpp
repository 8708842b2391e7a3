#include "model/gguf_store.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "model/architecture.hpp"
#include "model/gguf_test_file.hpp"
#include "model/model.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::HasSubstr;

std::string u16(uint16_t value) { return typed(GgufType::kU16, raw(value)); }

// A model in three parts: keys alone, then its tensors in two halves.
class Split : public ::testing::Test {
 protected:
  Split() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() / fmt::format("motley_split_{}_{}", info->name(), getpid());
    std::filesystem::create_directories(folder_);
    const TestFile whole = small_model(architectures().front()->name);
    parts_[0].keys = whole.keys;
    const auto half = static_cast<std::ptrdiff_t>(whole.tensors.size() / 2);
    parts_[1].tensors.assign(whole.tensors.begin(), whole.tensors.begin() + half);
    parts_[2].tensors.assign(whole.tensors.begin() + half, whole.tensors.end());
    for (uint16_t i = 0; i < 3; ++i) {
      parts_[i].set("split.no", u16(i));
      parts_[i].set("split.count", u16(3));
      parts_[i].set("split.tensors.count", i32(static_cast<int32_t>(whole.tensors.size())));
    }
  }
  ~Split() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path path(size_t number) const { return folder_ / fmt::format("m-{:05}-of-00003.gguf", number); }
  void write() const {
    for (size_t i = 0; i < 3; ++i) std::ofstream(path(i + 1), std::ios::binary) << parts_[i].bytes();
  }
  std::string refusal(size_t number = 1) const {
    const auto model = Model::load(path(number));
    return model.ok() ? "" : model.error().to_string();
  }

  std::filesystem::path folder_;
  std::array<TestFile, 3> parts_;
};

TEST_F(Split, AnyPart_LoadsTheWholeModel) {
  write();
  for (const size_t number : {1u, 2u, 3u}) {
    const auto model = Model::load(path(number));
    ASSERT_TRUE(model.ok()) << model.error().to_string();
    EXPECT_EQ((*model)->config().layers, 1u);
    EXPECT_EQ((*model)->tokenizer().tokens.size(), 5u);
    uint64_t bytes = 0;
    for (const TestFile& part : parts_) bytes += part.bytes().size();
    EXPECT_EQ((*model)->file_bytes(), bytes);
    for (size_t i = 0; i < (*model)->graph().weights.size(); ++i) {
      const auto before = (*model)->read(i);
      ASSERT_TRUE(before.ok());
      EXPECT_EQ(before->data.size(), (*model)->weight(i).bytes);
      (*model)->release(i);
    }
  }
}

TEST_F(Split, LinkToAPart_FindsTheOthersBehindIt) {
  write();
  const auto link = folder_ / "elsewhere" / path(1).filename();
  std::filesystem::create_directory(link.parent_path());
  std::filesystem::create_symlink(path(1), link);
  const auto model = Model::load(link);
  EXPECT_TRUE(model.ok()) << model.error().to_string();
}

TEST_F(Split, WeightsOfAllParts_AreFoundByName) {
  write();
  const auto store = GgufStore::open(path(2));
  ASSERT_TRUE(store.ok()) << store.error().to_string();
  size_t tensors = 0;
  for (const TestFile& part : parts_) {
    tensors += part.tensors.size();
    for (const TestTensor& tensor : part.tensors) {
      const size_t index = (*store)->find(tensor.name);
      ASSERT_LT(index, (*store)->size()) << tensor.name;
      EXPECT_EQ((*store)->at(index).name, tensor.name);
      EXPECT_EQ((*store)->at(index).bytes, tensor.bytes);
    }
  }
  EXPECT_EQ((*store)->size(), tensors);
  EXPECT_EQ((*store)->find("nobody"), (*store)->size());
  EXPECT_THAT((*store)->place((*store)->find("output_norm.weight")), HasSubstr("of part 3"));
}

TEST_F(Split, MissingPart_IsNamed) {
  write();
  std::filesystem::remove(path(2));
  EXPECT_THAT(refusal(), HasSubstr(path(2).string()));
  EXPECT_THAT(refusal(), HasSubstr("NOT_FOUND"));
}

TEST_F(Split, ContradictionsBetweenParts_AreRefused) {
  struct Case {
    size_t part;
    const char* key;
    std::string value;
  };
  const Case cases[] = {
      {1, "split.no", u16(2)},        {1, "split.count", u16(4)},
      {1, "split.count", u16(1)},     {2, "split.tensors.count", i32(1)},
      {0, "split.count", u16(60000)}, {0, "split.no", u16(3)},
      {0, "split.no", text("0")},
  };
  for (const Case& bad : cases) {
    SCOPED_TRACE(fmt::format("part {} {}", bad.part, bad.key));
    const auto parts = parts_;
    parts_[bad.part].set(bad.key, bad.value);
    write();
    EXPECT_THAT(refusal(), HasSubstr("INVALID_ARGUMENT"));
    EXPECT_THAT(refusal(), HasSubstr(folder_.string()));
    parts_ = parts;
  }
}

TEST_F(Split, MissingSplitKey_IsRefused) {
  parts_[1].erase("split.tensors.count");
  write();
  EXPECT_THAT(refusal(), HasSubstr("'split.tensors.count': is missing"));
}

TEST_F(Split, TooFewTensors_AreRefused) {
  parts_[2].tensors.pop_back();
  write();
  EXPECT_THAT(refusal(), HasSubstr("'split.tensors.count' is"));
}

TEST_F(Split, TensorInTwoParts_IsRefused) {
  parts_[2].tensors.back() = parts_[1].tensors.front();
  write();
  EXPECT_THAT(refusal(), HasSubstr("stands in part 2 too"));
}

TEST_F(Split, OtherName_IsRefused) {
  write();
  const auto other = folder_ / "renamed.gguf";
  std::filesystem::copy_file(path(1), other);
  const auto model = Model::load(other);
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(model.error().message(), HasSubstr("-00001-of-00003"));
}

}  // namespace
}  // namespace motley
