// Regex: the regular expressions of tokenizer files, run by PCRE2.
//
// They are written for Oniguruma (Ruby's syntax), so \s is White_Space, \w any letter, mark, decimal digit, connector
// and some other numbers, \h a hexadecimal digit, ^ and $ match at every line, and X{1,3}+ is (X{1,3})+. Matching is
// bounded (kMatchStepsMax); a search that exceeds it finds nothing. Immutable; safe from any thread: each uses a
// Scratch of its own.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "base/status.hpp"

namespace motley {

class Regex {
 public:
  class Scratch {
   public:
    Scratch();
    ~Scratch();

   private:
    friend class Regex;
    struct Impl;
    std::unique_ptr<Impl> impl_;  // made at the first search
  };

  // INVALID_ARGUMENT (where) for what PCRE2 does not take, is too long, or means something else to Oniguruma.
  static Result<std::unique_ptr<Regex>> create(std::string_view pattern);
  ~Regex();

  // [begin, end) of the first match at or after `from`. Bytes that are no UTF-8 match nothing.
  std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from, Scratch& scratch) const;

 private:
  struct Impl;
  explicit Regex(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace motley
