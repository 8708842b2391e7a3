#include "client/sse_parser.hpp"

namespace motley::client {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

}  // namespace

Status SseParser::keep(std::string_view part) {
  if (part.size() + line_.size() + data_.size() > kEventBytesMax) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "an event of the stream has more than {} bytes", kEventBytesMax);
  }
  line_ += part;
  return ok_status();
}

void SseParser::end_line(std::string_view line) {
  if (first_line_ && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  first_line_ = false;
  const size_t colon = line.find(':');
  if (line.substr(0, colon) != "data") return;  // a comment has an empty name
  std::string_view value = colon == std::string_view::npos ? "" : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += value;
  has_data_ = true;
}

Status SseParser::feed(std::string_view bytes, const std::function<bool(std::string_view data)>& take) {
  while (!bytes.empty()) {
    if (after_cr_ && bytes.front() == '\n') bytes.remove_prefix(1);
    after_cr_ = false;
    const size_t end = bytes.find_first_of("\r\n");
    RETURN_IF_ERROR(keep(bytes.substr(0, end)));
    if (end == std::string_view::npos) return ok_status();
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    const bool blank = line_.empty() || (first_line_ && line_ == kByteOrderMark);
    end_line(line_);
    line_.clear();
    if (!blank || !has_data_) continue;
    const bool more = take(data_);
    data_.clear();
    has_data_ = false;
    if (!more) return ok_status();
  }
  return ok_status();
}

}  // namespace motley::client
