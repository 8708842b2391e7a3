#include "model/gguf_model.hpp"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "model/architecture.hpp"
#include "model/dtype.hpp"
#include "model/gguf.hpp"
#include "model/hyper_parameters.hpp"
#include "model/mapped_file.hpp"
#include "model/tokenizer_data.hpp"

namespace motley {
namespace {

constexpr uint32_t kUseVector = 4;  // MOTLEY_WEIGHT_VECTOR

class GgufModel : public Model {
 public:
  // What of a file is kept; the directory itself is dropped after loading.
  struct Parts {
    ModelConfig config;
    Graph graph;
    std::vector<KvLayer> kv_layers;
    std::vector<WeightSource> weights;
    TokenizerData tokenizer;
    uint64_t file_bytes = 0;
  };
  explicit GgufModel(Parts parts) : parts_(std::move(parts)) {}

  const ModelConfig& config() const override { return parts_.config; }
  const Graph& graph() const override { return parts_.graph; }
  const std::vector<KvLayer>& kv_layers() const override { return parts_.kv_layers; }
  const WeightSource& weight(size_t index) const override {
    CHECK(index < parts_.weights.size(), "weight {} of {}", index, parts_.weights.size());
    return parts_.weights[index];
  }
  const TokenizerData& tokenizer() const override { return parts_.tokenizer; }
  uint64_t file_bytes() const override { return parts_.file_bytes; }
  void release(size_t weight_index) const override {
    if (file_) drop_pages(weight(weight_index).data);
  }
  void keep(MappedFile file) { file_.emplace(std::move(file)); }

