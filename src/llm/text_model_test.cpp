// Whole models whose files contradict one another or themselves: every one is refused in one line that names the file,
// what in it is wrong, and the remedy.
#include "llm/text_model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "model/architecture.hpp"
#include "model/gguf_test_file.hpp"
#include "model/hf/directory_test_files.hpp"

namespace motley {
namespace {

using hf::testing_files::TestFolder;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;
namespace gguf = testing_files;
namespace files = hf::testing_files;

void expect_refused(const std::filesystem::path& path, const char* name, const std::vector<std::string>& says) {
  SCOPED_TRACE(name);
  const auto text = TextModel::load(path);
  ASSERT_FALSE(text.ok());
  const std::string message = text.error().message();
  EXPECT_THAT(message, StartsWith(path.string() + ": ")) << "the file";
  for (const std::string& part : says) EXPECT_THAT(message, HasSubstr(part));
  EXPECT_THAT(message,
              AnyOf(HasSubstr("get the model again"), HasSubstr("get it again"), HasSubstr("get the file again"),
                    HasSubstr("get the folder again"), HasSubstr("convert the model again"), HasSubstr("use a model"),
                    HasSubstr("use another"), HasSubstr("choose a")))
      << "the remedy";
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

// ---- GGUF ----

std::string architecture() { return std::string(architectures().front()->name); }
std::string key(std::string_view suffix) { return architecture() + "." + std::string(suffix); }

gguf::TestFile small_gguf() {
  gguf::TestFile file = gguf::small_model(architecture());
  file.set("tokenizer.ggml.pre", gguf::text("default"));
  return file;
}

struct BadGguf {
  const char* name;
  std::string says;
  std::function<void(gguf::TestFile&)> spoil;
};

const BadGguf kBadGguf[] = {
    {"HeadsTimesDimIsNotTheRows", "tensor 'blk.0.attn_q.weight'",
     [](auto& f) {
       f.set(key("attention.key_length"), gguf::u32(6));
       f.set(key("attention.value_length"), gguf::u32(6));
     }},
    {"KvHeadsTimesDimIsNotTheRows", "tensor 'blk.0.attn_k.weight'",
     [](auto& f) { f.set(key("attention.head_count_kv"), gguf::u32(2)); }},
    {"UnknownRope", "scaling.type'", [](auto& f) { f.set(key("rope.scaling.type"), gguf::text("spiral")); }},
    {"MoreTokensThanRows", "tokenizer.ggml.tokens",
     [](auto& f) {
       f.tensor("token_embd.weight") = {"token_embd.weight", {8, 4}, MOTLEY_F32, 128};
     }},
    {"MissingTensor", "tensor 'blk.0.ffn_up.weight': is missing",
     [](auto& f) { f.erase_tensor("blk.0.ffn_up.weight"); }},
    {"OverlappingTensors", "overlaps that of tensor", [](auto& f) { f.tensor("output_norm.weight").offset = 0; }},
    {"OffsetThatOverflows", "tensor 'output_norm.weight'",
     [](auto& f) { f.tensor("output_norm.weight").offset = ~uint64_t{0} - 31; }},
    {"ShapeThatOverflows", "tensor 'output_norm.weight'",
     [](auto& f) {
       f.tensor("output_norm.weight").dims = {int64_t{1} << 40, int64_t{1} << 40};
     }},
    {"TensorTwice", "tensor 'blk.0.attn_norm.weight' (byte ", [](auto& f) { f.add("blk.0.attn_norm.weight", {8}); }},
    {"KeyTwice", "stands twice", [](auto& f) { f.keys.push_back(f.keys.front()); }},
    {"MistypedKey", "block_count'", [](auto& f) { f.set(key("block_count"), gguf::text("1")); }},
    {"FewerExpertsThanSaid", "tensor 'blk.0.ffn_gate_inp.weight'",
     [](auto& f) {
       gguf::use_experts(&f, architecture());
       f.set(key("expert_count"), gguf::u32(8));
     }},
    {"MoreExpertsUsedThanThereAre", "expert_used_count'",
     [](auto& f) {
       gguf::use_experts(&f, architecture());
       f.set(key("expert_used_count"), gguf::u32(5));
     }},
    {"NestedArrays", "arrays of arrays",
     [](auto& f) { f.set("deep", gguf::array(GgufType::kArray, 1, gguf::raw(int32_t{9}))); }},
    {"UnknownTokenizer", "'sparrow'", [](auto& f) { f.set("tokenizer.ggml.model", gguf::text("sparrow")); }},
    {"MergeOfUnknownTokens", "merge", [](auto& f) { f.set("tokenizer.ggml.merges", gguf::texts({"a"})); }},
    {"TokenTwice", "are both 'a'",
     [](auto& f) {
       f.set("tokenizer.ggml.tokens", gguf::texts({"a", "a", "ab", "<s>", "</s>"}));
     }},
};

TEST(TextModel, GgufThatContradictsItself_IsRefusedWithFileKeyAndRemedy) {
  const TestFolder folder;
  for (const BadGguf& bad : kBadGguf) {
    gguf::TestFile file = small_gguf();
    bad.spoil(file);
    folder.write("m.gguf", file.bytes());
    expect_refused(folder.path() / "m.gguf", bad.name, {bad.says});
  }
}

TEST(TextModel, GgufThatIsWhole_Loads) {
  const TestFolder folder;
  folder.write("m.gguf", small_gguf().bytes());
  const auto text = TextModel::load(folder.path() / "m.gguf");
  ASSERT_TRUE(text.ok()) << text.error().to_string();
  EXPECT_EQ(text->tokenizer->size(), 5u);
}

// ---- Hugging Face directories ----

Json small_tokenizer() {
  return {{"added_tokens",
           {{{"id", 3}, {"content", "<s>"}, {"special", true}}, {{"id", 4}, {"content", "</s>"}, {"special", true}}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}}};
}

// A whole model, taken apart so that a test can spoil any file of it.
struct HfModel {
  Json config = files::small_config();
  std::vector<files::TestTensor> tensors = files::small_tensors();
  Json tokenizer = small_tokenizer();
  std::map<std::string, std::string> others;  // files as they are, instead of those above

  files::TestTensor& tensor(std::string_view name) { return files::find_tensor(tensors, name); }
  void write(const TestFolder& folder) const {
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) std::filesystem::remove(entry.path());
    folder.write("config.json", config.dump());
    folder.write("tokenizer.json", tokenizer.dump());
    folder.write("model.safetensors", files::safetensors(tensors));
    for (const auto& [name, bytes] : others) folder.write(name, bytes);
    if (others.contains("model.safetensors.index.json")) folder.erase("model.safetensors");
  }
};

std::string repeated(std::string_view text, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

// The file with its beginning put before it once more: {"a":1,...} becomes {"a":1,"a":1,...}.
std::string with_first_key_twice(const Json& object) {
  const std::string text = object.dump();
  const Json first = {{object.begin().key(), object.begin().value()}};
  return first.dump().substr(0, first.dump().size() - 1) + "," + text.substr(1);
}

struct BadDirectory {
  const char* name;
  std::vector<std::string> says;
  std::function<void(HfModel&)> spoil;
};

const std::string kLayer = "model.layers.0.";
constexpr const char* kIndex = "model.safetensors.index.json";

const BadDirectory kBadWeights[] = {
    {"HeadsTimesDimIsNotTheRows",
     {"'model.safetensors'", "self_attn.q_proj.weight"},
     [](auto& m) { m.config["head_dim"] = 6; }},
    {"KvHeadsTimesDimIsNotTheRows",
     {"'model.safetensors'", "self_attn.k_proj.weight"},
     [](auto& m) { m.config["num_key_value_heads"] = 2; }},
    {"UnknownRope",
     {"'config.json'", "key 'rope_scaling.rope_type'"},
     [](auto& m) {
       m.config["rope_scaling"] = {{"rope_type", "spiral"}};
     }},
    {"EmbeddingOfAnotherSize",
     {"'config.json': key 'vocab_size'", "model.embed_tokens.weight"},
     [](auto& m) { m.config["vocab_size"] = 6; }},
    {"MissingTensor",
     {"tensor 'model.layers.0.mlp.up_proj.weight': is missing"},
     [](auto& m) { std::erase_if(m.tensors, [](const auto& t) { return t.name == kLayer + "mlp.up_proj.weight"; }); }},
    {"OverlappingTensors",
     {"'model.safetensors'", "tensor 'b': its data overlaps"},
     [](auto& m) {
       m.others["model.safetensors"] = files::raw_safetensors(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
           "123");
     }},
    {"OffsetThatOverflows",
     {"'model.safetensors'", "tensor 'a'", "data_offsets"},
     [](auto& m) {
       m.others["model.safetensors"] =
           files::raw_safetensors(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,18446744073709551615]}})", "12");
     }},
    {"ShapeThatOverflows",
     {"'model.safetensors'", "tensor 'a'", "too many elements"},
     [](auto& m) {
       m.others["model.safetensors"] =
           files::raw_safetensors(R"({"a":{"dtype":"U8","shape":[4611686018427387904,8],"data_offsets":[0,2]}})", "12");
     }},
    {"TensorTwice",
     {"'model.safetensors'", "'a' stands twice"},
     [](auto& m) {
       m.others["model.safetensors"] = files::raw_safetensors(
           R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
           "");
     }},
    {"FewerExpertsThanSaid",
     {"'blk.0.ffn_gate_exps': expert 1 of 2 is missing"},
     [](auto& m) {
       m.config["architectures"] = {"MixtralForCausalLM"};
       m.config["num_local_experts"] = 2;
       m.config["num_experts_per_tok"] = 1;
       std::erase_if(m.tensors, [](const auto& t) { return t.name.find(".mlp.") != std::string::npos; });
       const std::string moe = kLayer + "block_sparse_moe.";
       m.tensors.push_back(files::f32_tensor(moe + "gate.weight", {2, 8}));
       m.tensors.push_back(files::f32_tensor(moe + "experts.0.w1.weight", {12, 8}));
     }},
    {"MoreExpertsUsedThanThereAre",
     {"'config.json'", "key 'num_experts_per_tok'"},
     [](auto& m) {
       m.config["num_experts"] = 2;
       m.config["num_experts_per_tok"] = 3;
     }},
    {"IndexNamesAMissingFile",
     {"'model-1.safetensors'", kIndex},
     [](auto& m) { m.others[kIndex] = R"({"weight_map":{"a":"model-1.safetensors"}})"; }},
    {"IndexLeadsUp",
     {kIndex, "key 'weight_map', tensor 'a'", "'../m.safetensors'"},
     [](auto& m) { m.others[kIndex] = R"({"weight_map":{"a":"../m.safetensors"}})"; }},
    {"IndexIsAbsolute",
     {kIndex, "key 'weight_map', tensor 'a'", "'/m.safetensors'"},
     [](auto& m) { m.others[kIndex] = R"({"weight_map":{"a":"/m.safetensors"}})"; }},
    {"IndexHasATensorTwice",
     {kIndex, "'a' stands twice"},
     [](auto& m) { m.others[kIndex] = R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})"; }},
    {"IndexIsDeep", {kIndex, "nested deeper"}, [](auto& m) { m.others[kIndex] = repeated("{\"weight_map\":", 10000); }},
};

