// TextModel: a model's file or folder with its text tools, without a device.
#pragma once

#include <filesystem>
#include <memory>

#include "base/status.hpp"
#include "model/model.hpp"
#include "text/chat_template.hpp"
#include "text/chat_template_sources.hpp"
#include "text/tokenizer.hpp"

namespace motley {

// All that `tokenize` needs.
struct TextModel {
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  static Result<TextModel> load(const std::filesystem::path& path, const LoadOptions& options = {});
};

// The tokenizer that the model's files describe; it borrows nothing of the model. INVALID_ARGUMENT, beside what
// Tokenizer::create and create_from_json refuse, for one whose tokens the model has no embedding for. (Literal tokens
// may lie beyond: a family's tokenizer also spells its images, which a model of text lacks.)
Result<std::unique_ptr<Tokenizer>> make_tokenizer(const Model& model);

// Tokenizer::check() of the vocabulary of a model without a tokenizer.json.
Status check_vocabulary_of(const TokenizerData& data);

// The templates that come with a model. Of the places where one may stand, the first that has one counts: a key or file
// of its own, that file's older form, the tokenizer's configuration. INVALID_ARGUMENT for a damaged file.
Result<ChatTemplateSources> template_sources(const TokenizerData& data);

// See ChatTemplate::create; the spellings of BOS and EOS are the tokenizer's.
Result<std::unique_ptr<ChatTemplate>> make_chat_template(const ChatTemplateSources& sources,
                                                         const Tokenizer& tokenizer);

}  // namespace motley
