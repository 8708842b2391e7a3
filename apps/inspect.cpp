#include "llm/inspect.hpp"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "planner/plan.hpp"

namespace motley::apps {
namespace {

using Json = nlohmann::ordered_json;

// Text from a file, fit for a terminal: control characters and broken UTF-8 as JSON escapes them, without the quotes.
std::string printable(const std::string& text) {
  const std::string quoted = Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2);
}

void row(std::string_view what, const std::string& value) {
  std::printf("%-14.*s%s\n", static_cast<int>(what.size()), what.data(), value.c_str());
}

std::string size_text(const ModelFacts::Size& size) {
  return size.least == size.most ? fmt::format("{}", size.most)
                                 : fmt::format("{} to {}, by layer", size.least, size.most);
}

std::string count_text(uint64_t count) {
  const auto value = static_cast<double>(count);
  if (count < 1'000'000) return fmt::format("{}", count);
  return count < 1'000'000'000 ? fmt::format("{} ({:.1f} million)", count, value * 1e-6)
                               : fmt::format("{} ({:.2f} billion)", count, value * 1e-9);
}

std::string verdict_text(const PartVerdict& verdict) {
  if (!verdict.status) return "not known, as the model does not load";
  return verdict.status->ok() ? "runs" : "no: " + verdict.status->message();
}

void print_table(const ModelReport& report) {
  const ModelFacts& facts = report.facts;
  row("format", fmt::format("{}, {}", facts.format, bytes_text(facts.file_bytes)));
  row("architecture", facts.architecture.empty() ? "not said" : printable(facts.architecture));
  row("name", facts.name.empty() ? "not said" : printable(facts.name));
  for (const ModelFacts::Size& size : facts.sizes) row(size.what, size_text(size));
  row("parameters", count_text(facts.parameters));
  for (const ModelFacts::WeightType& type : facts.weights) {
    row("weights", fmt::format("{:<8}{:>6} tensors {:>14} elements {:>11}{}", type.name, type.tensors, type.elements,
                               bytes_text(type.bytes), type.built ? "" : "   not built"));
  }
  row("tokenizer",
      facts.tokenizer_model.empty()
          ? "none"
          : fmt::format("{}, pre-tokenizer {}, {} tokens", printable(facts.tokenizer_model),
                        facts.tokenizer_pre.empty() ? "not said" : printable(facts.tokenizer_pre), facts.tokens));
  for (const ModelFacts::SpecialToken& token : facts.special_tokens) {
    row("token", fmt::format("{:<8}{:>6} {}", token.role, token.id, printable(token.text)));
  }
  row("chat template", facts.chat_template.empty()
                           ? "none"
                           : fmt::format("{} ({} bytes)", facts.chat_template_place, facts.chat_template.size()));
  for (const PartVerdict& verdict : report.verdicts) row("run " + std::string(verdict.part), verdict_text(verdict));
}

Json weights_json(const ModelFacts& facts) {
  Json list = Json::array();
  for (const ModelFacts::WeightType& type : facts.weights) {
    list.push_back({{"type", type.name},
                    {"tensors", type.tensors},
                    {"elements", type.elements},
                    {"bytes", type.bytes},
                    {"built", type.built}});
  }
  return list;
}

Json tokenizer_json(const ModelFacts& facts) {
  Json special = Json::object();
  for (const auto& token : facts.special_tokens) special[token.role] = {{"id", token.id}, {"text", token.text}};
  return {{"model", facts.tokenizer_model},
          {"pre", facts.tokenizer_pre},
          {"tokens", facts.tokens},
          {"special_tokens", std::move(special)}};
}

// runs: true, false, or null where it is not known.
Json verdict_json(const PartVerdict& verdict) {
  Json out = {{"runs", nullptr}, {"reason", nullptr}};
  if (!verdict.status) return out;
  out["runs"] = verdict.status->ok();
  if (!verdict.status->ok()) out["reason"] = verdict.status->message();
  return out;
}

void print_json(const ModelReport& report) {
  const ModelFacts& facts = report.facts;
  Json sizes = Json::object();
  for (const ModelFacts::Size& size : facts.sizes) {
    sizes[size.what] = size.least == size.most ? Json(size.most) : Json::array({size.least, size.most});
  }
  Json verdicts = Json::object();
  for (const PartVerdict& verdict : report.verdicts) verdicts[verdict.part] = verdict_json(verdict);
  const Json chat = {
      {"present", !facts.chat_template.empty()}, {"place", facts.chat_template_place}, {"source", facts.chat_template}};
  const Json out = {{"format", facts.format},
                    {"file_bytes", facts.file_bytes},
                    {"architecture", facts.architecture},
                    {"name", facts.name},
                    {"sizes", std::move(sizes)},
                    {"parameters", facts.parameters},
                    {"weights", weights_json(facts)},
                    {"tokenizer", tokenizer_json(facts)},
                    {"chat_template", chat},
                    {"runs", std::move(verdicts)}};
  std::printf("%s\n", out.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

}  // namespace

Status inspect(const InspectCommand& command) {
  ASSIGN_OR_RETURN(const ModelReport report, inspect_model(command.model));
  if (command.json) {
    print_json(report);
  } else {
    print_table(report);
  }
  return ok_status();
}

}  // namespace motley::apps
