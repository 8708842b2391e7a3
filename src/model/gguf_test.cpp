#include "model/gguf.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/quote.hpp"
#include "model/dtype.hpp"
#include "model/gguf_test_file.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

Result<GgufFile> parse(const std::string& bytes) { return GgufFile::parse(std::as_bytes(std::span(bytes))); }

TestFile two_tensors() {
  TestFile file;
  file.set("some.key", u32(7));
  file.add("first", {4, 2});
  file.add("second", {3});
  return file;
}

TEST(Gguf, EveryValueType_IsRead) {
  TestFile file;
  file.set("u8", typed(GgufType::kU8, raw(uint8_t{200})));
  file.set("i8", typed(GgufType::kI8, raw(int8_t{-3})));
  file.set("u16", typed(GgufType::kU16, raw(uint16_t{60000})));
  file.set("i16", typed(GgufType::kI16, raw(int16_t{300})));
  file.set("u32", u32(4000000000u));
  file.set("i32", i32(5));
  file.set("u64", typed(GgufType::kU64, raw(uint64_t{1} << 40)));
  file.set("i64", typed(GgufType::kI64, raw(int64_t{9})));
  file.set("f32", f32(1.5f));
  file.set("f64", typed(GgufType::kF64, raw(2.25)));
  file.set("yes", boolean(1));
  file.set("no", boolean(0));
  file.set("text", text("hello"));
  file.set("texts", texts({"", "x", "yz"}));
  file.set("i32s", numbers<int32_t>(GgufType::kI32, {-1, 2}));
  file.set("f32s", numbers<float>(GgufType::kF32, {0.5f}));
  file.set("empty", array(GgufType::kF32, 0, ""));
  file.set("u8s", numbers<uint8_t>(GgufType::kU8, {'a', 255}));
  file.set("i8s", numbers<int8_t>(GgufType::kI8, {-1}));
  const std::string bytes = file.bytes();
  const auto parsed = parse(bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  const std::pair<const char*, uint64_t> counts[] = {
      {"u8", 200}, {"u16", 60000}, {"i16", 300}, {"u32", 4000000000u}, {"u64", 1ull << 40}, {"i64", 9}, {"i32", 5}};
  for (const auto& [key, value] : counts) EXPECT_EQ(**parsed->read_count(key), value) << key;
  EXPECT_EQ(**parsed->read_number("i8"), -3);
  EXPECT_EQ(**parsed->read_number("f32"), 1.5);
  EXPECT_EQ(**parsed->read_number("f64"), 2.25);
  EXPECT_TRUE(**parsed->read_bool("yes"));
  EXPECT_FALSE(**parsed->read_bool("no"));
  EXPECT_EQ(**parsed->read_string("text"), "hello");
  EXPECT_EQ(*parsed->read_strings("texts"), (std::vector<std::string_view>{"", "x", "yz"}));
  EXPECT_EQ(*parsed->read_i32s("i32s"), (std::vector<int32_t>{-1, 2}));
  EXPECT_EQ(*parsed->read_f32s("f32s"), std::vector<float>{0.5f});
  EXPECT_TRUE(parsed->read_f32s("empty")->empty());
  EXPECT_EQ(*parsed->read_bytes("u8s"), "a\xFF");
  EXPECT_EQ(*parsed->read_bytes("i8s"), "\xFF");
}

TEST(Gguf, AbsentKeys_AreNotErrors) {
  const std::string bytes = two_tensors().bytes();
  const auto parsed = parse(bytes);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed->read_count("none"), std::nullopt);
  EXPECT_EQ(*parsed->read_number("none"), std::nullopt);
  EXPECT_EQ(*parsed->read_bool("none"), std::nullopt);
  EXPECT_EQ(*parsed->read_string("none"), std::nullopt);
  EXPECT_TRUE(parsed->read_strings("none")->empty());
  EXPECT_TRUE(parsed->read_i32s("none")->empty());
  EXPECT_TRUE(parsed->read_f32s("none")->empty());
  EXPECT_TRUE(parsed->read_bytes("none")->empty());
}

