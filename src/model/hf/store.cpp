#include "model/hf/store.hpp"

#include <algorithm>
#include <map>
#include <utility>
#include <variant>

#include "base/quote.hpp"
#include "model/dtype.hpp"
#include "model/hf/names.hpp"

namespace motley::hf {
namespace {

constexpr std::string_view kGetModelAgain = "get the model again";

// Goes over the modules of a checkpoint once.
class Lister {
 public:
  Lister(const Checkpoint& checkpoint, const ModelDescription& model) : checkpoint_(checkpoint), model_(model) {}

  Result<std::vector<MadeWeight>> run() {
    RETURN_IF_ERROR(group());
    for (const auto& [name, module] : modules_) RETURN_IF_ERROR(annotated(module, add(module)));
    for (const auto& [name, experts] : stacks_) RETURN_IF_ERROR(add_stack(name, experts));
    std::sort(weights_.begin(), weights_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    for (size_t i = 1; i < weights_.size(); ++i) {
      if (weights_[i].name == weights_[i - 1].name) {
        return invalid_argument("{}: has the place of {}; {}", weights_[i].place, weights_[i - 1].place,
                                kGetModelAgain);
      }
    }
    return std::move(weights_);
  }

 private:
  Status group() {
    for (const SafetensorsTensor* tensor : checkpoint_.tensors()) {
      const ModulePath path = split_tensor_name(tensor->name);
      if (is_ignored(path)) continue;
      Module& module = modules_[std::string(path.module)];
      module.name = path.module;
      if (module.find(path.part) != nullptr) {
        return invalid_argument("{}: tensor {}: stands twice under other prefixes; {}", checkpoint_.file_of(*tensor),
                                in_quotes(tensor->name), kGetModelAgain);
      }
      module.tensors.emplace_back(path.part, tensor);
    }
    return ok_status();
  }

  std::string file_of(const Module& module) const {
    return in_quotes(checkpoint_.file_of(*module.tensors.front().second));
  }
  Status annotated(const Module& module, const Status& status) const {
    return status.ok() ? status : status.annotate(file_of(module));
  }
  std::string place_of(const SafetensorsTensor& tensor) const {
    return fmt::format("{}: tensor {}", in_quotes(checkpoint_.file_of(tensor)), in_quotes(tensor.name));
  }

  Status add(const Module& module) {
    const HuggingFaceTraits& traits = model_.architecture->hugging_face;
    auto fused = fused_experts_prefix(module.name, model_.parameters);
    if (!fused.ok()) return fused.error().annotate(fmt::format("tensor {}", in_quotes(module.shown())));
    if (*fused && traits.interleaved_experts) return add_fused(**fused, module);
    if (const SafetensorsTensor* sinks = module.find("sinks"); sinks != nullptr && module.tensors.size() == 1) {
      auto name = name_module(module.name + ".q_proj", model_.parameters, traits);
      if (name.ok() && *name && module.name.ends_with(".self_attn")) {
        const std::string prefix = (*name)->name.substr(0, (*name)->name.rfind('.'));
        return add_plain(prefix + ".attn_sinks.weight", *sinks);
      }
    }
    auto name = name_module(module.name, model_.parameters, traits);
    if (!name.ok()) return name.error().annotate(fmt::format("tensor {}", in_quotes(module.shown())));
    if (!*name) {
      return error(MOTLEY_UNIMPLEMENTED,
                   "tensor {}: is not part of this architecture as it is built; use another model",
                   in_quotes(module.shown()));
    }
    if ((*name)->name == "output" && model_.tied_head.value_or(false)) return ok_status();
    if ((*name)->expert < 0) return add_module((*name)->name, module);
    auto& stack = stacks_[(*name)->name];
    stack.resize(model_.parameters.experts.count);
    stack[static_cast<size_t>((*name)->expert)] = &module;
    return ok_status();
  }

  Status add_module(const std::string& name, const Module& module) {
    ASSIGN_OR_RETURN(DescribedMatrix matrix, describe_matrix(module, model_.quantization));
    const float offset = model_.architecture->hugging_face.norm_offset;
    if (auto* plain = std::get_if<PlainMatrix>(&matrix.source); plain && offset != 0 && name.ends_with("_norm")) {
      plain->add = offset;
      matrix.dtype = MOTLEY_F32;
    }
    push(name + ".weight", {matrix.source}, matrix.dtype, *module.tensors.front().second);
    const SafetensorsTensor* bias = module.find("bias");
    return bias == nullptr ? ok_status() : add_plain(name + ".bias", *bias);
  }

  Status add_plain(const std::string& name, const SafetensorsTensor& tensor) {
    ASSIGN_OR_RETURN(const DescribedMatrix matrix, describe_plain(tensor));
    push(name, {matrix.source}, matrix.dtype, tensor);
    return ok_status();
  }

  Status add_stack(const std::string& name, const std::vector<const Module*>& experts) {
    std::vector<MatrixSource> sources;
    int32_t dtype = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      if (experts[i] == nullptr) {
        return invalid_argument("tensors of {}: expert {} of {} is missing; {}", in_quotes(name), i, experts.size(),
                                kGetModelAgain);
      }
      auto matrix = describe_matrix(*experts[i], model_.quantization);
      if (!matrix.ok()) return matrix.error().annotate(file_of(*experts[i]));
      if (i == 0) dtype = matrix->dtype;
      // BF16 can be made of FP8: of a stack where some experts are left in it.
      const bool fp8 = matrix->dtype == MOTLEY_F8_E4M3_S64;
      if (dtype == MOTLEY_F8_E4M3_S64 && matrix->dtype == MOTLEY_BF16) dtype = MOTLEY_BF16;
      if ((matrix->dtype != dtype && !(fp8 && dtype == MOTLEY_BF16)) || experts[i]->find("bias") != nullptr ||
          rows_of(matrix->source) != rows_of(i == 0 ? matrix->source : sources[0]) ||
          cols_of(matrix->source) != cols_of(i == 0 ? matrix->source : sources[0])) {
        return error(MOTLEY_UNIMPLEMENTED,
                     "{}: has another shape or type than the expert before it, or a bias, which is not built; use "
                     "another model",
                     place_of(*experts[i]->tensors.front().second));
      }
      sources.push_back(matrix->source);
    }
    push(name + ".weight", std::move(sources), dtype, *experts[0]->tensors.front().second);
    return ok_status();
  }

