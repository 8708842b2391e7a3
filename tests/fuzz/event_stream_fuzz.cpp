// A server's streamed answer: the first byte says which API and how long the pieces are in which the rest comes. The
// record is the same however it is cut, sound, and of a failure it says why on one line.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "client/answer_reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using motley::client::ApiKind;
using motley::client::RequestRecord;

RequestRecord read(ApiKind kind, std::string_view bytes, size_t piece) {
  RequestRecord record;
  motley::client::AnswerReader reader(kind, record);
  reader.on_head(200, "OK");
  for (double now_s = 1; !bytes.empty(); now_s += 1) {
    const size_t length = std::min(piece, bytes.size());
    if (!reader.on_body(bytes.substr(0, length), now_s)) break;
    bytes.remove_prefix(length);
  }
  reader.on_end(motley::ok_status());
  return record;
}

void check(const RequestRecord& record) {
  CHECK(record.success == record.error.empty(), "{}", record.error);
  CHECK(record.error.find('\n') == std::string::npos, "{}", record.error);
  CHECK(record.latency_s >= record.ttft_s && record.ttft_s >= 0, "{} {}", record.ttft_s, record.latency_s);
  for (const double gap : record.itl_s) CHECK(gap >= 0, "{}", gap);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const ApiKind kind = (data[0] & 1) != 0 ? ApiKind::kChat : ApiKind::kCompletion;
  const RequestRecord whole = read(kind, bytes, bytes.size() + 1), cut = read(kind, bytes, 1 + data[0] / 2);
  check(whole);
  check(cut);
  CHECK(whole.error == cut.error, "{} / {}", whole.error, cut.error);
  CHECK(whole.text == cut.text && whole.itl_s.size() == cut.itl_s.size());
  CHECK(whole.output_tokens == cut.output_tokens && whole.prompt_tokens == cut.prompt_tokens);
  (void)motley::client::error_text(bytes);
  return 0;
}
