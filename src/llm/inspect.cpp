#include "llm/inspect.hpp"

#include <memory>
#include <utility>

#include "llm/instance.hpp"
#include "model/model.hpp"
#include "text/chat_template.hpp"

namespace motley {
namespace {

Status try_template(const std::string& source) {
  if (source.empty()) return error(MOTLEY_NOT_FOUND, "the model has no chat template; give one with --chat-template");
  return ChatTemplate::create(source, {}, {}).error();
}

}  // namespace

Result<ModelReport> inspect_model(const std::filesystem::path& path) {
  ModelReport report;
  std::error_code failed;
  const bool directory = std::filesystem::is_directory(path, failed);
  if (!directory) {
    ASSIGN_OR_RETURN(report.facts, read_gguf_facts(path));
  }
  const auto model = Model::load(path);
  if (!model.ok() && model.error().code() != MOTLEY_UNIMPLEMENTED) return model.error();
  std::optional<Status> text;
  if (directory) {
    report.facts.format = "Hugging Face directory";
    if (model.ok()) text = add_directory_facts(**model, report.facts);
  } else if (model.ok()) {
    text = check_vocabulary_of((*model)->tokenizer());
  }
  if (text && !text->ok()) text = text->annotate(path.string());
  report.verdicts.push_back({"model", model.error()});
  report.verdicts.push_back({"tokenizer", std::move(text)});
  report.verdicts.push_back({"chat", try_template(report.facts.chat_template)});
  return report;
}

}  // namespace motley
