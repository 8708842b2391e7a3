// Checking, cutting and the reference packing of weights.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "kit/internal.hpp"
#include "kit/kit.hpp"

namespace motley::kit {

void fail(motley_code code, const char* format, ...) {
  char text[MOTLEY_ERROR_TEXT_MAX];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Error(code, text);
}

namespace {

// Checks ranges against [0, count) and borders. None given = all.
Kept take_ranges(const char* name, const char* axis, const motley_range* ranges, uint32_t range_count, int64_t count,
                 int64_t border) {
  if (range_count == 0) return Kept({{0, count}}, count);
  std::vector<motley_range> joined;
  if (ranges == nullptr) fail(MOTLEY_INVALID_ARGUMENT, "weight %s: %s ranges are null", name, axis);
  int64_t total = 0;
  for (uint32_t i = 0; i < range_count; ++i) {
    const motley_range r = ranges[i];
    if (r.begin < 0 || r.end <= r.begin || r.end > count)
      fail(MOTLEY_OUT_OF_RANGE, "weight %s: %s range %u is [%lld, %lld) of %lld", name, axis, i,
           static_cast<long long>(r.begin), static_cast<long long>(r.end), static_cast<long long>(count));
    if (r.begin % border || r.end % border)
      fail(MOTLEY_INVALID_ARGUMENT, "weight %s: %s range %u does not end on multiples of %lld elements", name, axis, i,
           static_cast<long long>(border));
    if (!joined.empty() && joined.back().end == r.begin)
      joined.back().end = r.end;
    else
      joined.push_back(r);
    total += r.end - r.begin;
    if (total > kExtentMax) fail(MOTLEY_OUT_OF_RANGE, "weight %s: its %s ranges are too long", name, axis);
  }
  return Kept(std::move(joined), count);
}

// Experts and rows that are read by id: each once, so that an id stands for one.
void check_ids(const char* name, const char* axis, const Kept& kept) {
  std::vector<motley_range> sorted(kept.ranges().begin(), kept.ranges().end());
  std::sort(sorted.begin(), sorted.end(), [](motley_range a, motley_range b) { return a.begin < b.begin; });
  for (size_t i = 1; i < sorted.size(); ++i)
    if (sorted[i].begin < sorted[i - 1].end)
      fail(MOTLEY_INVALID_ARGUMENT, "weight %s: %s %lld is kept twice", name, axis,
           static_cast<long long>(sorted[i].begin));
}

// Rows in their file format. Reads whole rows (in blocks) and keeps the wanted columns.
class FileWeight : public Weight {
 public:
  explicit FileWeight(const WeightSource& source)
      : Weight(source), format_(source.format()), ranges_(source.col_ranges().begin(), source.col_ranges().end()) {
    format = format_.dtype;
    source_cols_ = source.source_cols();
    row_bytes_ = format_.row_bytes(source_cols_);
    if (source.whole()) {
      data_ = source.row_data(0, 0);
      aliases_source = true;
      bytes = static_cast<uint64_t>(experts * rows * row_bytes_);
      return;
    }
    copy_.resize(static_cast<size_t>(experts * rows * row_bytes_));
    for (int64_t e = 0; e < experts; ++e)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(copy_.data() + (e * rows + r) * row_bytes_, source.row_data(e, r), static_cast<size_t>(row_bytes_));
    data_ = copy_.data();
    bytes = copy_.size();
  }

  void read_row(int64_t expert, int64_t row, float* out) const override {
    read_columns(format_, data_ + (expert * rows + row) * row_bytes_, ranges_, out);
  }

 private:
  const Format& format_;
  std::vector<motley_range> ranges_;
  std::vector<std::byte> copy_;
  const std::byte* data_ = nullptr;
  int64_t row_bytes_ = 0, source_cols_ = 0;
};

class VectorWeight : public Weight {
 public:
  explicit VectorWeight(const WeightSource& source)
      : Weight(source), values_(static_cast<size_t>(source.rows() * source.cols())) {
    format = MOTLEY_F32;
    bytes = values_.size() * sizeof(float);
    for (int64_t r = 0; r < rows; ++r) source.read_row(0, r, values_.data() + r * cols);
  }
  void read_row(int64_t, int64_t row, float* out) const override {
    std::memcpy(out, values_.data() + row * cols, static_cast<size_t>(cols) * sizeof(float));
  }
  const float* vector() const override { return values_.data(); }

 private:
  std::vector<float> values_;
};

}  // namespace

Kept::Kept(std::vector<motley_range> ranges, int64_t source_count)
    : ranges_(std::move(ranges)), source_count_(source_count) {
  for (const motley_range& range : ranges_) {
    starts_.push_back(count_);
    count_ += range.end - range.begin;
  }
}

int64_t Kept::source_of(int64_t kept) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), kept);
  const size_t i = static_cast<size_t>(after - starts_.begin()) - 1;
  return ranges_[i].begin + (kept - starts_[i]);
}

