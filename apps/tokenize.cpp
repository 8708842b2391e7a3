#include <cstdio>
#include <random>

#include "base/file.hpp"
#include "commands.hpp"

namespace motley::apps {
namespace {

constexpr size_t kPromptBytesMax = 256u << 20;

void print_ids(const std::vector<TokenId>& ids) {
  std::string line;
  for (const TokenId id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stdout);
}

}  // namespace

Result<std::string> read_prompt(const std::optional<std::string>& prompt, const std::optional<std::string>& file) {
  if (prompt.has_value() == file.has_value()) return invalid_argument("give one of --prompt and --prompt-file");
  if (prompt) return *prompt;
  return read_file(*file, kPromptBytesMax);
}

uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

Status tokenize(const TokenizeCommand& command) {
  ASSIGN_OR_RETURN(const std::string text, read_prompt(command.prompt, command.prompt_file));
  ASSIGN_OR_RETURN(const TextModel model, TextModel::load(command.model));
  if (!command.lines) {
    print_ids(model.tokenizer->encode(text, true, true));
    return ok_status();
  }
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    print_ids(model.tokenizer->encode(std::string_view(text).substr(begin, end - begin), true, true));
    begin = end + 1;
  }
  return ok_status();
}

}  // namespace motley::apps
