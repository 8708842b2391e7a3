// StopSet: the stop strings of a request, made ready to be looked for in text that comes byte by byte (Knuth, Morris
// and Pratt's automaton, one a string). Immutable after creation; safe from any thread: all choices of a request share
// one, and each keeps only its Matches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace motley {

class StopSet {
 public:
  // How many bytes of each stop string the text so far ends with. Begins with one 0 a string: matches().
  using Matches = std::vector<uint32_t>;

  // Empty stop strings, and those that are not valid UTF-8 (which no shown text contains), do not count.
  explicit StopSet(std::span<const std::string> stop);

  bool empty() const { return stops_.empty(); }
  Matches matches() const { return Matches(stops_.size(), 0); }
  // Takes the text's next byte. The longest stop string that ends there, which then lives as long as this set; or null.
  const std::string* advance(Matches& matches, char byte) const;

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> border;  // [i]: the longest proper prefix of text[0..i] that also ends it
  };
  std::vector<Stop> stops_;
};

}  // namespace motley
