#include "model/requantise.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <system_error>
#include <thread>

#include "model/hf/numbers.hpp"
#include "motley/blocks.hpp"
#include "motley/types.h"

namespace motley {
namespace {

constexpr size_t kBlock = 32;
constexpr size_t kBlocksOfPart = 1 << 13;  // of a thread at a time

using Elements = std::array<float, kBlock>;

struct Source {
  size_t block, bytes;  // elements of a block, and its bytes
  // `count` elements from the given one.
  void (*read)(const std::byte* data, size_t element, size_t count, Elements*);
};
template <float (*kToFloat)(uint16_t)>
void read_halves(const std::byte* data, size_t element, size_t count, Elements* x) {
  std::array<uint16_t, kBlock> bits;
  std::memcpy(bits.data(), data + element * 2, count * 2);
  for (size_t i = 0; i < count; ++i) (*x)[i] = kToFloat(bits[i]);
}
template <typename Block>
void read_blocks(const std::byte* data, size_t element, size_t count, Elements* x) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(data);
  for (size_t i = 0; i < count; ++i) {
    const size_t at = element + i;
    (*x)[i] = Block::at(bytes + at / Block::kBlock * Block::kBytes, static_cast<int>(at % Block::kBlock));
  }
}

bool find_source(int32_t dtype, Source* source) {
  const bool known = blocks::visit(dtype, [&]<typename Block>(Block) {
    *source = {Block::kBlock, Block::kBytes, read_blocks<Block>};
  });
  if (dtype == MOTLEY_F16) source->read = read_halves<hf::f16_to_float>;
  if (dtype == MOTLEY_BF16) source->read = read_halves<hf::bf16_to_float>;
  return known;
}

// To the nearest whole number, ties to even, of |x| < 2^22: a sum has no finer digits.
float rounded(float x) {
  constexpr float kWhole = 12582912;  // 1.5 * 2^23
  return (x + kWhole) - kWhole;
}

// They write `count` elements (a block; of halves any number) of the format, and what it makes of them over them.
void write_q8_0(Elements* x, size_t, std::byte* out) {
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

void write_q4_0(Elements* x, size_t, std::byte* out) {
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

template <uint16_t (*kFromFloat)(float), float (*kToFloat)(uint16_t)>
void write_halves(Elements* x, size_t count, std::byte* out) {
  std::array<uint16_t, kBlock> bits;
  for (size_t i = 0; i < count; ++i) {
    bits[i] = kFromFloat((*x)[i]);
    (*x)[i] = kToFloat(bits[i]);
  }
  std::memcpy(out, bits.data(), count * sizeof bits[0]);
}

struct Packed {
  int32_t dtype;
  size_t block, bytes;  // elements that are written together at least, and their bytes
  void (*write)(Elements*, size_t, std::byte*);
};
constexpr Packed kPacked[] = {{MOTLEY_F16, 1, 2, write_halves<hf::float_to_f16, hf::f16_to_float>},
                              {MOTLEY_BF16, 1, 2, write_halves<hf::float_to_bf16, hf::bf16_to_float>},
                              {MOTLEY_Q8_0, kBlock, 34, write_q8_0},
                              {MOTLEY_Q4_0, kBlock, 18, write_q4_0}};

const Packed* find_packed(int32_t dtype) {
  const auto at =
      std::find_if(std::begin(kPacked), std::end(kPacked), [&](const Packed& packed) { return packed.dtype == dtype; });
  return at == std::end(kPacked) ? nullptr : at;
}

FormatError write_some(const Source& from, const Packed& to, std::span<const std::byte> in, size_t element,
                       size_t count, std::byte* out) {
  Elements before, after;
  from.read(in.data(), element, count, &before);
  FormatError error;
  for (size_t i = 0; i < count; ++i) error.squares += double{before[i]} * before[i];
  if (!std::isfinite(error.squares)) return error;  // and is refused
  error.squares = 0;
  after = before;
  to.write(&after, count, out);
  for (size_t i = 0; i < count; ++i) {
    const double x = before[i], off = x - after[i];
    error.squares += x * x, error.error_squares += off * off;
  }
  return error;
}

}  // namespace

double FormatError::relative() const { return squares > 0 ? std::sqrt(error_squares / squares) : 0; }

FormatError& FormatError::operator+=(const FormatError& other) {
  squares += other.squares, error_squares += other.error_squares;
  return *this;
}

bool can_requantise(int32_t from, int32_t to, int64_t cols) {
  Source source{};
  const Packed* packed = find_packed(to);
  return from != to && packed != nullptr && find_source(from, &source) && cols > 0 &&
         static_cast<size_t>(cols) % source.block == 0 && static_cast<size_t>(cols) % packed->block == 0;
}

Result<Requantised> requantise(std::span<const std::byte> data, int32_t from, int32_t to, int64_t cols) {
  Source source{};
  find_source(from, &source);
  const Packed* packed = find_packed(to);
  if (!can_requantise(from, to, cols) || data.size() % (static_cast<size_t>(cols) / source.block * source.bytes) != 0)
    return invalid_argument("{} bytes in rows of {} elements of format {} cannot be made format {}", data.size(), cols,
                            from, to);
  const size_t elements = data.size() / source.bytes * source.block;
  const size_t blocks = (elements + kBlock - 1) / kBlock;
  Requantised made;
  made.bytes.resize(elements / packed->block * packed->bytes);
  // The parts are of one size, and their errors are summed in their order: the same whatever cores there are.
  std::vector<FormatError> errors((blocks + kBlocksOfPart - 1) / kBlocksOfPart);
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t part = next++; part < errors.size(); part = next++) {
      const size_t end = std::min(blocks, (part + 1) * kBlocksOfPart);
      for (size_t b = part * kBlocksOfPart; b < end; ++b) {
        const size_t element = b * kBlock, count = std::min(kBlock, elements - element);
        errors[part] += write_some(source, *packed, data, element, count,
                                   made.bytes.data() + element / packed->block * packed->bytes);
      }
    }
  };
  {
    std::vector<std::jthread> others;
    const size_t cores = std::max(1u, std::thread::hardware_concurrency());
    try {
      for (size_t i = 1; i < std::min(cores, errors.size()); ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
      // as many as there are do it
    }
    work();
  }
  for (const FormatError& error : errors) made.error += error;
  if (!std::isfinite(made.error.squares) || !std::isfinite(made.error.error_squares))
    return invalid_argument("a weight has elements that are not finite, or beyond what format {} holds", to);
  return made;
}

}  // namespace motley