 private:
  std::optional<MappedFile> file_;  // empty where the caller owns the bytes
  Parts parts_;
};

Status tensor_error(Code code, const GgufTensor& tensor, std::string_view what) {
  return error(code, "tensor {} (byte {}): {}", gguf_quote(tensor.name), tensor.offset, what);
}

// Parts of models, adapters and projectors are GGUF files too; each is refused by what it is.
Status check_is_whole_model(const GgufFile& file) {
  ASSIGN_OR_RETURN(const auto parts, file.read_count("split.count"));
  if (parts.value_or(0) > 1) {
    ASSIGN_OR_RETURN(const auto number, file.read_count("split.no"));
    return error(MOTLEY_UNIMPLEMENTED,
                 "key 'split.count' (byte {}): part {} of a model split into {} files, which is not built; merge the "
                 "parts into one file",
                 file.find("split.count")->offset, number.value_or(0) + 1, *parts);
  }
  ASSIGN_OR_RETURN(const auto type, file.read_string("general.type"));
  if (type && *type != "model") {
    return error(MOTLEY_UNIMPLEMENTED,
                 "key 'general.type' (byte {}): {} is not a whole model; give the model's own file",
                 file.find("general.type")->offset, gguf_quote(*type));
  }
  return ok_status();
}

Result<const Architecture*> choose_architecture(const GgufFile& file) {
  constexpr std::string_view kKey = "general.architecture";
  ASSIGN_OR_RETURN(const auto name, file.read_string(kKey));
  if (!name) return invalid_argument("key '{}': is missing; {}", kKey, kConvertAgain);
  const Architecture* architecture = find_architecture(*name);
  if (architecture != nullptr) return architecture;
  std::string known;
  for (const Architecture& built : architectures()) {
    known += fmt::format("{}{}", known.empty() ? "" : ", ", built.name);
  }
  return error(MOTLEY_UNIMPLEMENTED, "key '{}' (byte {}): architecture {} is not built; use a model of {}", kKey,
               file.find(kKey)->offset, gguf_quote(*name), known);
}

Result<WeightSource> bind_weight(const GgufFile& file, const GraphWeight& weight) {
  const GgufTensor* tensor = file.find_tensor(weight.name);
  if (tensor == nullptr) return invalid_argument("tensor {}: is missing; {}", gguf_quote(weight.name), kGetFileAgain);
  if (tensor->ne[0] != weight.cols || tensor->ne[1] != weight.rows || tensor->ne[2] != weight.experts ||
      tensor->ne[3] != 1) {
    return tensor_error(
        MOTLEY_INVALID_ARGUMENT, *tensor,
        fmt::format("is {} x {} x {} x {}, but the file's keys ask for {} x {}; {}", tensor->ne[0], tensor->ne[1],
                    tensor->ne[2], tensor->ne[3], weight.cols, weight.rows, kConvertAgain));
  }
  const DtypeInfo& dtype = *find_dtype(tensor->dtype);
  if ((weight.uses & kUseVector) != 0 && tensor->dtype != MOTLEY_F32) {
    return tensor_error(
        MOTLEY_UNIMPLEMENTED, *tensor,
        fmt::format("is {}; norms and other vectors are read as F32 alone: {}", dtype.name, kConvertAgain));
  }
  if (!dtype.is_weight) {
    return tensor_error(
        MOTLEY_UNIMPLEMENTED, *tensor,
        fmt::format("type {} is not built; use a model with weights in {}", dtype.name, weight_dtype_names()));
  }
  return WeightSource{.dtype = tensor->dtype,
                      .experts = weight.experts,
                      .rows = weight.rows,
                      .cols = weight.cols,
                      .data = tensor->data};
}

Result<std::vector<WeightSource>> bind_weights(const GgufFile& file, const Graph& graph) {
  std::vector<WeightSource> sources;
  sources.reserve(graph.weights.size());
  for (const GraphWeight& weight : graph.weights) {
    ASSIGN_OR_RETURN(const WeightSource source, bind_weight(file, weight));
    sources.push_back(source);
  }
  return sources;
}

// A bias, or anything else inside a layer, that the graph does not use would make the model another one. Tensors
// outside the layers that nobody knows are left alone.
Status refuse_unused(const GgufFile& file, const Graph& graph) {
  // Tables that old converters wrote and no graph reads.
  constexpr std::string_view kHarmless = ".attn_rot_embd";
  std::vector<std::string_view> used;
  used.reserve(graph.weights.size());
  for (const GraphWeight& weight : graph.weights) used.push_back(weight.name);
  std::sort(used.begin(), used.end());
  for (const GgufTensor& tensor : file.tensors()) {
    if (std::binary_search(used.begin(), used.end(), tensor.name)) continue;
    const bool counts = tensor.name.starts_with("blk.") || tensor.name.ends_with(".bias");
    if (!counts || tensor.name.find(kHarmless) != std::string_view::npos) continue;
    return tensor_error(MOTLEY_UNIMPLEMENTED, tensor,
                        "is not part of this architecture as it is built; use another model");
  }
  return ok_status();
}

Result<GgufModel::Parts> read_parts(std::span<const std::byte> bytes, std::string stem) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::parse(bytes));
  RETURN_IF_ERROR(check_is_whole_model(file));
  ASSIGN_OR_RETURN(const Architecture* const architecture, choose_architecture(file));
  ASSIGN_OR_RETURN(const HyperParameters parameters, read_hyper_parameters(file));
  GgufModel::Parts parts;
  parts.config = parameters.config;
  if (parts.config.name.empty()) parts.config.name = std::move(stem);
  parts.file_bytes = bytes.size();
  ASSIGN_OR_RETURN(parts.tokenizer, read_tokenizer_data(file));
  GraphBuilder builder(file, parameters);
  architecture->build(builder);
  parts.graph = builder.take();
  ASSIGN_OR_RETURN(parts.weights, bind_weights(file, parts.graph));
  RETURN_IF_ERROR(refuse_unused(file, parts.graph));
  parts.kv_layers.assign(parts.config.layers,
                         KvLayer{.kv_heads = parts.config.kv_heads, .head_dim = parts.config.head_dim, .window = 0});
  return parts;
}

}  // namespace

Result<std::unique_ptr<Model>> load_model_from_bytes(std::span<const std::byte> bytes, std::string stem) {
  ASSIGN_OR_RETURN(auto parts, read_parts(bytes, std::move(stem)));
  return std::unique_ptr<Model>(std::make_unique<GgufModel>(std::move(parts)));
}

Result<std::unique_ptr<Model>> Model::load(const std::filesystem::path& path) {
  const std::string shown = path.string();
  auto file = MappedFile::open(path);
  if (!file.ok()) return file.error().annotate(shown);
  auto parts = read_parts(file->bytes(), path.stem().string());
  if (!parts.ok()) return parts.error().annotate(shown);
  auto model = std::make_unique<GgufModel>(*std::move(parts));
  model->keep(*std::move(file));
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace motley