const BadDirectory kBadTexts[] = {
    {"MistypedKey", {"'config.json'", "key 'hidden_size': is a text"}, [](auto& m) { m.config["hidden_size"] = "8"; }},
    {"ConfigHasAKeyTwice",
     {"'config.json'", "'architectures' stands twice"},
     [](auto& m) { m.others["config.json"] = with_first_key_twice(m.config); }},
    {"ConfigIsDeep",
     {"'config.json'", "nested deeper"},
     [](auto& m) { m.others["config.json"] = repeated("{\"a\":", 10000); }},
    {"ConfigIsCutOff",
     {"'config.json'", "is not JSON"},
     [](auto& m) { m.others["config.json"] = m.config.dump().substr(0, 100); }},
    {"EndTokenBeyondTheVocabulary",
     {"'config.json'", "key 'eos_token_id'"},
     [](auto& m) { m.config["eos_token_id"] = 5; }},
    {"TokenizerHasMoreTokensThanRows",
     {"tokenizer.json", "token 'c' has the id 5", "'vocab_size' of config.json is 5"},
     [](auto& m) { m.tokenizer["model"]["vocab"]["c"] = 5; }},
    {"TokenizersEndIsBeyondTheRows",
     {"tokenizer.json", "token '<|im_end|>' has the id 5", "'vocab_size' of config.json is 5"},
     [](auto& m) {
       m.tokenizer["added_tokens"].push_back({{"id", 5}, {"content", "<|im_end|>"}, {"special", true}});
     }},
    {"TwoTokensOfOneId",
     {"tokenizer.json", "both have the id 2"},
     [](auto& m) { m.tokenizer["model"]["vocab"]["c"] = 2; }},
    {"TokenizerHasAKeyTwice",
     {"tokenizer.json", "key 'added_tokens' twice"},
     [](auto& m) { m.others["tokenizer.json"] = with_first_key_twice(m.tokenizer); }},
    {"TokenizerHasTwoVocabularies",
     {"tokenizer.json", "key 'vocab' twice"},
     [](auto& m) {
       m.others["tokenizer.json"] = R"({"model":{"type":"BPE","vocab":{"a":0},"vocab":{"b":1},"merges":[]}})";
     }},
    {"TokenizerIsDeep",
     {"tokenizer.json", "levels of nesting"},
     [](auto& m) { m.others["tokenizer.json"] = repeated("{\"a\":", 10000); }},
    {"TokenizerNestsItsSteps",
     {"tokenizer.json", "nested too deeply"},
     [](auto& m) {
       Json step = {{"type", "Sequence"}, {"pretokenizers", Json::array()}};
       for (int i = 0; i < 6; ++i) step = {{"type", "Sequence"}, {"pretokenizers", {step}}};
       m.tokenizer["pre_tokenizer"] = step;
     }},
    {"TokenizerIsCutOff",
     {"tokenizer.json", "not valid JSON"},
     [](auto& m) { m.others["tokenizer.json"] = m.tokenizer.dump().substr(0, 50); }},
    {"MergeOfUnknownTokens", {"tokenizer.json", "merge"}, [](auto& m) { m.tokenizer["model"]["merges"] = {"a z"}; }},
    {"BosThatIsNoToken",
     {"bos_token of tokenizer_config.json is '<bos>'"},
     [](auto& m) { m.others["tokenizer_config.json"] = R"({"bos_token":"<bos>"})"; }},
    {"TokenizerConfigHasAKeyTwice",
     {"tokenizer_config.json", "key 'eos_token' twice"},
     [](auto& m) { m.others["tokenizer_config.json"] = R"({"eos_token":"<s>","eos_token":"</s>"})"; }},
};