  // All experts in one tensor: rows of gate and up alternate; plain matrices lie with their columns first.
  Status add_fused(const std::string& prefix, const Module& module) {
    for (const auto& [part, tensor] : module.tensors) {
      if (tensor->data.empty()) return tensor_error(MOTLEY_INVALID_ARGUMENT, *tensor, "is empty; get the model again");
    }
    const int64_t hidden = model_.parameters.config.hidden;
    const int64_t ffn = model_.parameters.experts.ffn;
    struct Target {
      std::string_view name, part;
      int64_t rows, cols, first, step;  // of the wanted matrix among the rows that the tensor holds
    };
    const std::array targets = {Target{"ffn_gate_exps", "gate_up_proj", ffn, hidden, 0, 2},
                                Target{"ffn_up_exps", "gate_up_proj", ffn, hidden, 1, 2},
                                Target{"ffn_down_exps", "down_proj", hidden, ffn, 0, 1}};
    size_t read = 0;
    for (const Target& target : targets) {
      const std::string part(target.part);
      const SafetensorsTensor* blocks = module.find(part + "_blocks");
      const SafetensorsTensor* scales = module.find(part + "_scales");
      const SafetensorsTensor* plain = module.find(part);
      const SafetensorsTensor* bias = module.find(part + "_bias");
      const std::string name = prefix + std::string(target.name);
      const SafetensorsTensor* first = blocks != nullptr ? blocks : plain;
      if (first == nullptr || (blocks != nullptr) != (scales != nullptr) || (blocks != nullptr && plain != nullptr)) {
        return invalid_argument("tensor {}: its module has no {} of one kind; {}", in_quotes(module.shown()),
                                in_quotes(part), kGetModelAgain);
      }
      const int64_t stored = target.rows * target.step;
      if (blocks != nullptr) {
        RETURN_IF_ERROR(add_mxfp4(name, *blocks, *scales, target.rows, target.cols, target.first, target.step));
      } else {
        RETURN_IF_ERROR(add_transposed(name, *plain, target.rows, target.cols, target.first, target.step));
      }
      if (target.first == 0) read += (blocks != nullptr ? 2 : 1) + (bias != nullptr ? 1 : 0);
      if (bias != nullptr) RETURN_IF_ERROR(add_biases(name, *bias, target.rows, stored, target.first, target.step));
    }
    if (read == module.tensors.size()) return ok_status();
    return error(MOTLEY_UNIMPLEMENTED, "tensor {}: its module has parts that are not built; use another model",
                 in_quotes(module.shown()));
  }

