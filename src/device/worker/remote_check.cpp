#include <algorithm>

#include "device/worker/remote_device.hpp"

namespace motley::worker {
namespace {

uint64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case MOTLEY_F32:
    case MOTLEY_I32: return 4;
    case MOTLEY_F16:
    case MOTLEY_BF16: return 2;
    default: return 1;
  }
}

uint64_t rows_of(const motley_value& value, const motley_batch& batch) {
  switch (value.dims[0]) {
    case MOTLEY_DIM_ROWS: return batch.rows;
    case MOTLEY_DIM_HEAD_ROWS: return batch.head_row_count;
    case MOTLEY_DIM_SLOTS: return batch.slot_count;
    default: return static_cast<uint64_t>(std::max<int64_t>(value.dims[0], 0));
  }
}

// Of a compiled segment's value, so its dimensions are sound.
uint64_t bytes_of(const motley_value& value, const motley_batch& batch) {
  uint64_t bytes = rows_of(value, batch) * element_bytes(value.dtype);
  for (int32_t i = 1; i < value.rank && i < MOTLEY_RANK_MAX; ++i) bytes *= static_cast<uint64_t>(value.dims[i]);
  return bytes;
}

Status check_binding(const RemotePrograms& programs, const motley_binding& binding, const motley_batch& batch) {
  const bool known = std::find(programs.bound.begin(), programs.bound.end(), binding.value) != programs.bound.end();
  if (!known || binding.buffer == nullptr) {
    return invalid_argument("value {} is bound without a buffer, or is no input or output", binding.value);
  }
  const auto* buffer = reinterpret_cast<const RemoteBuffer*>(binding.buffer);
  if (buffer->device != programs.device) {
    return invalid_argument("value {} is bound to a buffer of another device", binding.value);
  }
  const motley_value& value = programs.values[static_cast<size_t>(binding.value)];
  if (binding.offset % element_bytes(value.dtype) != 0) {
    return invalid_argument("value {}: offset {} is not a multiple of the element", binding.value, binding.offset);
  }
  return check_inside(*buffer, binding.offset, bytes_of(value, batch), "binding");
}

// Two bindings of one buffer may share bytes only if neither is written.
Status check_overlaps(const RemotePrograms& programs, std::span<const motley_binding> bindings,
                      const motley_batch& batch) {
  const auto written = [&](const motley_binding& binding) {
    return std::find(programs.written.begin(), programs.written.end(), binding.value) != programs.written.end();
  };
  const auto end = [&](const motley_binding& binding) {
    return binding.offset + bytes_of(programs.values[static_cast<size_t>(binding.value)], batch);
  };
  for (size_t i = 0; i < bindings.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const motley_binding &a = bindings[i], &b = bindings[j];
      if (a.value == b.value) return invalid_argument("value {} is bound twice", a.value);
      if (a.buffer == b.buffer && (written(a) || written(b)) && a.offset < end(b) && b.offset < end(a)) {
        return invalid_argument("value {} overlaps value {}, and one of them is written", a.value, b.value);
      }
    }
  }
  return ok_status();
}

}  // namespace

Status check_inside(const RemoteBuffer& buffer, uint64_t offset, uint64_t bytes, const char* what) {
  if (offset <= buffer.bytes && bytes <= buffer.bytes - offset) return ok_status();
  return error(MOTLEY_OUT_OF_RANGE, "{}: [{}, +{}) of a buffer of {} bytes", what, offset, bytes, buffer.bytes);
}

Status check_enqueue(const RemotePrograms& programs, const motley_enqueue_args& args, bool dynamic_rows) {
  if (args.batch == nullptr || args.batch->struct_size < sizeof(motley_batch)) {
    return invalid_argument("enqueue: a batch is missing, or of another version");
  }
  const motley_batch& batch = *args.batch;
  if (batch.adapters != nullptr || batch.overrides != nullptr) {
    return error(MOTLEY_UNIMPLEMENTED, "enqueue: adapters and overrides are reserved; they must be null");
  }
  if (args.bucket >= programs.buckets.size()) {
    return error(MOTLEY_OUT_OF_RANGE, "enqueue: bucket {} of {}", args.bucket, programs.buckets.size());
  }
  const uint32_t rows_max = dynamic_rows ? programs.buckets.back() : programs.buckets[args.bucket];
  if (batch.rows > rows_max) {
    return error(MOTLEY_OUT_OF_RANGE, "enqueue: {} rows; the program takes at most {}", batch.rows, rows_max);
  }
  if (args.binding_count > 0 && args.bindings == nullptr) return invalid_argument("enqueue: the bindings are null");
  const std::span bindings(args.bindings, args.binding_count);
  for (const motley_binding& binding : bindings) RETURN_IF_ERROR(check_binding(programs, binding, batch));
  RETURN_IF_ERROR(check_overlaps(programs, bindings, batch));
  if (bindings.size() != programs.bound.size()) {
    return invalid_argument("enqueue: {} values are bound of {}", bindings.size(), programs.bound.size());
  }
  return ok_status();
}

std::vector<uint64_t> kv_block_bytes(const motley_kv_desc& desc) {
  const uint64_t scale = desc.dtype == MOTLEY_I8 ? 4 : 0;
  std::vector<uint64_t> bytes;
  for (uint32_t layer = 0; layer < desc.layers; ++layer) {
    const auto heads = static_cast<uint64_t>(desc.kv_heads[layer]), dim = static_cast<uint64_t>(desc.head_dim[layer]);
    bytes.push_back(2 * desc.block_size * heads * (dim * element_bytes(desc.dtype) + scale));
  }
  return bytes;
}

Status check_kv_move(const RemoteKv& kv, const int32_t* blocks, uint32_t count, uint32_t begin, uint32_t end,
                     uint64_t bytes) {
  if (begin > end || end > kv.block_bytes.size()) {
    return error(MOTLEY_OUT_OF_RANGE, "KV layers [{}, {}) of {}", begin, end, kv.block_bytes.size());
  }
  if (count > kBatchItemsMax || (count > 0 && blocks == nullptr)) return invalid_argument("{} KV blocks", count);
  for (uint32_t i = 0; i < count; ++i) {
    if (blocks[i] < 0 || static_cast<uint32_t>(blocks[i]) >= kv.blocks) {
      return error(MOTLEY_OUT_OF_RANGE, "KV block {} of {}", blocks[i], kv.blocks);
    }
  }
  uint64_t wanted = 0;
  for (uint32_t layer = begin; layer < end; ++layer) wanted += kv.block_bytes[layer] * count;
  if (bytes == wanted) return ok_status();
  return invalid_argument("{} KV blocks take {} bytes, not {}", count, wanted, bytes);
}

}  // namespace motley::worker
