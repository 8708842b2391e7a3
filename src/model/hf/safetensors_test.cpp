#include "model/hf/safetensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/hf/checkpoint.hpp"
#include "model/hf/directory_test_files.hpp"

namespace motley::hf {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::HasSubstr;
using ::testing::StartsWith;

Result<SafetensorsFile> parse(const std::string& bytes) {
  return SafetensorsFile::parse(std::as_bytes(std::span(bytes)));
}

TEST(Safetensors, Tensors_LieInPlace) {
  const std::string bytes = safetensors({f32_tensor("b", {2, 3}), {"a", "U8", {4}, "wxyz"}, {"c", "F16", {}, "12"}});
  const auto file = parse(bytes);
  ASSERT_TRUE(file.ok()) << file.error().to_string();
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  const SafetensorsTensor* b = file->find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->element(), Element::kF32);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->data.size(), 24u);
  EXPECT_EQ(b->describe(), "F32 [2, 3]");
  EXPECT_EQ(reinterpret_cast<const char*>(b->data.data()), bytes.data() + bytes.size() - 24 - 4 - 2);
  EXPECT_EQ(file->find("c")->data.size(), 2u);
  EXPECT_EQ(file->find("d"), nullptr);
}

TEST(Safetensors, EmptyTensorsAndFiles_AreRead) {
  EXPECT_TRUE(parse(raw_safetensors("{}", "")).ok());
  EXPECT_TRUE(parse(safetensors({{"a", "F32", {0, 7}, ""}, f32_tensor("b", {1})})).ok());
}

std::string entry(std::string_view fields) { return "{\"a\":{" + std::string(fields) + "}}"; }

TEST(Safetensors, MalformedFiles_AreRefusedByPlace) {
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const std::pair<std::string, const char*> cases[] = {
      {"", "byte 0"},
      {"1234567", "byte 0"},
      {std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10), "byte 0"},
      {raw_safetensors("{}", "").substr(0, 9), "byte 0"},
      {std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10), "above 100000000"},
      {raw_safetensors("{", ""), "header: byte"},
      {raw_safetensors("[]", ""), "header: is no JSON object"},
      {raw_safetensors(std::string(40, '['), ""), "deeper than"},
      {raw_safetensors("{\"a\":{" + good + "},\"a\":{" + good + "}}", "1234"), "'a' stands twice"},
      {raw_safetensors("{\"a\":1}", ""), "tensor 'a': has no 'dtype'"},
      {raw_safetensors(entry(R"("dtype":"F32","data_offsets":[0,4])"), "1234"), "no 'shape'"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[1])"), "1234"), "no 'data_offsets'"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), "1234"), "no 'data_offsets'"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), "1234"), "no 'data_offsets'"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "1234"), "do not lie in"},
      {raw_safetensors(entry(good), "123"), "do not lie in"},
      {raw_safetensors(entry(good), "12345"), "last 1 bytes belong to no tensor"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "1234"), "do not hold its 2"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "1234"), "dimension"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), "1234"), "dimension"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4])"), "1234"),
       "too many elements"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])"), "1234"),
       "do not hold"},
      {raw_safetensors(entry(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), "1234"),
       "at most 8"},
      {raw_safetensors(entry(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), "1234"), "type 'F33' is not known"},
      {raw_safetensors(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1"), "its name is empty"},
      {raw_safetensors(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                       "123"),
       "tensor 'b': its data overlaps"},
      {raw_safetensors(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                       "123"),
       "tensor 'b': its data follows bytes of no tensor"},
  };
  for (const auto& [bytes, expected] : cases) {
    const auto file = parse(bytes);
    ASSERT_FALSE(file.ok()) << expected;
    EXPECT_THAT(file.error().message(), HasSubstr(expected));
    EXPECT_EQ(file.error().message().find('\n'), std::string::npos);
  }
}

TEST(Safetensors, ManyValues_AreBounded) {
  std::string header = "[0";
  for (size_t i = 0; i < (1u << 20); ++i) header += ",0";
  EXPECT_THAT(parse(raw_safetensors(header + "]", "")).error().message(), HasSubstr("holds more than"));
}

TEST(Index, WeightMap_IsReadInOrder) {
  const auto map =
      parse_index(R"({"metadata":{"total_size":8},"weight_map":{"b":"2.safetensors","a":"1.safetensors"}})");
  ASSERT_TRUE(map.ok()) << map.error().to_string();
  EXPECT_EQ(*map, (WeightMap{{"a", "1.safetensors"}, {"b", "2.safetensors"}}));
}

TEST(Index, FilesElsewhere_AreRefused) {
  for (const char* file : {"../1.safetensors", "/etc/1.safetensors", "a/1.safetensors", "a\\\\1.safetensors", "..", "",
                           "1.bin", "1\\u0000.safetensors"}) {
    const auto map = parse_index(std::string(R"({"weight_map":{"a":")") + file + "\"}}");
    ASSERT_FALSE(map.ok()) << file;
    EXPECT_THAT(map.error().message(),
                StartsWith("key 'weight_map', tensor 'a': is not in a file of the model's folder"));
  }
  for (const char* text :
       {"{}", "[]", R"({"weight_map":{}})", R"({"weight_map":[]})", "{", R"({"weight_map":{"a":1}})"}) {
    EXPECT_FALSE(parse_index(text).ok()) << text;
  }
}

