#include "sim/sums.hpp"

#include <algorithm>
#include <span>

namespace motley::sim {

std::vector<std::vector<motley_range>> column_parts(const motley_weight_desc& desc) {
  std::vector<motley_range> kept(desc.col_ranges, desc.col_ranges + desc.col_range_count);
  if (kept.empty()) kept.push_back({0, desc.cols});
  std::vector<std::vector<motley_range>> parts;
  int64_t room = 0;  // in the last part
  for (motley_range range : kept) {
    while (range.begin < range.end) {
      if (room == 0) parts.emplace_back(), room = kSummedColumns;
      const int64_t end = std::min(range.end, range.begin + room);
      parts.back().push_back({range.begin, end});
      room -= end - range.begin;
      range.begin = end;
    }
  }
  return parts;
}

SummedSegment::SummedSegment(const motley_segment& from)
    : values_(from.values, from.values + from.value_count), view_(from) {
  for (const motley_op& op : std::span(from.ops, from.op_count)) {
    if (op.kind == MOTLEY_OP_MATMUL) {
      sum(op);
    } else {
      ops_.push_back(op);
    }
  }
  view_.values = values_.data(), view_.value_count = static_cast<uint32_t>(values_.size());
  view_.ops = ops_.data(), view_.op_count = static_cast<uint32_t>(ops_.size());
  view_.weight_count += static_cast<uint32_t>(pieces_.size());
}

int32_t SummedSegment::like(int32_t value, int64_t width, int32_t dtype) {
  motley_value made = values_[static_cast<size_t>(value)];
  made.dtype = dtype;
  if (made.rank > 0) made.dims[made.rank - 1] = width;
  values_.push_back(made);
  return static_cast<int32_t>(values_.size()) - 1;
}

motley_op& SummedSegment::add(int32_t kind) {
  motley_op op{};
  op.kind = kind;
  std::fill(std::begin(op.in), std::end(op.in), MOTLEY_NONE);
  std::fill(std::begin(op.out), std::end(op.out), MOTLEY_NONE);
  std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
  ops_.push_back(op);
  return ops_.back();
}

// `product` is of a checked segment: its values and weight are there.
void SummedSegment::sum(const motley_op& product) {
  const auto width_of = [&](int32_t id) {
    const motley_value& value = values_[static_cast<size_t>(id)];
    return value.dims[value.rank - 1];
  };
  const int32_t out = product.out[0];
  const int64_t columns = width_of(product.in[0]), rows = width_of(out);
  int32_t rest = product.in[0], so_far = MOTLEY_NONE;
  for (int64_t begin = 0; begin < columns; begin += kSummedColumns) {
    int32_t read = rest;
    if (columns - begin > kSummedColumns) {
      const int32_t whole = rest;
      read = like(whole, kSummedColumns, MOTLEY_F32), rest = like(whole, columns - begin - kSummedColumns, MOTLEY_F32);
      motley_op& split = add(MOTLEY_OP_SPLIT);
      split.in[0] = whole, split.out[0] = read, split.out[1] = rest;
    }
    int32_t made = like(out, rows, MOTLEY_F32);
    motley_op& part = add(MOTLEY_OP_MATMUL);
    part.in[0] = read, part.out[0] = made;
    part.weight[0] = static_cast<int32_t>(view_.weight_count + pieces_.size());
    if (begin == 0) part.weight[1] = product.weight[1];
    pieces_.push_back({product.weight[0], static_cast<size_t>(begin / kSummedColumns)});
    if (so_far != MOTLEY_NONE) {
      const int32_t sum = like(out, rows, MOTLEY_F32);
      motley_op& adding = add(MOTLEY_OP_ADD);
      adding.in[0] = so_far, adding.in[1] = made, adding.out[0] = sum;
      made = sum;
    }
    const int32_t half = like(out, rows, MOTLEY_F16);
    so_far = begin + kSummedColumns < columns ? like(out, rows, MOTLEY_F32) : out;
    for (const auto& [from, to] : {std::pair{made, half}, {half, so_far}}) {
      motley_op& cast = add(MOTLEY_OP_CAST);
      cast.in[0] = from, cast.out[0] = to;
    }
  }
}

}  // namespace motley::sim
