#include "text/chat_template_sources.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/check.hpp"
#include "base/limits.hpp"

namespace motley {
namespace {

constexpr std::string_view kKey = "chat_template";

// Walks over the whole file and keeps the templates alone, so that what a file costs does not depend on the rest of it.
class SourcesReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  ChatTemplateSources sources;
  Status status = ok_status();

  bool null() override { return value(Kind::kNull, nullptr); }
  bool boolean(bool) override { return value(Kind::kOther, nullptr); }
  bool number_integer(number_integer_t) override { return value(Kind::kOther, nullptr); }
  bool number_unsigned(number_unsigned_t) override { return value(Kind::kOther, nullptr); }
  bool number_float(number_float_t, const string_t&) override { return value(Kind::kOther, nullptr); }
  bool string(string_t& text) override { return value(Kind::kString, &text); }
  bool binary(binary_t&) override { return value(Kind::kOther, nullptr); }
  bool start_object(size_t) override { return open(Kind::kObject); }
  bool start_array(size_t) override { return open(Kind::kArray); }

  bool key(string_t& name) override {
    if (depth_ <= kItemDepth) key_ = name;
    return true;
  }

  bool end_object() override {
    --depth_;
    if (!inside_ || depth_ != kListDepth) return true;
    if (!name_ || !source_) return refuse("every template of the list needs \"name\" and \"template\"");
    status = sources.add(*std::exchange(name_, std::nullopt), *std::exchange(source_, std::nullopt));
    return status.ok();
  }

  bool end_array() override {
    --depth_;
    if (depth_ < kListDepth) inside_ = false;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    status = invalid_argument("not valid JSON near byte {}", position);
    return false;
  }

 private:
  enum class Kind { kNull, kString, kObject, kArray, kOther };
  // Containers around a value: of the whole object, of the list under "chat_template", of one template in it.
  static constexpr size_t kTopDepth = 1, kListDepth = 2, kItemDepth = 3;

  bool refuse(std::string_view why) {
    status = invalid_argument("\"{}\": {}", kKey, why);
    return false;
  }

  bool open(Kind kind) {
    if (!value(kind, nullptr)) return false;
    if (depth_ == limits::kJsonDepthMax) {
      status = invalid_argument("the JSON is nested deeper than {} levels", limits::kJsonDepthMax);
      return false;
    }
    ++depth_;
    return true;
  }

  bool value(Kind kind, string_t* text) {
    if (depth_ == 0 && kind != Kind::kObject) {
      status = invalid_argument("the file must be a JSON object");
      return false;
    }
    if (depth_ == kTopDepth && key_ == kKey) return template_value(kind, text);
    if (!inside_ || depth_ > kItemDepth) return true;
    if (depth_ == kListDepth) return kind == Kind::kObject || refuse("the list must hold objects");
    std::optional<std::string>* part = key_ == "name" ? &name_ : key_ == "template" ? &source_ : nullptr;
    if (part == nullptr) return true;
    if (kind != Kind::kString) return refuse("\"name\" and \"template\" must be strings");
    *part = std::move(*text);
    return true;
  }

  // A key that comes twice counts as it does in Python: the last one.
  bool template_value(Kind kind, string_t* text) {
    if (kind == Kind::kObject || kind == Kind::kOther) {
      return refuse("must be a template or a list of {\"name\", \"template\"}");
    }
    sources = kind == Kind::kString ? ChatTemplateSources(*text) : ChatTemplateSources();
    inside_ = kind == Kind::kArray;
    return true;
  }

  size_t depth_ = 0;
  std::string key_;
  bool inside_ = false;  // the list
  std::optional<std::string> name_, source_;
};

}  // namespace

Status ChatTemplateSources::add(std::string_view name, std::string source) {
  const auto it = std::find_if(named_.begin(), named_.end(), [&](const Named& named) { return named.name == name; });
  if (it != named_.end()) {
    it->source = std::move(source);
    return ok_status();
  }
  if (named_.size() == kNamedTemplatesMax) {
    return invalid_argument("a model has at most {} chat templates", kNamedTemplatesMax);
  }
  named_.push_back({std::string(name), std::move(source)});
  return ok_status();
}

const std::string* ChatTemplateSources::find(std::string_view name) const {
  const auto it = std::find_if(named_.begin(), named_.end(), [&](const Named& named) { return named.name == name; });
  return it == named_.end() ? nullptr : &it->source;
}

std::string ChatTemplateSources::names() const {
  std::string out;
  for (const Named& named : named_) out += (out.empty() ? "" : ", ") + named.name;
  return out;
}

Result<ChatTemplateSources> parse_chat_template_sources(std::string_view json) {
  if (json.size() > kTemplateFileBytesMax) {
    return invalid_argument("the file is longer than {} bytes", kTemplateFileBytesMax);
  }
  SourcesReader reader;
  const bool whole = nlohmann::json::sax_parse(json, &reader);
  RETURN_IF_ERROR(reader.status);
  CHECK(whole);
  return std::move(reader.sources);
}

}  // namespace motley
