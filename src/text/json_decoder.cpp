#include "text/json_decoder.hpp"

#include "text/json_fields.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;

constexpr size_t kReplacementsMax = 16;
constexpr size_t kReplacementBytesMax = 64;
constexpr size_t kGrowthMax = 4;  // when a spelling is this many times as long (and a little), it is replaced no more

class DecoderReader {
 public:
  Status read(const Json& node, int depth) {
    const JsonFields fields(node, "decoder");
    ASSIGN_OR_RETURN(const std::string type, fields.string("type"));
    if (type == "Sequence") {
      ASSIGN_OR_RETURN(const Json* const list, fields.list("decoders", depth));
      for (const Json& each : *list) RETURN_IF_ERROR(read(each, depth + 1));
      return ok_status();
    }
    if (type == "ByteFallback") return ok_status();  // byte tokens are bytes whatever stands here
    if (type == "ByteLevel") {
      out.byte_level = true;
      return ok_status();
    }
    if (type == "Fuse") {
      fused_ = true;
      return ok_status();
    }
    if (type == "Replace") return read_replace(fields);
    if (type == "Strip") return read_strip(fields);
    if (type == "Metaspace") return read_metaspace(fields);
    return fields.unknown_type(type, "ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, Sequence");
  }
  JsonDecoder out;

 private:
  Status add_replacement(const JsonFields& fields, const char* key, std::string what, std::string with,
                         bool dropped_in_first = false) {
    if (what.empty()) return fields.wrong(key, "is empty");
    if (out.replacements.size() == kReplacementsMax) return fields.unsupported(key, "is one of too many replacements");
    if (with.size() > kReplacementBytesMax) return fields.unsupported("content", "is longer than is supported");
    out.replacements.push_back({std::move(what), std::move(with), dropped_in_first});
    return ok_status();
  }
  Status read_replace(const JsonFields& fields) {
    ASSIGN_OR_RETURN(JsonFields::Pattern pattern, fields.pattern());
    ASSIGN_OR_RETURN(std::string with, fields.string("content"));
    if (pattern.is_regex) return fields.unsupported("pattern", "is a regular expression, which is not supported");
    return add_replacement(fields, "pattern", std::move(pattern.text), std::move(with));
  }
  Status read_strip(const JsonFields& fields) {
    ASSIGN_OR_RETURN(const std::string content, fields.string("content"));
    const Json start = fields.has("start") ? fields["start"] : Json(0),
               stop = fields.has("stop") ? fields["stop"] : Json(0);
    if (content != " " || stop != 0 || (start != 0 && start != 1)) {
      return fields.unsupported("content", "(Strip) is not one space at the beginning of the text");
    }
    if (!fused_) return fields.unsupported("type", "is Strip before Fuse, which is not supported");
    out.strips_leading_space = out.strips_leading_space || start == 1;
    return ok_status();
  }
  Status read_metaspace(const JsonFields& fields) {
    ASSIGN_OR_RETURN(std::string mark, fields.string("replacement", kSpaceMark));
    ASSIGN_OR_RETURN(const bool legacy_prefix, fields.boolean("add_prefix_space", true));
    ASSIGN_OR_RETURN(const std::string scheme, fields.string("prepend_scheme", legacy_prefix ? "always" : "never"));
    return add_replacement(fields, "replacement", std::move(mark), " ", scheme != "never");
  }

  bool fused_ = false;
};

}  // namespace

Result<JsonDecoder> read_json_decoder(const Json& node) {
  if (node.is_null()) {
    return error(MOTLEY_UNIMPLEMENTED, "decoder is null, which is not supported; take the model as GGUF instead");
  }
  DecoderReader reader;
  RETURN_IF_ERROR(reader.read(node, 0));
  return std::move(reader.out);
}

TokenTable::Speller speller_of(const JsonDecoder& decoder, bool first) {
  if (decoder.byte_level) return spell_byte_alphabet;
  return [replacements = decoder.replacements, first](std::string_view piece, TokenType, std::string& out) {
    std::string text(piece);
    for (const auto& [what, with, dropped_in_first] : replacements) {
      if (text.size() > piece.size() * kGrowthMax + kReplacementBytesMax) break;
      std::string next;
      size_t done = 0;
      for (size_t at = text.find(what); at != text.npos; at = text.find(what, done)) {
        next.append(text, done, at - done).append(first && dropped_in_first ? "" : with);
        done = at + what.size();
      }
      text = next.append(text, done);
    }
    if (text == piece) return false;
    out += text;
    return true;
  };
}

}  // namespace motley
