// MarkedText: a string in which every byte knows whether the template's author wrote it (trusted) or a user did.
// A value type: copies are deep. Every operation of the engine that moves characters moves their marks with them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace motley::jinja {

class MarkedText {
 public:
  // Bytes [previous end, end) share one mark; neighbouring runs differ.
  struct Run {
    size_t end;
    bool trusted;
  };

  MarkedText() = default;
  MarkedText(std::string_view text, bool trusted) { append(text, trusted); }

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  const std::vector<Run>& runs() const { return runs_; }
  // pos < size().
  bool trusted_at(size_t pos) const;

  void append(std::string_view text, bool trusted);
  void append(const MarkedText& other) { append(other, 0, other.size()); }
  // Bytes [begin, end) of `other`, which is not *this.
  void append(const MarkedText& other, size_t begin, size_t end);
  MarkedText sub(size_t begin, size_t end) const;
  void reserve(size_t bytes) { bytes_.reserve(bytes); }

 private:
  size_t run_index(size_t pos) const;

  std::string bytes_;
  std::vector<Run> runs_;
};

}  // namespace motley::jinja
