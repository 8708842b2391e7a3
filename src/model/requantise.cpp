#include "model/requantise.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "model/hf/numbers.hpp"
#include "motley/types.h"

namespace motley {
namespace {

constexpr size_t kBlock = 32;
constexpr size_t kBlocksOfPart = 1 << 13;  // of a thread at a time

using Elements = std::array<float, kBlock>;

struct Float {
  int32_t dtype;
  size_t bytes;
  void (*read)(const std::byte*, Elements*);
};
template <float (*kToFloat)(uint16_t)>
void read_halves(const std::byte* at, Elements* x) {
  std::array<uint16_t, kBlock> bits;
  std::memcpy(bits.data(), at, sizeof bits);
  for (size_t i = 0; i < kBlock; ++i) (*x)[i] = kToFloat(bits[i]);
}
constexpr Float kFloats[] = {
    {MOTLEY_F32, 4, [](const std::byte* at, Elements* x) { std::memcpy(x->data(), at, sizeof *x); }},
    {MOTLEY_F16, 2, read_halves<hf::f16_to_float>},
    {MOTLEY_BF16, 2, read_halves<hf::bf16_to_float>},
};

// To the nearest whole number, ties to even, of |x| < 2^22: a sum has no finer digits.
float rounded(float x) {
  constexpr float kWhole = 12582912;  // 1.5 * 2^23
  return (x + kWhole) - kWhole;
}

// Writes a block of the format, and what it makes of the elements over them.
void write_q8_0(Elements* x, std::byte* out) {
  float most = 0;
  for (const float each : *x) most = std::max(most, std::abs(each));
  const uint16_t bits = hf::float_to_f16(most / 127);
  const float scale = hf::f16_to_float(bits), inverse = scale > 0 ? 1 / scale : 0;
  std::memcpy(out, &bits, sizeof bits);
  for (size_t i = 0; i < kBlock; ++i) {
    const float q = rounded(std::clamp((*x)[i] * inverse, -127.0f, 127.0f));
    out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(q));
    (*x)[i] = q * scale;
  }
}

void write_q4_0(Elements* x, std::byte* out) {
  float most = 0;
  for (const float each : *x) most = std::abs(each) > std::abs(most) ? each : most;
  const uint16_t bits = hf::float_to_f16(most / -8);
  const float scale = hf::f16_to_float(bits), inverse = scale != 0 ? 1 / scale : 0;
  std::memcpy(out, &bits, sizeof bits);
  std::array<uint8_t, kBlock> quants;
  for (size_t i = 0; i < kBlock; ++i) {
    const float q = rounded(std::clamp((*x)[i] * inverse, -8.0f, 7.0f));
    quants[i] = static_cast<uint8_t>(static_cast<int>(q) + 8);
    (*x)[i] = q * scale;
  }
  for (size_t i = 0; i < kBlock / 2; ++i) out[2 + i] = static_cast<std::byte>(quants[i] | quants[i + kBlock / 2] << 4);
}

struct Packed {
  int32_t dtype;
  size_t block_bytes;
  void (*write)(Elements*, std::byte*);
};
constexpr Packed kPacked[] = {{MOTLEY_Q8_0, 34, write_q8_0}, {MOTLEY_Q4_0, 18, write_q4_0}};

FormatError write_block(const Float& from, const Packed& to, const std::byte* in, std::byte* out) {
  Elements before, after;
  from.read(in, &before);
  after = before;
  to.write(&after, out);
  FormatError error;
  for (size_t i = 0; i < kBlock; ++i) {
    const double x = before[i], off = x - after[i];
    error.squares += x * x, error.error_squares += off * off;
  }
  return error;
}

template <typename Row, size_t kRows>
const Row* find(const Row (&rows)[kRows], int32_t dtype) {
  const auto at = std::find_if(std::begin(rows), std::end(rows), [&](const Row& row) { return row.dtype == dtype; });
  return at == std::end(rows) ? nullptr : at;
}

}  // namespace

double FormatError::relative() const { return squares > 0 ? std::sqrt(error_squares / squares) : 0; }

FormatError& FormatError::operator+=(const FormatError& other) {
  squares += other.squares, error_squares += other.error_squares;
  return *this;
}

bool can_requantise(int32_t from, int32_t to, int64_t cols) {
  return find(kFloats, from) != nullptr && find(kPacked, to) != nullptr && cols > 0 &&
         cols % static_cast<int64_t>(kBlock) == 0;
}

Result<Requantised> requantise(std::span<const std::byte> data, int32_t from, int32_t to, int64_t cols) {
  const Float* source = find(kFloats, from);
  const Packed* packed = find(kPacked, to);
  if (!can_requantise(from, to, cols) || data.size() % (static_cast<size_t>(cols) * source->bytes) != 0)
    return invalid_argument("{} bytes in rows of {} elements of format {} cannot be made format {}", data.size(), cols,
                            from, to);
  const size_t blocks = data.size() / source->bytes / kBlock;
  Requantised made;
  made.bytes.resize(blocks * packed->block_bytes);
  // The parts are of one size, and their errors are summed in their order: the same whatever cores there are.
  std::vector<FormatError> errors((blocks + kBlocksOfPart - 1) / kBlocksOfPart);
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t part = next++; part < errors.size(); part = next++) {
      const size_t end = std::min(blocks, (part + 1) * kBlocksOfPart);
      for (size_t b = part * kBlocksOfPart; b < end; ++b)
        errors[part] += write_block(*source, *packed, data.data() + b * kBlock * source->bytes,
                                    made.bytes.data() + b * packed->block_bytes);
    }
  };
  {
    std::vector<std::jthread> others;
    const size_t cores = std::max(1u, std::thread::hardware_concurrency());
    for (size_t i = 1; i < std::min(cores, errors.size()); ++i) others.emplace_back(work);
    work();
  }
  for (const FormatError& error : errors) made.error += error;
  if (!std::isfinite(made.error.squares) || !std::isfinite(made.error.error_squares))
    return invalid_argument("a weight has elements that are not finite, or beyond what format {} holds", to);
  return made;
}

}  // namespace motley