int64_t Kept::kept_of(int64_t source) const {
  for (size_t i = 0; i < ranges_.size(); ++i)
    if (source >= ranges_[i].begin && source < ranges_[i].end) return starts_[i] + (source - ranges_[i].begin);
  return -1;
}

bool Kept::operator==(const Kept& other) const {
  const auto same = [](motley_range a, motley_range b) { return a.begin == b.begin && a.end == b.end; };
  return source_count_ == other.source_count_ &&
         std::equal(ranges_.begin(), ranges_.end(), other.ranges_.begin(), other.ranges_.end(), same);
}

void read_columns(const Format& format, const std::byte* row, std::span<const motley_range> ranges, float* out) {
  std::array<float, kBlockElementsMax> block;
  for (const motley_range& range : ranges) {
    for (int64_t at = range.begin; at < range.end;) {
      const int64_t first = at / format.block, skip = at - first * format.block;
      if (skip == 0 && range.end - at >= format.block) {  // whole blocks straight to the output
        const int64_t count = (range.end - at) / format.block * format.block;
        format.dequantise(row + format.row_bytes(at), count, out);
        at += count, out += count;
        continue;
      }
      format.dequantise(row + first * format.bytes, format.block, block.data());
      const int64_t count = std::min<int64_t>(format.block - skip, range.end - at);
      std::memcpy(out, block.data() + skip, static_cast<size_t>(count) * sizeof(float));
      at += count, out += count;
    }
  }
}

WeightSource::WeightSource(const motley_weight_desc& desc)
    : name_(desc.name ? desc.name : "?"),
      format_(find_format(desc.dtype)),
      wanted_(desc.format),
      uses_(desc.uses),
      data_(static_cast<const std::byte*>(desc.data)) {
  const char* n = name_.c_str();
  if (!format_) fail(MOTLEY_UNIMPLEMENTED, "weight %s: format %d is not supported", n, desc.dtype);
  if (desc.experts < 1 || desc.rows < 1 || desc.cols < 1 || desc.experts > kExtentMax || desc.rows > kExtentMax ||
      desc.cols > kExtentMax || desc.cols % format_->block)
    fail(MOTLEY_INVALID_ARGUMENT, "weight %s: shape %lld x %lld x %lld does not fit %s", n,
         static_cast<long long>(desc.experts), static_cast<long long>(desc.rows), static_cast<long long>(desc.cols),
         format_->name);
  uint64_t bytes = static_cast<uint64_t>(format_->row_bytes(desc.cols));
  if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(desc.rows), &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<uint64_t>(desc.experts), &bytes) || bytes != desc.bytes)
    fail(MOTLEY_INVALID_ARGUMENT, "weight %s: %llu bytes do not hold its shape in %s", n,
         static_cast<unsigned long long>(desc.bytes), format_->name);
  if (!data_) fail(MOTLEY_INVALID_ARGUMENT, "weight %s: data is null", n);
  constexpr uint32_t kUses = MOTLEY_WEIGHT_MATMUL | MOTLEY_WEIGHT_GATHER | MOTLEY_WEIGHT_VECTOR;
  if (desc.uses == 0 || (desc.uses & ~kUses)) fail(MOTLEY_INVALID_ARGUMENT, "weight %s: uses %u", n, desc.uses);
  if ((uses_ & MOTLEY_WEIGHT_VECTOR) && (uses_ != MOTLEY_WEIGHT_VECTOR || desc.experts != 1 || desc.rows != 1))
    fail(MOTLEY_INVALID_ARGUMENT, "weight %s: a vector has one row and one use", n);
  experts_ = take_ranges(n, "expert", desc.expert_ranges, desc.expert_range_count, desc.experts, 1);
  rows_ = take_ranges(n, "row", desc.row_ranges, desc.row_range_count, desc.rows, 1);
  cols_ = take_ranges(n, "column", desc.col_ranges, desc.col_range_count, desc.cols, format_->sub_block);
  check_ids(n, "expert", experts_);
  if (uses_ & MOTLEY_WEIGHT_GATHER) check_ids(n, "row", rows_);
}

const std::byte* WeightSource::row_data(int64_t expert, int64_t row) const {
  return data_ + (experts_.source_of(expert) * rows_.source_count() + rows_.source_of(row)) *
                     format_->row_bytes(cols_.source_count());
}

void WeightSource::read_row(int64_t expert, int64_t row, float* out) const {
  read_columns(*format_, row_data(expert, row), cols_.ranges(), out);
}

void Weight::read_row(int64_t, int64_t, float*) const {
  fail(MOTLEY_INTERNAL, "this weight does not lie in the host's memory");
}

std::unique_ptr<Weight> pack_reference(const WeightSource& source) {
  if (source.uses() == MOTLEY_WEIGHT_VECTOR) return std::make_unique<VectorWeight>(source);
  if (source.wanted_format() != source.format().dtype)
    fail(MOTLEY_UNIMPLEMENTED, "weight %s: the reference does not re-quantise", source.name());
  return std::make_unique<FileWeight>(source);
}

}  // namespace motley::kit