  Status add_mxfp4(const std::string& name, const SafetensorsTensor& blocks, const SafetensorsTensor& scales,
                   int64_t rows, int64_t cols, int64_t first, int64_t step) {
    constexpr int64_t kBlock = 32, kBytes = 16;
    const int64_t experts = model_.parameters.experts.count;
    const std::vector<int64_t> shape = {experts, rows * step, cols / kBlock};
    std::vector<int64_t> block_shape = shape;
    block_shape.push_back(kBytes);
    if (cols % kBlock != 0 || blocks.element() != Element::kU8 || scales.element() != Element::kU8 ||
        blocks.shape != block_shape || scales.shape != shape) {
      return tensor_error(
          MOTLEY_INVALID_ARGUMENT, blocks,
          fmt::format("with its scales is not MXFP4 of {} x {} x {}; {}", experts, rows * step, cols, kGetModelAgain));
    }
    std::vector<MatrixSource> sources;
    const size_t per_expert = scales.data.size() / static_cast<size_t>(experts);
    for (size_t i = 0; i < static_cast<size_t>(experts); ++i) {
      sources.emplace_back(Mxfp4Matrix{.blocks = blocks.data.subspan(i * per_expert * kBytes, per_expert * kBytes),
                                       .scales = scales.data.subspan(i * per_expert, per_expert),
                                       .rows = rows,
                                       .cols = cols,
                                       .first_row = first,
                                       .row_step = step});
    }
    push(name + ".weight", std::move(sources), MOTLEY_MXFP4, blocks);
    return ok_status();
  }

  Status add_transposed(const std::string& name, const SafetensorsTensor& tensor, int64_t rows, int64_t cols,
                        int64_t first, int64_t step) {
    const int64_t experts = model_.parameters.experts.count;
    ASSIGN_OR_RETURN(const DescribedMatrix all, describe_plain(tensor));
    if (tensor.shape != std::vector<int64_t>{experts, cols, rows * step}) {
      return tensor_error(MOTLEY_INVALID_ARGUMENT, tensor,
                          fmt::format("is not {} x {} x {}; {}", experts, cols, rows * step, kGetModelAgain));
    }
    std::vector<MatrixSource> sources;
    for (int64_t i = 0; i < experts; ++i) {
      sources.emplace_back(PlainMatrix{.values = tensor.data,
                                       .element = tensor.element(),
                                       .rows = rows,
                                       .cols = cols,
                                       .first = i * cols * rows * step + first,
                                       .row_step = step,
                                       .col_step = rows * step});
    }
    push(name + ".weight", std::move(sources), all.dtype, tensor);
    return ok_status();
  }

  Status add_biases(const std::string& name, const SafetensorsTensor& tensor, int64_t rows, int64_t stored,
                    int64_t first, int64_t step) {
    const int64_t experts = model_.parameters.experts.count;
    ASSIGN_OR_RETURN(const DescribedMatrix all, describe_plain(tensor));
    if (tensor.shape != std::vector<int64_t>{experts, stored}) {
      return tensor_error(MOTLEY_INVALID_ARGUMENT, tensor,
                          fmt::format("is not {} x {}; {}", experts, stored, kGetModelAgain));
    }
    const PlainMatrix biases{.values = tensor.data,
                             .element = tensor.element(),
                             .rows = experts,
                             .cols = rows,
                             .first = first,
                             .row_step = stored,
                             .col_step = step};
    push(name + ".bias", {biases}, all.dtype, tensor);
    return ok_status();
  }

