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
  const auto read_facts = std::filesystem::is_directory(path, failed) ? read_directory_facts : read_gguf_facts;
  ASSIGN_OR_RETURN(report.facts, read_facts(path));
  const Status text = TextModel::load(path).error();
  const Status model = text.ok() ? text : Model::load(path).error();
  if (!model.ok() && model.code() != MOTLEY_UNIMPLEMENTED) return model;
  report.verdicts.push_back({"model", model});
  report.verdicts.push_back({"tokenizer", model.ok() ? std::optional(text) : std::nullopt});
  report.verdicts.push_back({"chat", try_template(report.facts.chat_template)});
  return report;
}

}  // namespace motley
