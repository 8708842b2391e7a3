// Pieces of SVG documents, as text. Pure; thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace motley {

// Whatever the text is, nothing in it becomes markup.
std::string svg_escaped(std::string_view text);
// A line of text; `more`: further attributes, as they are to stand there.
std::string svg_text(double x, double y, std::string_view text, std::string_view more = "");
std::string svg_rect(double x, double y, double width, double height, std::string_view fill);
// A whole document: a white page of that size with `body` on it.
std::string svg_document(double width, double height, std::string_view body);
// Colours that can be told apart, over and over.
std::string_view svg_colour(size_t i);

}  // namespace motley