TEST(Gguf, WrongTypes_AreRefusedWithTheKey) {
  TestFile file;
  file.set("text", text("x"));
  file.set("number", u32(1));
  file.set("negative", i32(-1));
  file.set("infinite", f32(std::numeric_limits<float>::infinity()));
  file.set("huge", typed(GgufType::kU64, raw(~uint64_t{0})));
  file.set("u32s", numbers<uint32_t>(GgufType::kU32, {1}));
  const std::string bytes = file.bytes();
  const auto parsed = parse(bytes);
  ASSERT_TRUE(parsed.ok());
  const std::pair<const char*, Status> cases[] = {
      {"'text'", parsed->read_count("text").error()},          {"'text'", parsed->read_number("text").error()},
      {"'number'", parsed->read_bool("number").error()},       {"'number'", parsed->read_string("number").error()},
      {"'number'", parsed->read_strings("number").error()},    {"'number'", parsed->read_i32s("number").error()},
      {"'number'", parsed->read_f32s("number").error()},       {"'negative'", parsed->read_count("negative").error()},
      {"'infinite'", parsed->read_number("infinite").error()}, {"'huge'", parsed->read_count("huge").error()},
      {"'u32s'", parsed->read_count("u32s").error()},          {"'u32s'", parsed->read_number("u32s").error()},
      {"'u32s'", parsed->read_strings("u32s").error()},        {"'u32s'", parsed->read_f32s("u32s").error()},
      {"'u32s'", parsed->read_bytes("u32s").error()}};
  for (const auto& [key, status] : cases) {
    EXPECT_EQ(status.code(), MOTLEY_INVALID_ARGUMENT) << key;
    EXPECT_THAT(status.message(), HasSubstr(key));
    EXPECT_THAT(status.message(), HasSubstr("(byte "));
    EXPECT_THAT(status.message(), HasSubstr("; convert the model again"));
  }
}

TEST(Gguf, Tensors_LieWhereTheyWereWritten) {
  for (const uint32_t version : {2u, 3u}) {
    for (const uint64_t alignment : {uint64_t{8}, uint64_t{32}, uint64_t{256}}) {
      TestFile file = two_tensors();
      file.version = version;
      file.alignment = alignment;
      file.set("general.alignment", u32(static_cast<uint32_t>(alignment)));
      const std::string bytes = file.bytes();
      const auto parsed = parse(bytes);
      ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
      EXPECT_EQ(parsed->version(), version);
      const GgufTensor* first = parsed->find_tensor("first");
      const GgufTensor* second = parsed->find_tensor("second");
      ASSERT_TRUE(first != nullptr && second != nullptr);
      EXPECT_EQ(parsed->find_tensor("third"), nullptr);
      EXPECT_EQ(first->ne, (std::array<int64_t, 4>{4, 2, 1, 1}));
      EXPECT_EQ(first->data.size(), 32u);
      EXPECT_EQ(second->data.size(), 12u);
      EXPECT_EQ(std::to_integer<int>(first->data[0]), 1);
      EXPECT_EQ(second->data.data() + second->data.size(), std::as_bytes(std::span(bytes)).data() + bytes.size());
    }
  }
}

struct BadFile {
  const char* name;
  std::function<void(TestFile&)> spoil;
  const char* text;
  Code code = MOTLEY_INVALID_ARGUMENT;
};

