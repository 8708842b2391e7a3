#include <algorithm>
#include <cstdio>
#include <random>

#include "base/file.hpp"
#include "commands.hpp"
#include "server/json_input.hpp"

namespace motley::apps {
namespace {

constexpr size_t kPromptBytesMax = 256u << 20;

void print_ids(const std::vector<TokenId>& ids) {
  std::string line;
  for (const TokenId id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stdout);
}

// As the server judges its bodies: a text of which bytes would be dropped is refused.
Status check_utf8(const std::string& name, std::string_view text) {
  const size_t good = utf8_valid_prefix(text);
  if (good == text.size()) return ok_status();
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(good), '\n');
  return invalid_argument("{}: not valid UTF-8 at byte {}, in line {}", name, good, line);
}

}  // namespace

Result<std::string> read_prompt(const std::optional<std::string>& prompt, const std::optional<std::string>& file) {
  if (prompt.has_value() == file.has_value()) return invalid_argument("give one of --prompt and --prompt-file");
  std::string text;
  if (prompt) {
    text = *prompt;
  } else {
    ASSIGN_OR_RETURN(text, read_file(*file, kPromptBytesMax));
  }
  RETURN_IF_ERROR(check_utf8(prompt ? "--prompt" : *file, text));
  return text;
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
