// Continues a text and shows the answer as it grows: complete MODEL TEXT
#include <iostream>
#include <motley/llm.hpp>

int main(int argc, char** argv) try {
  if (argc != 3) throw motley::Error(MOTLEY_INVALID_ARGUMENT, "usage: complete MODEL TEXT");
  motley::LLM llm({.model = argv[1]});
  motley::Run run = llm.start({argv[2]}, {.temperature = 0, .max_tokens = 32});
  while (const auto news = run.next()) std::cout << news->outputs[0].text << std::flush;
  std::cout << '\n';
  return 0;
} catch (const motley::Error& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