const BadFile kBadHeaders[] = {
    {"Magic", [](TestFile& f) { f.magic = "GGML"; }, "not a GGUF file"},
    {"VersionZero", [](TestFile& f) { f.version = 0; }, "version 0", MOTLEY_UNIMPLEMENTED},
    {"VersionOne", [](TestFile& f) { f.version = 1; }, "version 1", MOTLEY_UNIMPLEMENTED},
    {"VersionFour", [](TestFile& f) { f.version = 4; }, "version 4", MOTLEY_UNIMPLEMENTED},
    {"BigEndian", [](TestFile& f) { f.version = 0x03000000; }, "big-endian", MOTLEY_UNIMPLEMENTED},
    {"TensorsNegative", [](TestFile& f) { f.tensor_count = -1; }, "-1 tensors"},
    {"TensorsTooMany", [](TestFile& f) { f.tensor_count = int64_t{1} << 60; }, "tensors cannot be in a file"},
    {"TensorsOneTooMany", [](TestFile& f) { f.tensor_count = 3; }, "byte "},
    {"KeysNegative", [](TestFile& f) { f.key_count = -5; }, "-5 keys"},
    {"KeysTooMany", [](TestFile& f) { f.key_count = int64_t{1} << 50; }, "keys cannot be in a file"},
    {"KeysOneTooMany", [](TestFile& f) { f.key_count = 2; }, "byte "},
    {"KeyEmpty", [](TestFile& f) { f.set("", u32(1)); }, "key number 1 is empty"},
    {"KeyWithZeroByte", [](TestFile& f) { f.set(std::string("a\0b", 3), u32(1)); }, "contains a zero byte"},
    {"KeyTooLong", [](TestFile& f) { f.set(std::string(65536, 'k'), u32(1)); }, "longer than 65535"},
    {"KeyTwice", [](TestFile& f) { f.keys.emplace_back("some.key", u32(1)); }, "key 'some.key'"},
    {"KeyWithLineBreak", [](TestFile& f) { f.set("a\nb\x1b", typed(static_cast<GgufType>(99), "")); },
     "'a\\x0ab\\x1b'"},
    {"ValueTypeUnknown", [](TestFile& f) { f.set("k", typed(static_cast<GgufType>(13), raw(1))); }, "value type 13"},
    {"ValueTypeNegative", [](TestFile& f) { f.set("k", typed(static_cast<GgufType>(-1), raw(1))); }, "value type -1"},
    {"ElementTypeUnknown", [](TestFile& f) { f.set("k", array(static_cast<GgufType>(77), 1, "x")); }, "value type 77"},
    {"ArrayOfArrays", [](TestFile& f) { f.set("k", array(GgufType::kArray, 1, raw(4))); }, "arrays of arrays"},
    {"ArrayTooLong", [](TestFile& f) { f.set("k", array(GgufType::kU64, uint64_t{1} << 61, "")); }, "an array reaches"},
    {"StringsTooMany", [](TestFile& f) { f.set("k", array(GgufType::kString, ~uint64_t{0}, "")); },
     "a string of an array"},
    {"StringTooLong", [](TestFile& f) { f.set("k", typed(GgufType::kString, raw(~uint64_t{0}))); }, "a string reaches"},
    {"BoolOfTwo", [](TestFile& f) { f.set("k", boolean(2)); }, "a bool is 2"},
    {"BoolArrayOfThree", [](TestFile& f) { f.set("k", array(GgufType::kBool, 2, "\x01\x03")); }, "a bool is 3"},
    {"AlignmentOfWrongType", [](TestFile& f) { f.set("general.alignment", text("32")); }, "key 'general.alignment'"},
    {"AlignmentZero", [](TestFile& f) { f.set("general.alignment", u32(0)); }, "not a power of two"},
    {"AlignmentOdd", [](TestFile& f) { f.set("general.alignment", u32(48)); }, "not a power of two"},
    {"AlignmentSmall", [](TestFile& f) { f.set("general.alignment", u32(4)); }, "not a power of two from 8"},
    {"AlignmentLarge", [](TestFile& f) { f.set("general.alignment", u32(1u << 31)); }, "not a power of two from 8"},
};

