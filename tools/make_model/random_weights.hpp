// Random tensor data in any weight type: reproducible from (seed, name) alone, on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace motley::make_model {

// Fills `data` with blocks of `dtype` (a weight type of model/dtype.hpp) whose values have mean near 0 and standard
// deviation near `deviation`. data.size() is a whole number of blocks.
void fill_matrix(int32_t dtype, uint64_t seed, std::string_view name, float deviation, std::span<std::byte> data);

// F32 values with the given mean and deviation.
void fill_vector(uint64_t seed, std::string_view name, float mean, float deviation, std::span<std::byte> data);

// Round to nearest, ties to even.
uint16_t to_f16(float value);
uint16_t to_bf16(float value);

}  // namespace motley::make_model