void expect_all_refused(std::span<const BadDirectory> cases) {
  for (const BadDirectory& bad : cases) {
    const TestFolder folder;
    HfModel model;
    bad.spoil(model);
    model.write(folder);
    expect_refused(folder.path(), bad.name, bad.says);
  }
}

TEST(TextModel, WeightsThatContradictTheConfig_AreRefusedWithFileKeyAndRemedy) { expect_all_refused(kBadWeights); }
TEST(TextModel, ConfigsAndTokenizersThatContradict_AreRefusedWithFileKeyAndRemedy) { expect_all_refused(kBadTexts); }

TEST(TextModel, DirectoryThatIsWhole_Loads) {
  const TestFolder folder;
  HfModel model;
  // Beyond the embedding lies the spelling of an image, which no text can give.
  model.tokenizer["added_tokens"].push_back({{"id", 5}, {"content", "<image>"}, {"special", true}});
  model.write(folder);
  const auto text = TextModel::load(folder.path());
  ASSERT_TRUE(text.ok()) << text.error().to_string();
  EXPECT_EQ(text->tokenizer->size(), 6u);
}

TEST(TextModel, DamagedTemplateFile_IsNamedWithARemedy) {
  TokenizerData data;
  data.chat_template_json = R"({"chat_template":1})";
  const auto sources = template_sources(data);
  ASSERT_FALSE(sources.ok());
  EXPECT_THAT(sources.error().message(), StartsWith("chat_template.json: \"chat_template\": "));
  EXPECT_THAT(sources.error().message(), HasSubstr("; get the model again"));
}

}  // namespace
}  // namespace motley