const BadFile kBadTensors[] = {
    {"NameEmpty", [](TestFile& f) { f.tensors[1].name = ""; }, "the name of tensor 1 is empty"},
    {"NameTooLong", [](TestFile& f) { f.tensors[1].name = std::string(64, 'n'); }, "longer than 63"},
    {"NameWithZeroByte", [](TestFile& f) { f.tensors[1].name = std::string("\0", 1); }, "zero byte"},
    {"NameTwice", [](TestFile& f) { f.tensors[1].name = "first"; }, "tensor 'first'"},
    {"RankZero", [](TestFile& f) { f.tensors[1].dims = {}; }, "0 dimensions"},
    {"RankFive",
     [](TestFile& f) {
       f.tensors[1].dims = {1, 1, 1, 1, 1};
     },
     "5 dimensions"},
    {"DimensionZero", [](TestFile& f) { f.tensors[1].dims = {0}; }, "dimension 0 is 0"},
    {"DimensionNegative",
     [](TestFile& f) {
       f.tensors[1].dims = {3, -1};
     },
     "dimension 1 is -1"},
    {"ProductOverflow",
     [](TestFile& f) {
       f.tensors[1].dims = {1ll << 40, 1ll << 40};
     },
     "too large"},
    {"BytesOverflow",
     [](TestFile& f) {
       f.tensors[1].dims = {1ll << 40, 1ll << 23};
     },
     "more than any file"},
    {"TypeUnknown", [](TestFile& f) { f.tensors[1].type = 1000; }, "tensor type 1000", MOTLEY_UNIMPLEMENTED},
    {"TypeNegative", [](TestFile& f) { f.tensors[1].type = -1; }, "tensor type -1", MOTLEY_UNIMPLEMENTED},
    {"TypeThatGgufLacks", [](TestFile& f) { f.tensors[1].type = MOTLEY_F8_E4M3_S64; }, "tensor type 63",
     MOTLEY_UNIMPLEMENTED},
    {"TypeRemoved", [](TestFile& f) { f.tensors[1].type = 4; }, "tensor type 4", MOTLEY_UNIMPLEMENTED},
    {"RowsNotWholeBlocks", [](TestFile& f) { f.tensors[1].type = MOTLEY_Q4_K; }, "not whole Q4_K blocks of 256"},
    {"OffsetNotAligned", [](TestFile& f) { f.tensors[1].offset = 33; }, "not a multiple of the alignment 32"},
    {"OffsetBeyondTheEnd", [](TestFile& f) { f.tensors[1].offset = 1u << 20; }, "reach beyond the end"},
    {"OffsetNearOverflow", [](TestFile& f) { f.tensors[1].offset = ~uint64_t{0} - 31; }, "reach beyond the end"},
    {"DataBeyondTheEnd", [](TestFile& f) { f.tensors[1].dims = {300}; }, "tensor 'second'"},
    {"DataOverlaps", [](TestFile& f) { f.tensors[1].offset = 0; }, "overlaps that of tensor"},
};

void expect_refused(const BadFile& bad) {
  SCOPED_TRACE(bad.name);
  TestFile file = two_tensors();
  bad.spoil(file);
  const auto parsed = parse(file.bytes());
  ASSERT_FALSE(parsed.ok());
  const Status status = parsed.error();
  EXPECT_EQ(status.code(), bad.code);
  EXPECT_THAT(status.message(), HasSubstr(bad.text));
  EXPECT_THAT(status.message(), Not(HasSubstr("\n")));
  EXPECT_THAT(status.message(), HasSubstr("byte ")) << "the place";
  EXPECT_THAT(status.message(), AnyOf(HasSubstr("get it again"), HasSubstr("convert"), HasSubstr("give a model"),
                                      HasSubstr("use a model")))
      << "the remedy";
}

TEST(Gguf, BadHeadersAndKeys_AreRefusedWithPlaceAndRemedy) {
  for (const BadFile& bad : kBadHeaders) expect_refused(bad);
}

TEST(Gguf, BadTensors_AreRefusedWithPlaceAndRemedy) {
  for (const BadFile& bad : kBadTensors) expect_refused(bad);
}

TEST(Gguf, EveryPrefix_IsRefused) {
  TestFile file = two_tensors();
  file.set("texts", texts({"one", "two"}));
  const std::string whole = file.bytes();
  ASSERT_TRUE(parse(whole).ok());
  for (size_t length = 0; length < whole.size(); ++length) {
    const std::vector<char> prefix(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    const auto parsed = GgufFile::parse(std::as_bytes(std::span(prefix)));
    EXPECT_FALSE(parsed.ok()) << length;
  }
}

TEST(Dtype, TableAgreesWithItself) {
  for (int32_t id = -1; id < MOTLEY_DTYPE_COUNT; ++id) {
    const DtypeInfo* info = find_dtype(id);
    if (info == nullptr) continue;
    EXPECT_EQ(info->id, id);
    EXPECT_EQ(find_dtype(info->name), info);
    EXPECT_GT(info->block_bytes, 0u);
  }
  EXPECT_EQ(weight_dtype_names(),
            "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4");
  EXPECT_EQ(find_dtype("Q9_9"), nullptr);
}

}  // namespace
}  // namespace motley
