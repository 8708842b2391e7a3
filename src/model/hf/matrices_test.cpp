#include "model/hf/matrices.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/dtype.hpp"
#include "model/hf/directory_test_files.hpp"
#include "model/hf/numbers.hpp"
#include "model/hf/quantization.hpp"

namespace motley::hf {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::HasSubstr;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<float> floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

const nlohmann::json& golden() {
  static const nlohmann::json json =
      nlohmann::json::parse(std::ifstream(MOTLEY_SOURCE_DIR "/tests/golden/hf_weights.json"));
  return json;
}

int64_t row_bytes(int32_t dtype, int64_t cols) {
  const DtypeInfo& info = *find_dtype(dtype);
  return cols / info.block_elements * info.block_bytes;
}

// docs/formats/gguf.md, word for word.
float value_at(int32_t dtype, const std::byte* row, int64_t col) {
  const DtypeInfo& info = *find_dtype(dtype);
  const std::byte* block = row + col / info.block_elements * info.block_bytes;
  const auto e = static_cast<size_t>(col % info.block_elements);
  const auto half = [&](size_t at) { return f16_to_float(load_as<uint16_t>(block + at)); };
  const auto nibble = [&](size_t from) {
    const int byte = std::to_integer<int>(block[from + e % 16]);
    return e < 16 ? byte & 15 : byte >> 4;
  };
  constexpr std::array<float, 8> kE2M1 = {0, 1, 2, 3, 4, 6, 8, 12};
  switch (dtype) {
    case MOTLEY_F32: return load_as<float>(block);
    case MOTLEY_F16: return half(0);
    case MOTLEY_BF16: return bf16_to_float(load_as<uint16_t>(block));
    case MOTLEY_Q8_0: return half(0) * static_cast<float>(load_as<int8_t>(block + 2 + e));
    case MOTLEY_Q4_0: return half(0) * static_cast<float>(nibble(2) - 8);
    case MOTLEY_Q4_1: return half(0) * static_cast<float>(nibble(4)) + half(2);
    case MOTLEY_F8_E4M3_S64: return load_as<float>(block) * f8_e4m3_to_float(load_as<uint8_t>(block + 4 + e));
    case MOTLEY_MXFP4: {
      const int q = nibble(1);
      const float magnitude =
          kE2M1[static_cast<size_t>(q & 7)] * std::ldexp(1.0f, std::to_integer<int>(block[0]) - 128);
      return q < 8 ? magnitude : -magnitude;
    }
    default: ADD_FAILURE() << dtype; return 0;
  }
}

// A module whose tensors come from a safetensors file, as when a model is loaded.
struct LoadedModule {
  explicit LoadedModule(const std::vector<TestTensor>& tensors) : bytes(safetensors(tensors)) {
    auto parsed = SafetensorsFile::parse(std::as_bytes(std::span(bytes)));
    CHECK(parsed.ok(), "{}", parsed.error().to_string());
    file = *std::move(parsed);
    module.name = "m";
    for (const SafetensorsTensor& tensor : file.tensors()) module.tensors.emplace_back(tensor.name, &tensor);
  }
  LoadedModule(const LoadedModule&) = delete;
  LoadedModule& operator=(const LoadedModule&) = delete;

  std::string bytes;
  SafetensorsFile file;
  Module module;
};

std::vector<TestTensor> tensors_of(const nlohmann::json& entry) {
  std::vector<TestTensor> tensors;
  for (const auto& [part, tensor] : entry.at("tensors").items()) {
    tensors.push_back({part, tensor.at("dtype"), tensor.at("shape"), from_hex(tensor.at("hex"))});
  }
  return tensors;
}

Quantization quantization_of(const nlohmann::json& config) {
  const auto json = parse_json(nlohmann::json{{"quantization_config", config}}.dump());
  CHECK(json.ok());
  const auto quantization = read_quantization(*json);
  CHECK(quantization.ok(), "{}", quantization.error().to_string());
  return *quantization;
}

TEST(Matrices, QuantisedCheckpoints_HaveTheirPackersValues) {
  for (const nlohmann::json& entry : golden().at("cases")) {
    SCOPED_TRACE(entry.at("name").get<std::string>());
    const LoadedModule loaded(tensors_of(entry));
    const auto matrix = describe_matrix(loaded.module, quantization_of(entry.at("config")));
    ASSERT_TRUE(matrix.ok()) << matrix.error().to_string();
    EXPECT_EQ(find_dtype(matrix->dtype)->name, entry.at("dtype").get<std::string>());
    const int64_t rows = entry.at("rows"), cols = entry.at("cols");
    ASSERT_EQ(rows_of(matrix->source), rows);
    ASSERT_EQ(cols_of(matrix->source), cols);
    const int64_t stride = row_bytes(matrix->dtype, cols);
    std::vector<std::byte> made(static_cast<size_t>(rows * stride));
    make_rows(matrix->source, matrix->dtype, 0, rows, made.data());
    const std::vector<float> values = floats(from_hex(entry.at("values")));
    const double relative = entry.at("relative_error"), absolute = entry.at("absolute_error");
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const double wanted = values[static_cast<size_t>(row * cols + col)];
        const double error = std::fabs(value_at(matrix->dtype, made.data() + row * stride, col) - wanted);
        ASSERT_LE(error, relative * std::fabs(wanted) + absolute + 1e-7 * std::fabs(wanted)) << row << ", " << col;
      }
    }
  }
}

