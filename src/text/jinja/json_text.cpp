// tojson: the text that Python's json.dumps writes.
#include <algorithm>
#include <cmath>

#include "text/jinja/builtin.hpp"
#include "text/jinja/unicode.hpp"

namespace motley::jinja {
namespace {

using Type = Value::Type;
using Kind = Sequence::Kind;

class Writer {
 public:
  Writer(Interpreter& in, const JsonStyle& style) : in_(in), style_(style) {}

  void write(const Value& v, size_t level) {
    in_.charge(1);
    if (out.size() > in_.limits().text_bytes) in_.charge_text(out.size());
    switch (v.type()) {
      case Type::kNone: return out.append("null", true);
      case Type::kBool: return out.append(v.boolean() ? "true" : "false", true);
      case Type::kInt: return out.append(std::to_string(v.integer()), true);
      case Type::kFloat: return out.append(number(v.number()), true);
      case Type::kString: return write_string(v.text());
      case Type::kDict: return write_dict(v.dict(), level);
      case Type::kSequence:
        if (v.sequence().kind == Kind::kList || v.sequence().kind == Kind::kTuple)
          return write_list(v.sequence(), level);
        break;
      default: break;
    }
    fail("Object of type {} is not JSON serializable", type_name(v));
  }

  MarkedText out;

 private:
  static std::string number(double v) {
    if (std::isnan(v)) return "NaN";
    if (std::isinf(v)) return v < 0 ? "-Infinity" : "Infinity";
    return float_repr(v);
  }

  void escape(std::string& piece, char32_t c, std::string_view bytes) const {
    switch (c) {
      case '"': piece += "\\\""; return;
      case '\\': piece += "\\\\"; return;
      case '\n': piece += "\\n"; return;
      case '\r': piece += "\\r"; return;
      case '\t': piece += "\\t"; return;
      case '\b': piece += "\\b"; return;
      case '\f': piece += "\\f"; return;
      default: break;
    }
    if (c >= 0x20 && (c <= 0x7F || !style_.ascii))
      piece += bytes;
    else if (c < 0x10000)
      piece += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    else
      piece += fmt::format("\\u{:04x}\\u{:04x}", static_cast<uint32_t>(0xD800 + ((c - 0x10000) >> 10)),
                           static_cast<uint32_t>(0xDC00 + ((c - 0x10000) & 0x3FF)));
  }

  void write_string(const MarkedText& s) {
    in_.charge(s.size() / 16);
    out.append("\"", true);
    size_t pos = 0;
    for (const MarkedText::Run& run : s.runs()) {
      std::string piece;
      while (pos < run.end) {
        size_t n = char_length(s.view(), pos);
        escape(piece, code_point_at(s.view(), pos), s.view().substr(pos, n));
        pos += n;
      }
      out.append(piece, run.trusted);
    }
    out.append("\"", true);
  }

  void write_break(size_t level) {
    if (!style_.indent) return;
    out.append("\n", true);
    in_.charge(level);
    for (size_t i = 0; i < level; ++i) out.append(*style_.indent);
  }

  void write_list(const Sequence& s, size_t level) {
    if (s.items.empty()) return out.append("[]", true);
    out.append("[", true);
    for (size_t i = 0; i < s.items.size(); ++i) {
      if (i > 0) out.append(style_.item_separator);
      write_break(level + 1);
      write(s.items[i], level + 1);
    }
    write_break(level);
    out.append("]", true);
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_string(key.text());
    if (!key.is_number() && !key.is_none()) {
      fail("keys must be str, int, float, bool or None, not {}", type_name(key));
    }
    out.append("\"", true);
    write(key, 0);
    out.append("\"", true);
  }

  void write_dict(const Dict& dict, size_t level) {
    if (dict.size() == 0) return out.append("{}", true);
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      in_.charge(dict.shape().weight * 8);
      std::stable_sort(entries.begin(), entries.end(), [](auto* a, auto* b) { return less(a->first, b->first); });
    }
    out.append("{", true);
    bool first = true;
    for (const Dict::Entry* entry : entries) {
      if (!std::exchange(first, false)) out.append(style_.item_separator);
      write_break(level + 1);
      write_key(entry->first);
      out.append(style_.key_separator);
      write(entry->second, level + 1);
    }
    write_break(level);
    out.append("}", true);
  }

  Interpreter& in_;
  const JsonStyle& style_;
};

}  // namespace

MarkedText to_json(Interpreter& in, const Value& v, const JsonStyle& style) {
  Writer writer(in, style);
  writer.write(v, 0);
  return std::move(writer.out);
}

}  // namespace motley::jinja