class CheckpointFiles : public ::testing::Test {
 protected:
  Result<Checkpoint> open() const {
    const auto directory = Directory::open(folder_.path());
    return directory.ok() ? Checkpoint::open(*directory) : directory.error();
  }
  void index(const std::string& map) const {
    folder_.write("model.safetensors.index.json", "{\"weight_map\":" + map + "}");
  }
  std::string refusal() const {
    const auto checkpoint = open();
    EXPECT_FALSE(checkpoint.ok());
    return checkpoint.error().message();
  }

  TestFolder folder_;
};

TEST_F(CheckpointFiles, IndexedFiles_AreOne) {
  folder_.write("m1.safetensors", safetensors({f32_tensor("b", {1})}));
  folder_.write("m2.safetensors", safetensors({f32_tensor("a", {2}), f32_tensor("c", {3})}));
  index(R"({"a":"m2.safetensors","b":"m1.safetensors","c":"m2.safetensors"})");
  const auto checkpoint = open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().to_string();
  ASSERT_EQ(checkpoint->tensors().size(), 3u);
  EXPECT_EQ(checkpoint->tensors()[1]->name, "b");
  EXPECT_EQ(checkpoint->find("c")->data.size(), 12u);
  EXPECT_EQ(checkpoint->file_of(*checkpoint->find("c")), "m2.safetensors");
  EXPECT_EQ(checkpoint->find("d"), nullptr);
}

TEST_F(CheckpointFiles, IndexAndFilesThatDisagree_AreRefused) {
  folder_.write("m1.safetensors", safetensors({f32_tensor("a", {1}), f32_tensor("b", {1})}));
  folder_.write("m2.safetensors", safetensors({f32_tensor("c", {1})}));
  index(R"({"a":"m1.safetensors","c":"m2.safetensors"})");
  EXPECT_THAT(refusal(), StartsWith("'m1.safetensors': holds tensor 'b'"));
  index(R"({"a":"m1.safetensors","b":"m2.safetensors","c":"m2.safetensors"})");
  EXPECT_THAT(refusal(), StartsWith("'m1.safetensors': holds tensor 'b'"));
  index(R"({"a":"m1.safetensors","b":"m1.safetensors","c":"m2.safetensors","d":"m2.safetensors"})");
  EXPECT_THAT(refusal(), HasSubstr("places tensor 'd' in 'm2.safetensors', which does not hold it"));
  index(R"({"a":"m1.safetensors","b":"m1.safetensors","c":"m3.safetensors"})");
  EXPECT_THAT(refusal(), StartsWith("'m3.safetensors': is named by"));
}

TEST_F(CheckpointFiles, BrokenFiles_AreNamed) {
  folder_.write("model.safetensors", "123");
  EXPECT_THAT(refusal(), StartsWith("'model.safetensors': byte 0"));
}

TEST_F(CheckpointFiles, LinksOutOfTheFolder_AreRefused) {
  const TestFolder other;
  other.write("stolen.safetensors", safetensors({f32_tensor("a", {1})}));
  std::filesystem::create_symlink(other.path() / "stolen.safetensors", folder_.path() / "model.safetensors");
  EXPECT_THAT(refusal(), StartsWith("'model.safetensors': is a link out of the model's folder"));
  folder_.erase("model.safetensors");
  std::filesystem::create_symlink(folder_.path() / "nothing", folder_.path() / "model.safetensors");
  EXPECT_THAT(refusal(), StartsWith("'model.safetensors': leads to no file"));
  folder_.erase("model.safetensors");
  folder_.write("real.safetensors", safetensors({f32_tensor("a", {1})}));
  std::filesystem::create_symlink("real.safetensors", folder_.path() / "model.safetensors");
  EXPECT_TRUE(open().ok());
}

TEST_F(CheckpointFiles, LinksOfADownloadCache_AreFollowed) {
  folder_.write("models--a--b/blobs/0123", safetensors({f32_tensor("a", {1})}));
  const auto snapshot = folder_.path() / "models--a--b" / "snapshots" / "89ab";
  std::filesystem::create_directories(snapshot);
  std::filesystem::create_symlink("../../blobs/0123", snapshot / "model.safetensors");
  const auto directory = Directory::open(snapshot);
  ASSERT_TRUE(directory.ok());
  const auto checkpoint = Checkpoint::open(*directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().to_string();
}

TEST_F(CheckpointFiles, FoldersWithoutSafetensors_AreRefusedWithAdvice) {
  EXPECT_THAT(refusal(), HasSubstr("'model.safetensors': is missing"));
  folder_.write("consolidated.safetensors", "");
  EXPECT_THAT(refusal(), StartsWith("'consolidated.safetensors': is neither"));
  folder_.write("pytorch_model.bin", "");
  EXPECT_THAT(refusal(), HasSubstr("convert the model to safetensors"));
  EXPECT_EQ(open().error().code(), MOTLEY_UNIMPLEMENTED);
}

}  // namespace
}  // namespace motley::hf