TEST(Matrices, RowRanges_AreThoseOfTheWhole) {
  for (const nlohmann::json& entry : golden().at("cases")) {
    SCOPED_TRACE(entry.at("name").get<std::string>());
    const LoadedModule loaded(tensors_of(entry));
    const auto matrix = describe_matrix(loaded.module, quantization_of(entry.at("config")));
    ASSERT_TRUE(matrix.ok());
    const int64_t rows = entry.at("rows"), stride = row_bytes(matrix->dtype, entry.at("cols"));
    std::vector<std::byte> whole(static_cast<size_t>(rows * stride)), parts(whole.size());
    make_rows(matrix->source, matrix->dtype, 0, rows, whole.data());
    for (int64_t begin = 0; begin < rows; begin += 3) {
      make_rows(matrix->source, matrix->dtype, begin, std::min(rows, begin + 3), parts.data() + begin * stride);
    }
    EXPECT_EQ(whole, parts);
  }
}

TEST(Matrices, Mxfp4_HasTheReferencesValuesInDeinterleavedRows) {
  const nlohmann::json& entry = golden().at("mxfp4");
  const std::string blocks = from_hex(entry.at("blocks")), scales = from_hex(entry.at("scales"));
  const std::vector<float> values = floats(from_hex(entry.at("values")));
  const int64_t rows = entry.at("rows"), cols = entry.at("cols");
  const size_t per_expert = scales.size() / 2;
  for (int64_t expert = 0; expert < 2; ++expert) {
    for (int64_t first = 0; first < 2; ++first) {
      const size_t at = static_cast<size_t>(expert) * per_expert;
      const Mxfp4Matrix matrix{.blocks = std::as_bytes(std::span(blocks)).subspan(at * 16, per_expert * 16),
                               .scales = std::as_bytes(std::span(scales)).subspan(at, per_expert),
                               .rows = rows / 2,
                               .cols = cols,
                               .first_row = first,
                               .row_step = 2};
      const int64_t stride = row_bytes(MOTLEY_MXFP4, cols);
      std::vector<std::byte> made(static_cast<size_t>(rows / 2 * stride));
      make_rows(matrix, MOTLEY_MXFP4, 0, rows / 2, made.data());
      for (int64_t row = 0; row < rows / 2; ++row) {
        for (int64_t col = 0; col < cols; ++col) {
          const auto index = static_cast<size_t>((expert * rows + 2 * row + first) * cols + col);
          EXPECT_EQ(value_at(MOTLEY_MXFP4, made.data() + row * stride, col), values[index]);
        }
      }
    }
  }
}

TEST(Matrices, PlainMatrices_AreCopiedTransposedAndRaised) {
  const std::vector<float> values = {0, 1, 2, 3, 4, 5};  // [3, 2]
  const std::span<const std::byte> bytes = std::as_bytes(std::span(values));
  const auto made = [](const PlainMatrix& matrix) {
    std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
    make_rows(matrix, MOTLEY_F32, 0, matrix.rows, reinterpret_cast<std::byte*>(out.data()));
    return out;
  };
  PlainMatrix matrix{.values = bytes, .rows = 3, .cols = 2, .row_step = 2};
  EXPECT_EQ(made(matrix), values);
  matrix.add = 1;
  EXPECT_EQ(made(matrix), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  const PlainMatrix transposed{.values = bytes, .rows = 2, .cols = 3, .row_step = 1, .col_step = 2};
  EXPECT_EQ(made(transposed), (std::vector<float>{0, 2, 4, 1, 3, 5}));
  const std::vector<uint16_t> halves = {0x3C00, 0xC000};
  const PlainMatrix raised{.values = std::as_bytes(std::span(halves)),
                           .element = Element::kF16,
                           .rows = 1,
                           .cols = 2,
                           .row_step = 2,
                           .add = 1};
  EXPECT_EQ(made(raised), (std::vector<float>{2, -1}));
}

TEST(Numbers, F16_RoundsToTheNearest) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(float_to_f16(value), bits);
    if (bits >= 0x7C00) continue;
    // Halfway to the next number: to the even one; a little more: to the next.
    const float next = bits == 0x7BFF ? 65536.0f : f16_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = value + (next - value) / 2;
    ASSERT_EQ(float_to_f16(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(float_to_f16(std::nextafter(middle, 1e6f)), bits + 1);
    ASSERT_EQ(float_to_f16(-std::nextafter(middle, 0.0f)), bits | 0x8000u);
  }
  EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(std::nanf("")))));
}

TEST(Numbers, Bf16_RoundsToTheNearest) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3F80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // halfway: even
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7F800001u)))));
}

