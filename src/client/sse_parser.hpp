// SseParser: the bytes of a stream of server-sent events, in whatever pieces they come, to the data of each event
// (WHATWG HTML, "Interpreting an event stream"). Lines end with LF, CR LF or CR; comments and fields other than `data`
// are passed over; an event that the stream's end cuts off never comes out.
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.hpp"

namespace motley::client {

inline constexpr size_t kEventBytesMax = 16u << 20;  // of one event's data and an unfinished line

class SseParser {
 public:
  // Calls `take` with the data of each event that these bytes complete, in order. False from it: the rest of the bytes
  // is not looked at, and nothing more may be fed. RESOURCE_EXHAUSTED for an event beyond the limit: the same.
  Status feed(std::string_view bytes, const std::function<bool(std::string_view data)>& take);

 private:
  void end_line(std::string_view line);
  Status keep(std::string_view part);

  std::string line_, data_;
  bool has_data_ = false, after_cr_ = false, first_line_ = true;
};

}  // namespace motley::client
