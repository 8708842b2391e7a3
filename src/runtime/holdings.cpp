#include "runtime/holdings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "model/dtype.hpp"
#include "model/requantise.hpp"
#include "runtime/kv_request.hpp"

namespace motley {
namespace {

// Ranges that follow one another are one.
template <typename Range>
std::string ranges_text(const std::vector<Range>& ranges) {
  std::string text;
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (i == 0 || ranges[i].begin != ranges[i - 1].end) text += fmt::format("{}-", ranges[i].begin);
    if (i + 1 == ranges.size() || ranges[i + 1].begin != ranges[i].end) text += fmt::format("{},", ranges[i].end);
  }
  return text;
}

bool cuts_blocks(const ShardWeight& weight) {
  constexpr int64_t kBlock = 32;
  return std::any_of(weight.cols.begin(), weight.cols.end(),
                     [](const motley_range& range) { return range.begin % kBlock != 0 || range.end % kBlock != 0; });
}

// Whether in blocks of fewer bits. Experts are chosen by small differences; blocks must not be cut.
bool may_quantise(const GraphWeight& graph_weight, const ShardWeight& weight) {
  return (graph_weight.uses & MOTLEY_WEIGHT_MATMUL) != 0 &&
         graph_weight.name.find("ffn_gate_inp") == std::string::npos && !cuts_blocks(weight);
}

// What the device is to hold it in. A vector, and what it may not make blocks of, as the model has it if it can.
int32_t format_for(const Device& device, const GraphWeight& graph_weight, const ShardWeight& weight,
                   const WeightSource& source) {
  if ((graph_weight.uses & MOTLEY_WEIGHT_VECTOR) != 0) return source.dtype;
  if (source.dtype == MOTLEY_F8_E4M3_S64 && cuts_blocks(weight)) return device.format_of(MOTLEY_BF16, Quality::kExact);
  const int32_t format = device.format_of(source.dtype, device.quality());
  const bool blocks = format == MOTLEY_Q8_0 || format == MOTLEY_Q4_0;
  const bool may = may_quantise(graph_weight, weight) && can_requantise(source.dtype, format, source.cols);
  return format == source.dtype || !blocks || may ? format : device.format_of(source.dtype, Quality::kExact);
}

// No ranges are all of the axis, as one that has it all is.
std::string kept_text(const std::vector<motley_range>& ranges, int64_t all) {
  std::string text = ranges_text(ranges);
  return text == fmt::format("0-{},", all) ? "" : text;
}

std::string key_of(const Model& model, const Device& device, const ShardWeight& weight) {
  const WeightSource& source = model.weight(weight.source);
  return fmt::format("{} {} rows {} cols {} experts {}", fmt::ptr(device.raw()), weight.source,
                     kept_text(weight.rows, source.rows), kept_text(weight.cols, source.cols),
                     kept_text(weight.experts, source.experts));
}

Result<PackedWeight> pack(const Model& model, const ShardWeight& weight, const Device& device) {
  const GraphWeight& graph_weight = model.graph().weights[weight.source];
  const WeightSource& source = model.weight(weight.source);
  ASSIGN_OR_RETURN(WeightBytes bytes, model.read(weight.source));
  int32_t dtype = source.dtype;
  FormatError error;
  const int32_t format = format_for(device, graph_weight, weight, source);
  if (format != dtype && !device.holds(format)) {
    const DtypeInfo* info = find_dtype(dtype);
    return motley::error(MOTLEY_UNIMPLEMENTED,
                         "{}: the device holds neither {} nor any format of floats; leave it out, or see whether "
                         "--quality balanced or fast has a format that it holds",
                         graph_weight.name, info == nullptr ? "its format" : info->name);
  }
  if (can_requantise(dtype, format, source.cols)) {
    auto made = requantise(bytes.data, dtype, format, source.cols);
    if (!made.ok()) return made.error().annotate(graph_weight.name);
    bytes = WeightBytes(std::move(made->bytes));
    dtype = format, error = made->error;
    model.release(weight.source);
  }
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = graph_weight.name.c_str();
  desc.dtype = dtype;
  desc.format = format;
  desc.uses = graph_weight.uses;
  desc.experts = source.experts;
  desc.rows = source.rows;
  desc.cols = source.cols;
  desc.data = bytes.data.data();
  desc.bytes = bytes.data.size();
  desc.row_ranges = weight.rows.data();
  desc.row_range_count = static_cast<uint32_t>(weight.rows.size());
  desc.col_ranges = weight.cols.data();
  desc.col_range_count = static_cast<uint32_t>(weight.cols.size());
  desc.expert_ranges = weight.experts.data();
  desc.expert_range_count = static_cast<uint32_t>(weight.experts.size());
  ASSIGN_OR_RETURN(PackedWeight packed, device.pack(desc));
  packed.source_dtype = source.dtype;
  packed.squares = error.squares, packed.error_squares = error.error_squares;
  if (packed.info.aliases_source == 0) {
    model.release(weight.source);
  } else {
    packed.source = std::move(bytes.made);
  }
  return packed;
}

}  // namespace

