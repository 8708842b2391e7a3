// The C border of a plugin: argument checks, and exceptions turned into codes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>

#include "kit/kit.hpp"

namespace motley::kit {

inline void set_error(motley_error* error, motley_code code, const char* text) {
  if (!error) return;
  error->code = code;
  std::snprintf(error->text, sizeof error->text, "%s", text);
}

// Runs `body`; what it throws becomes a code and a text.
template <class Body>
motley_code guard(motley_error* error, Body&& body) noexcept {
  try {
    body();
    return MOTLEY_OK;
  } catch (const Error& e) {
    set_error(error, e.code(), e.what());
    return e.code();
  } catch (const std::bad_alloc&) {
    set_error(error, MOTLEY_RESOURCE_EXHAUSTED, "out of memory");
    return MOTLEY_RESOURCE_EXHAUSTED;
  } catch (const std::system_error& e) {  // a queue's thread
    const bool scarce = e.code() == std::errc::resource_unavailable_try_again;
    const motley_code code = scarce ? MOTLEY_RESOURCE_EXHAUSTED : MOTLEY_INTERNAL;
    set_error(error, code, scarce ? "the system gives no more threads" : e.what());
    return code;
  } catch (const std::exception& e) {
    set_error(error, MOTLEY_INTERNAL, e.what());
    return MOTLEY_INTERNAL;
  }
}

template <class... T>
void need(const T*... pointers) {
  const bool given = (... && (pointers != nullptr));
  if (!given) fail(MOTLEY_INVALID_ARGUMENT, "a required argument is null");
}

template <class T>
void sized(const T& s, const char* what) {
  if (s.struct_size < sizeof(T))
    fail(MOTLEY_INVALID_ARGUMENT, "%s: struct_size is %u, not %zu", what, s.struct_size, sizeof(T));
}

// Writes what the caller's struct_size holds (0 counts as whole: an output the caller did not stamp).
template <class T>
void put(T* out, T value) {
  const size_t size = out->struct_size == 0 || out->struct_size > sizeof(T) ? sizeof(T) : out->struct_size;
  value.struct_size = static_cast<uint32_t>(size);
  std::memcpy(out, &value, size);
}

}  // namespace motley::kit
