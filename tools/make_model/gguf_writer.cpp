#include "make_model/gguf_writer.hpp"

#include <cstdio>
#include <memory>
#include <system_error>
#include <utility>

#include "model/dtype.hpp"

namespace motley::make_model {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;  // the format's default

template <typename T>
void append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_text(std::string* out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out->append(text);
}

uint64_t padded(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

void GgufWriter::begin_key(std::string_view key, GgufType type) {
  append_text(&keys_, key);
  append(&keys_, static_cast<int32_t>(type));
  ++key_count_;
}

void GgufWriter::add_u32(std::string_view key, uint32_t value) {
  begin_key(key, GgufType::kU32);
  append(&keys_, value);
}

void GgufWriter::add_f32(std::string_view key, float value) {
  begin_key(key, GgufType::kF32);
  append(&keys_, value);
}

void GgufWriter::add_bool(std::string_view key, bool value) {
  begin_key(key, GgufType::kBool);
  append(&keys_, static_cast<uint8_t>(value));
}

void GgufWriter::add_string(std::string_view key, std::string_view value) {
  begin_key(key, GgufType::kString);
  append_text(&keys_, value);
}

void GgufWriter::add_strings(std::string_view key, std::span<const std::string> values) {
  begin_key(key, GgufType::kArray);
  append(&keys_, static_cast<int32_t>(GgufType::kString));
  append(&keys_, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) append_text(&keys_, value);
}

void GgufWriter::add_i32s(std::string_view key, std::span<const int32_t> values) {
  begin_key(key, GgufType::kArray);
  append(&keys_, static_cast<int32_t>(GgufType::kI32));
  append(&keys_, static_cast<uint64_t>(values.size()));
  keys_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

void GgufWriter::add_copy(const GgufEntry& entry) {
  begin_key(entry.key, entry.type);
  if (entry.type == GgufType::kArray) {
    append(&keys_, static_cast<int32_t>(entry.element));
    append(&keys_, entry.count);
  } else if (entry.type == GgufType::kString) {
    append(&keys_, static_cast<uint64_t>(entry.payload.size()));
  }
  keys_.append(reinterpret_cast<const char*>(entry.payload.data()), entry.payload.size());
}

void GgufWriter::add_tensor(std::string name, int32_t dtype, std::vector<int64_t> dims, Fill fill) {
  const DtypeInfo* info = find_dtype(dtype);
  CHECK(info != nullptr && !dims.empty() && dims[0] % info->block_elements == 0, "tensor {}", name);
  uint64_t bytes = static_cast<uint64_t>(dims[0]) / info->block_elements * info->block_bytes;
  for (size_t i = 1; i < dims.size(); ++i) bytes *= static_cast<uint64_t>(dims[i]);
  tensors_.push_back({std::move(name), dtype, std::move(dims), bytes, std::move(fill)});
}

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  append(&out, kVersion);
  append(&out, static_cast<uint64_t>(tensors_.size()));
  append(&out, key_count_);
  out += keys_;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_text(&out, tensor.name);
    append(&out, static_cast<uint32_t>(tensor.dims.size()));
    for (const int64_t dim : tensor.dims) append(&out, dim);
    append(&out, tensor.dtype);
    append(&out, offset);
    offset += padded(tensor.bytes);
  }
  out.resize(padded(out.size()), '\0');
  return out;
}

Status GgufWriter::write(const std::filesystem::path& path) const {
  std::error_code unknown;
  const auto there = std::filesystem::status(path, unknown);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) {
    return invalid_argument("{}: is there and no file; choose another name", path.string());
  }
  std::filesystem::path part = path;
  part += ".part";
  {
    const std::unique_ptr<std::FILE, CloseFile> file(std::fopen(part.c_str(), "wb"));
    if (!file) return invalid_argument("{}: cannot be written; check the folder and its permissions", part.string());
    const std::string head = header();
    bool written = std::fwrite(head.data(), 1, head.size(), file.get()) == head.size();
    std::vector<std::byte> data;
    for (const Tensor& tensor : tensors_) {
      data.assign(padded(tensor.bytes), std::byte{0});
      tensor.fill(std::span(data).first(tensor.bytes));
      written = written && std::fwrite(data.data(), 1, data.size(), file.get()) == data.size();
    }
    if (!written || std::fflush(file.get()) != 0) {
      return error(MOTLEY_RESOURCE_EXHAUSTED, "{}: writing failed; free some disk space", part.string());
    }
  }
  std::error_code failed;
  std::filesystem::rename(part, path, failed);
  if (failed) return invalid_argument("{}: cannot be renamed to its name: {}", path.string(), failed.message());
  return ok_status();
}

}  // namespace motley::make_model