  void push(std::string name, std::vector<MatrixSource> sources, int32_t dtype, const SafetensorsTensor& tensor) {
    MadeWeight weight{.name = std::move(name),
                      .dtype = dtype,
                      .ne = {cols_of(sources[0]), rows_of(sources[0]), static_cast<int64_t>(sources.size()), 1},
                      .place = place_of(tensor),
                      .sources = std::move(sources)};
    weights_.push_back(std::move(weight));
  }

  const Checkpoint& checkpoint_;
  const ModelDescription& model_;
  std::map<std::string, Module> modules_;
  std::map<std::string, std::vector<const Module*>> stacks_;  // by GGUF name; null: not seen yet
  std::vector<MadeWeight> weights_;
};

}  // namespace

uint64_t MadeWeight::bytes() const {
  const DtypeInfo& info = *find_dtype(dtype);
  return static_cast<uint64_t>(ne[0] / info.block_elements * info.block_bytes * ne[1] * ne[2]);
}

std::span<const std::byte> MadeWeight::mapped() const {
  const auto* plain = sources.size() == 1 ? std::get_if<PlainMatrix>(&sources[0]) : nullptr;
  if (plain == nullptr || plain->add != 0 || plain->first != 0 || plain->col_step != 1 ||
      plain->row_step != plain->cols || dtype_of(plain->element) != dtype ||
      reinterpret_cast<uintptr_t>(plain->values.data()) % element_bytes(plain->element) != 0) {
    return {};
  }
  return plain->values;
}

Result<std::vector<MadeWeight>> list_weights(const Checkpoint& checkpoint, const ModelDescription& model) {
  return Lister(checkpoint, model).run();
}

Store::Store(Checkpoint checkpoint, std::vector<MadeWeight> weights, std::vector<float> divisors, Keep keep)
    : checkpoint_(std::move(checkpoint)),
      divisors_(std::move(divisors)),
      weights_(std::move(weights)),
      keep_(std::move(keep)) {
  if (divisors_.empty()) return;
  const auto count = static_cast<int64_t>(divisors_.size());
  weights_.push_back({.name = std::string(kRopeDivisorsName),
                      .dtype = MOTLEY_F32,
                      .ne = {count, 1, 1, 1},
                      .place = "the rope's divisors",
                      .sources = {PlainMatrix{.values = std::as_bytes(std::span(divisors_)),
                                              .element = Element::kF32,
                                              .rows = 1,
                                              .cols = count,
                                              .row_step = count}}});
  std::sort(weights_.begin(), weights_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
}

StoredWeight Store::at(size_t index) const {
  const MadeWeight& weight = weights_[index];
  return {.name = weight.name, .dtype = weight.dtype, .ne = weight.ne, .bytes = weight.bytes()};
}

size_t Store::find(std::string_view name) const {
  const auto at =
      std::lower_bound(weights_.begin(), weights_.end(), name,
                       [](const MadeWeight& weight, std::string_view wanted) { return weight.name < wanted; });
  return at != weights_.end() && at->name == name ? static_cast<size_t>(at - weights_.begin()) : weights_.size();
}

Result<WeightBytes> Store::read(size_t index) const {
  const MadeWeight& weight = weights_[index];
  if (const std::span<const std::byte> mapped = weight.mapped(); !mapped.empty()) return WeightBytes(mapped);
  std::vector<std::byte> made(weight.bytes());
  const size_t each = made.size() / weight.sources.size();
  for (size_t i = 0; i < weight.sources.size(); ++i) {
    make_rows(weight.sources[i], weight.dtype, 0, weight.ne[1], made.data() + i * each);
  }
  return WeightBytes(std::move(made));
}

void Store::release(size_t index) const {
  if (weights_[index].name == kRopeDivisorsName) return;  // in no file
  for (const MatrixSource& source : weights_[index].sources) {
    for (const std::span<const std::byte> range : bytes_of(source)) drop_pages(range);
  }
}

}  // namespace motley::hf