// What is there under the key, or what `make` gives, which is then there.
template <typename T, typename Make>
Result<std::shared_ptr<const T>> Holdings::find_or_make(Things<T>* things, const std::string& key, const Make& make) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (const auto known = things->find(key); known != things->end()) {
      if (auto there = known->second.lock()) return there;
    }
    if (making_.insert(key).second) break;
    made_.wait(lock);
  }
  lock.unlock();
  struct Making {  // ended however making it ends
    ~Making() {
      std::lock_guard again(all.mutex_);
      all.making_.erase(key);
      all.made_.notify_all();
    }
    Holdings& all;
    const std::string& key;
  } const making{*this, key};
  ASSIGN_OR_RETURN(T made, make());
  auto shared = std::make_shared<const T>(std::move(made));
  std::lock_guard again(mutex_);
  std::erase_if(*things, [](const auto& each) { return each.second.expired(); });
  (*things)[key] = shared;
  return shared;
}

Result<std::shared_ptr<const PackedWeight>> Holdings::weight(const Device& device, const ShardWeight& weight) {
  return find_or_make(&weights_, key_of(model_, device, weight), [&]() -> Result<PackedWeight> {
    ASSIGN_OR_RETURN(PackedWeight packed, pack(model_, weight, device));
    packed_bytes_ += packed.info.bytes;
    return packed;
  });
}

std::shared_ptr<const PackedWeight> Holdings::find_weight(const Device& device, const ShardWeight& weight) {
  std::lock_guard lock(mutex_);
  const auto known = weights_.find(key_of(model_, device, weight));
  return known == weights_.end() ? nullptr : known->second.lock();
}

Result<std::shared_ptr<const ProgramsHandle>> Holdings::programs(const Device& device, const std::string& of,
                                                                 const std::function<Result<ProgramsHandle>()>& make) {
  return find_or_make(&programs_, fmt::format("{} programs {}", fmt::ptr(device.raw()), of), make);
}

Result<std::shared_ptr<const HeldKv>> Holdings::kv(const Device& device, uint32_t pool, int32_t layer_begin,
                                                   std::span<const UnitRange> heads, std::span<const KvLayer> layers,
                                                   const KvShape& shape) {
  const std::string key = fmt::format(
      "{} pool {} layers {}+{} heads {} blocks {}x{} of {}", fmt::ptr(device.raw()), pool, layer_begin, layers.size(),
      ranges_text(std::vector<UnitRange>(heads.begin(), heads.end())), shape.blocks, shape.block_size, shape.dtype);
  return find_or_make(&pools_, key, [&]() -> Result<HeldKv> {
    static std::atomic<uint64_t> made = 0;
    const KvRequest request(layers, shape.dtype, shape.block_size, shape.blocks);
    ASSIGN_OR_RETURN(KvHandle handle, device.create_kv(request.desc));
    return HeldKv{std::move(handle), ++made};
  });
}

}  // namespace motley
