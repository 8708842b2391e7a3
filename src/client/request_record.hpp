// What was seen of one request. Values; seconds unless a name says otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace motley::client {

struct RequestRecord {
  bool success = false;
  std::string error;            // one line; "" for a success
  double start_s = 0;           // when it was sent, after the beginning of the run
  double client_queue_s = 0;    // from its arrival to start_s: how long --max-concurrency held it back
  double ttft_s = 0;            // from start_s to the first token's chunk
  double latency_s = 0;         // from start_s to the last chunk with a choice
  std::vector<double> itl_s;    // the gaps between such chunks
  uint64_t prompt_tokens = 0;   // as the server counts them, else as they were sent
  uint64_t output_tokens = 0;   // as the server counts them, else the chunks that may carry a token
  bool server_counted = false;  // output_tokens is of the server's `usage`
  std::string text;             // what was generated
};

}  // namespace motley::client