// Each case: what is done to the tensors of a good module, and what the refusal says.
TEST(Quantization, ModulesThatContradictThemselves_AreRefused) {
  const nlohmann::json& gptq = golden().at("cases").at(0);
  const nlohmann::json& packed = *std::find_if(golden().at("cases").begin(), golden().at("cases").end(),
                                               [](const auto& c) { return c.at("name") == "compressed-tensors int4"; });
  using Change = void (*)(std::vector<TestTensor>&, nlohmann::json&);
  struct Case {
    const nlohmann::json& from;
    Change change;
    const char* refusal;
  };
  const Case cases[] = {
      {gptq, [](auto& t, auto&) { std::erase_if(t, [](const auto& x) { return x.name == "scales"; }); },
       "has no 'scales' beside it"},
      {gptq,
       [](auto& t, auto&) {
         find_tensor(t, "scales").shape = {72, 2};
       },
       "does not fit a matrix of 72 x 64"},
      {gptq, [](auto& t, auto&) { find_tensor(t, "qweight").dtype = "U32"; }, "is no matrix of I32"},
      {gptq, [](auto& t, auto&) { find_tensor(t, "g_idx").bytes[0] = 2; }, "names group 2 of 2"},
      {gptq,
       [](auto& t, auto&) {
         find_tensor(t, "g_idx").shape = {8, 8};
       },
       "is not I32 [64]"},
      {gptq, [](auto& t, auto&) { find_tensor(t, "qzeros").bytes[0] = 0; }, "says that it is symmetric"},
      {gptq,
       [](auto& t, auto&) {
         t.push_back({"lora_a", "F32", {1}, "1234"});
       },
       "is not part of a module"},
      {gptq,
       [](auto&, auto& c) {
         c = {{"quant_method", "fp8"}};
       },
       "is neither gptq nor awq"},
      {packed, [](auto& t, auto&) { find_tensor(t, "weight_shape").bytes[8] = 63; }, "does not fit"},
      {packed, [](auto& t, auto&) { find_tensor(t, "weight_scale").shape = {144}; }, "does not fit"},
  };
  for (const Case& entry : cases) {
    std::vector<TestTensor> tensors = tensors_of(entry.from);
    nlohmann::json config = entry.from.at("config");
    entry.change(tensors, config);
    const LoadedModule loaded(tensors);
    const auto matrix = describe_matrix(loaded.module, quantization_of(config));
    ASSERT_FALSE(matrix.ok()) << entry.refusal;
    EXPECT_THAT(matrix.error().message(), HasSubstr(entry.refusal));
  }
}

TEST(Quantization, TypesThatAreNotBuilt_AreRefusedByName) {
  const LoadedModule loaded({{"weight", "F64", {1, 1}, "12345678"}});
  EXPECT_THAT(describe_matrix(loaded.module, {}).error().message(),
              HasSubstr("tensor 'weight' (F64 [1, 1]): this type"));
  const LoadedModule empty({{"weight", "F32", {0, 1}, ""}});
  EXPECT_THAT(describe_matrix(empty.module, {}).error().message(), HasSubstr("is empty"));
}

TEST(Quantization, SettingsThatAreNotBuilt_AreRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"quant_method":"bitsandbytes"})", "quant_method 'bitsandbytes' is not built"},
      {R"({"quant_method":1})", "no 'quant_method'"},
      {R"({"bits":4})", "no 'quant_method'"},
      {R"({"quant_method":"gptq","bits":8})", "bits 8 is not built"},
      {R"({"quant_method":"gptq","bits":4,"group_size":7})", "'group_size' is 7"},
      {R"({"quant_method":"gptq","bits":4,"checkpoint_format":"marlin"})", "checkpoint_format 'marlin'"},
      {R"({"quant_method":"awq","bits":4,"version":"gemv"})", "version 'gemv'"},
      {R"({"quant_method":"awq","bits":4,"zero_point":false})", "zero_point false"},
      {R"({"quant_method":"fp8","fmt":"e5m2"})", "fmt 'e5m2'"},
      {R"({"quant_method":"fp8","weight_block_size":[0,128]})", "is not two sizes"},
      {R"({"quant_method":"fp8","weight_block_size":128})", "is not two sizes"},
      {R"({"quant_method":"compressed-tensors","format":"marlin-24"})", "format 'marlin-24'"},
      {R"({"quant_method":"compressed-tensors","format":"dense","config_groups":{"a":{},"b":{}}})", "several kinds"},
      {R"({"quant_method":"compressed-tensors","config_groups":{"a":{"weights":{"num_bits":2}}}})", "num_bits 2"},
      {R"({"quant_method":"compressed-tensors","sparsity_config":{"format":"sparse-24-bitmask"}})", "sparse-24"},
  };
  for (const auto& [settings, expected] : cases) {
    const auto json = parse_json(std::string(R"({"quantization_config":)") + settings + "}");
    ASSERT_TRUE(json.ok()) << settings;
    const auto quantization = read_quantization(*json);
    ASSERT_FALSE(quantization.ok()) << settings;
    EXPECT_THAT(quantization.error().message(), HasSubstr(expected));
  }
}

}  // namespace
}  // namespace motley::hf
