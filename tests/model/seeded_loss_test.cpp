// Losses, each by its seed: an NPU, the partner that attends for it, or the owner of a section of its pool dies or
// hangs, at a step or in the middle of a move to another placement, KV and all, with one lane or several. The engine
// goes on with what is left, and no request notices.
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "base/config.hpp"
#include "device/registry.hpp"
#include "device/worker/worker_process.hpp"
#include "engine/engine.hpp"
#include "engine/testing/inbox.hpp"
#include "model/axes.hpp"
#include "model/random_model.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {
namespace {

constexpr uint32_t kBlockSize = 16, kBlocks = 32;
constexpr uint32_t kFirstBlocks = 1;  // of a pool with sections: of the first; what is as long as the last request
constexpr uint32_t kLastPrompt = 40;  // lies with both owners
constexpr uint32_t kRequests = 7;
constexpr int64_t kStepLimitNs = 500'000'000, kCallLimitNs = 3'000'000'000;
constexpr double kTie = 0.35;  // logits: tokens that were closer may change places where rounding differs

constexpr uint32_t kStepsBeside = 8;  // after a move is asked for: more than are in flight before the engine hears

// They end one by one: at every step that a fault may come at, somebody has KV.
uint32_t tokens_of(uint32_t request) { return 10 + 2 * request; }

make_model::ModelSpec spec() {
  make_model::ModelSpec spec;
  spec.type = "F16";
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 32;
  return spec;
}

constexpr const char *kNpu = "NPU", *kPartner = "D0", *kOther = "D1";

constexpr uint32_t kNpuDepth = 4;  // programs in a queue, as the preset has it

enum class Way {
  kAttended,  // the NPU has all of the layers, and its partner attends and has the vocabulary
  kShared,    // the NPU has columns, the other heads, vocabulary, and columns too
  kLanes,     // as kAttended; and a second lane, of its own pool, on the third device
  kRoles,     // prompts as kAttended; the partner alone decodes, in the same pool
  kSections,  // as kAttended; and the third device has a section of the pool
  kTurned,    // as kSections, the partner and the third device having changed places
};
constexpr uint32_t kWays = 6;
#ifdef MOTLEY_SANITIZED
constexpr size_t kEvery = 4;  // fault: there a worker takes seconds to come up
#else
constexpr size_t kEvery = 1;
#endif

enum class Instant {
  kStep,        // before a step is submitted
  kMoveBegins,  // before the next executor is made
  kMoveMakes,   // while it is made
  kMoveEnds,    // once it is made, before it serves
  kSaves,       // while KV is saved of the one before
  kLoads,       // while it is loaded
};
constexpr uint32_t kInstants = 6;

struct Fault {
  Way way, next;  // next: where the move goes, if it comes to one
  Instant instant;
  const char* victim;
  int signal;
  bool held;      // it is stopped before KV is moved, so that it dies in the middle if it has a part in that
  uint32_t step;  // the n-th to be submitted: there the fault comes, or the move begins
  uint32_t delay_us;
  bool late;  // of the KV that moves, all but one request's comes while steps run

  static Fault of(uint32_t seed, Way way, Instant instant, const char* victim) {
    std::mt19937 random(seed);
    Fault fault{};
    fault.way = way, fault.next = static_cast<Way>((static_cast<uint32_t>(way) + 1) % kWays);
    fault.instant = instant;
    fault.victim = victim;
    fault.signal = random() % 5 == 0 ? SIGSTOP : SIGKILL;
    // With roles an NPU has nothing to do once the last prompts are computed.
    fault.step = 1 + random() % (fault.way == Way::kRoles ? 8 : 18);
    fault.delay_us = random() % (fault.instant == Instant::kMoveMakes ? 30'000 : 1'500);
    fault.held = fault.signal == SIGKILL && random() % 2 == 0;
    fault.late = random() % 2 == 0;
    return fault;
  }
  // Every way with every instant and either of the two that all ways have; where both ends of a move have sections,
  // the third device, too.
  static std::vector<Fault> all() {
    std::vector<Fault> faults;
    for (uint32_t i = 0; i < kWays * kInstants; ++i) {
      const auto way = static_cast<Way>(i % kWays);
      for (const char* victim : {kNpu, kPartner, kOther}) {
        if (victim == kOther && way != Way::kSections) continue;
        faults.push_back(of(static_cast<uint32_t>(faults.size()), way, static_cast<Instant>(i / kWays), victim));
      }
    }
    return faults;
  }
  std::string text() const {
    return fmt::format("way {} instant {} victim {} signal {} held {} step {}", static_cast<int>(way),
                       static_cast<int>(instant), victim, signal, held, step);
  }
};

Shard shard(const ModelAxes& axes, const std::string& device, bool heads, int64_t column_begin, int64_t column_end,
            bool vocabulary) {
  Shard made;
  made.device = device;
  if (heads) made.kv_heads = {{0, axes.kv_heads}};
  if (column_begin < column_end) made.ffn_columns = {{column_begin, column_end}};
  if (vocabulary) made.vocab_rows = {{0, axes.vocab}};
  return made;
}

Lane lane_of(const Model& model, std::vector<Shard> shards) {
  Lane lane;
  lane.kv_blocks = kBlocks;
  Stage& stage = lane.stages.emplace_back();
  stage.layer_end = model.config().layers;
  stage.shards = std::move(shards);
  return lane;
}

Lane alone(const Model& model, const std::string& device) {
  const ModelAxes axes = axes_of(model);
  return lane_of(model, {shard(axes, device, true, 0, axes.ffn_columns, true)});
}

Lane attended(const Model& model, const char* partner = kPartner) {
  const ModelAxes axes = axes_of(model);
  Lane lane =
      lane_of(model, {shard(axes, kNpu, true, 0, axes.ffn_columns, false), shard(axes, partner, false, 0, 0, true)});
  lane.stages[0].shards[0].partner = partner;
  return lane;
}

Lane in_sections(const Model& model, const char* partner, const char* owner) {
  Lane lane = attended(model, partner);
  lane.kv_blocks = kFirstBlocks;
  lane.sections = {{owner, kBlocks}};
  return lane;
}

std::vector<Lane> lanes_of(const Model& model, Way way) {
  const ModelAxes axes = axes_of(model);
  if (way == Way::kAttended) return {attended(model)};
  if (way == Way::kSections) return {in_sections(model, kPartner, kOther)};
  if (way == Way::kTurned) return {in_sections(model, kOther, kPartner)};
  if (way == Way::kShared) {
    const int64_t cut = axes.ffn_columns / 2 / 32 * 32;
    return {lane_of(
        model, {shard(axes, kPartner, true, 0, cut, true), shard(axes, kNpu, false, cut, axes.ffn_columns, false)})};
  }
  std::vector<Lane> lanes = {attended(model), alone(model, way == Way::kLanes ? kOther : kPartner)};
  if (way == Way::kLanes) {
    lanes[1].pool = 1;
  } else {
    lanes[0].decodes = lanes[1].prefills = false;
  }
  return lanes;
}

// Whether it comes to hold within a minute.
bool soon(const std::function<bool()>& holds) {
  for (int ms = 0; ms < 60'000 && !holds(); ++ms) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return holds();
}

// The devices, each in a worker: those that a seed loses are opened anew for the next.
class Workers {
 public:
  Workers() : registry_(DeviceRegistry::scan(plugin_directory())) { open_missing(); }
  void open_missing() {
    for (const char* name : {kNpu, kPartner, kOther}) {
      if (const auto known = devices_.find(name); known != devices_.end() && !lost(name)) continue;
      devices_.erase(name);
      devices_.emplace(name, open(name));
    }
  }
  bool lost(const std::string& name) const { return devices_.at(name).worker()->wait_ended(0); }
  // Returns once it has taken effect: a thread may run on for as long as the one that takes the signal waits for a
  // core.
  void signal(const std::string& name, int number) const {
    const pid_t pid = devices_.at(name).worker()->pid();
    kill(pid, number);
    siginfo_t info;
    const int waited =
        waitid(P_PID, static_cast<id_t>(pid), &info, WNOWAIT | WEXITED | (number == SIGSTOP ? WSTOPPED : 0));
    CHECK(waited == 0 || errno == ECHILD);  // its end may have been taken note of
  }
  std::vector<NamedDevice> named() const {
    std::vector<NamedDevice> named;
    for (const auto& [name, device] : devices_) {
      if (!lost(name)) named.push_back({name, &device, {}, name == kNpu, name != kNpu, name == kNpu ? kNpuDepth : 0});
    }
    return named;
  }

 private:
  Device open(const std::string& name) const {
    WorkerOptions worker;
    worker.program = MOTLEY_BINARY_DIR "/tests/motley_test_worker";
    worker.device_name = name;
    worker.call_timeout_ns = kCallLimitNs;
    DeviceOptions options;
    options.threads = 1;
    auto device = Result<Device>(error(MOTLEY_NOT_FOUND, "none"));
    if (name == kNpu) {
      const auto entry = registry_.describe("SIM", "intel-npu-like");
      CHECK(entry.ok(), "{}", entry.error().message());
      worker.spec = "intel-npu-like";
      options.threads = 0;
      options.weight_formats = entry->description.desc.weight_dtypes;
      device = Device::open_isolated(entry->plugin->file(), entry->description.desc.index, options, worker);
    } else {
      device = Device::open_isolated(plugin_directory() / "cpu.so", 0, options, worker);
    }
    CHECK(device.ok(), "{}", device.error().message());
    return *std::move(device);
  }

  const DeviceRegistry registry_;
  std::map<std::string, Device> devices_;
};

struct Text {
  std::vector<SampledToken> tokens;
  RequestUpdate last;
};

struct Outcome {
  uint64_t recoveries = 0, moved = 0;
  uint32_t strikes = 0;
  uint32_t within = 0;  // of them, while a call that moves KV was under way
};

// One service of all requests, on one placement and, after the fault, on what is left.
class Service {
 public:
  Service(const Model& model, Workers* workers) : model_(model), workers_(*workers) {}
  ~Service() { engine_.reset(); }

  std::vector<Text> serve(const std::vector<Lane>& lanes, const Fault* fault) {
    fault_ = fault;
    auto first = make(lanes);
    CHECK(first.ok(), "{}", first.error().message());
    current_ = *std::move(first);
    EngineOptions options;
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 32;
    options.enable_prefix_caching = false;
    if (fault != nullptr && fault->late) options.kv_pause_ns = 1;
    auto engine =
        Engine::create(*current_, options, system_clock(), [this](const Status& why) { return recover(why); });
    CHECK(engine.ok(), "{}", engine.error().message());
    engine_ = *std::move(engine);
    std::vector<std::pair<RequestId, std::shared_ptr<Text>>> asked;
    std::vector<Text> texts;
    for (uint32_t i = 0; i + 1 < kRequests; ++i) asked.push_back(ask(i));
    for (uint32_t i = 0; i < kRequests; ++i) {
      // The last comes once the others have ended and the fault has come: whoever was lost is needed again.
      if (i + 1 == kRequests) {
        if (fault != nullptr) EXPECT_TRUE(soon([&] { return strikes_ > 0; })) << "no fault came";
        asked.push_back(ask(i));
      }
      inbox_.wait(asked[i].first);
      texts.push_back(std::move(*asked[i].second));
    }
    outcome_.recoveries = engine_->stats().recoveries;
    outcome_.moved = engine_->stats().kv_blocks_moved;
    outcome_.strikes = strikes_, outcome_.within = within_;
    return texts;
  }
  const Outcome& outcome() const { return outcome_; }

 private:
  // Strikes a moment later, if this is the instant.
  class Striker {
   public:
    Striker(Service* service, Instant instant) {
      const Fault* const fault = service->fault_;
      if (fault == nullptr || fault->instant != instant || service->begun_.exchange(true)) return;
      if (fault->held && instant >= Instant::kSaves) service->workers_.signal(fault->victim, SIGSTOP);
      thread_ = std::thread([this, service, fault] {
        std::this_thread::sleep_for(std::chrono::microseconds(fault->delay_us));
        if (under_way_) ++service->within_;
        service->strike();
      });
    }
    ~Striker() {
      if (thread_.joinable()) thread_.join();
    }
    Striker(const Striker&) = delete;
    Striker& operator=(const Striker&) = delete;
    void call_ended() { under_way_ = false; }

   private:
    std::atomic<bool> under_way_ = true;
    std::thread thread_;
  };

  // Hears of every step before it is submitted.
  class Watched : public Executor {
   public:
    Watched(Service* service, std::unique_ptr<RuntimeExecutor> inner) : service_(*service), inner_(std::move(inner)) {}
    ExecutorDescription describe() const override { return inner_->describe(); }
    Future<StepResult> submit(StepPlan plan) override {
      service_.step();
      return inner_->submit(std::move(plan));
    }
    Result<KvContents> save_kv(std::vector<KvBlock> blocks) override {
      auto saved = Result<KvContents>(error(MOTLEY_UNKNOWN, ""));
      {
        Striker striker(&service_, Instant::kSaves);
        saved = inner_->save_kv(std::move(blocks));
        striker.call_ended();
      }
      service_.goes_on_ = true;
      return saved;
    }
    Result<KvLoaded> load_kv(std::shared_ptr<const KvContents> contents, std::vector<KvMove> moves) override {
      Striker striker(&service_, Instant::kLoads);
      auto loaded = inner_->load_kv(std::move(contents), std::move(moves));
      striker.call_ended();
      return loaded;
    }
    std::vector<LostDevice> lost_devices() const { return inner_->lost_devices(); }

   private:
    Service& service_;
    std::unique_ptr<RuntimeExecutor> inner_;
  };

  std::pair<RequestId, std::shared_ptr<Text>> ask(uint32_t i) {
    auto text = std::make_shared<Text>();
    Request request = testing::request_of(inbox_, {}, tokens_of(i));
    std::mt19937 random(i);
    request.prompt.resize(i + 1 == kRequests ? kLastPrompt : 5 + random() % 30);
    for (TokenId& id : request.prompt) id = static_cast<TokenId>(3 + random() % 250);
    request.params.temperature = 0;
    request.params.logprobs = 2;
    request.params.ignore_eos = true;
    request.on_update = [text, hear = inbox_.sink()](RequestUpdate update) {
      text->tokens.insert(text->tokens.end(), update.tokens.begin(), update.tokens.end());
      text->last = update;
      hear(std::move(update));
    };
    const auto id = engine_->submit(std::move(request));
    CHECK(id.ok(), "{}", id.error().message());
    return {*id, text};
  }

  Result<std::unique_ptr<Watched>> make(std::vector<Lane> lanes) {
    Placement placement;
    placement.epoch = ++epoch_;
    placement.block_size = kBlockSize;
    placement.kv_dtype = MOTLEY_F32;
    placement.lanes = std::move(lanes);
    RuntimeOptions options;
    options.rows_max = 32;
    options.logit_rows_max = 8;
    options.step_limit_ns = [](double, double) { return kStepLimitNs; };
    options.kv_limit_ns = kStepLimitNs;
    ASSIGN_OR_RETURN(auto runtime, RuntimeExecutor::create(model_, placement, workers_.named(), options));
    return std::make_unique<Watched>(this, std::move(runtime));
  }

  void strike() {
    workers_.signal(fault_->victim, fault_->signal);
    ++strikes_;
  }

  void step() {
    if (fault_ == nullptr) return;
    // KV is saved beside steps, and all requests might end before it is: the move is to find some under way.
    if (steps_ == fault_->step + kStepsBeside && fault_->instant != Instant::kStep)
      EXPECT_TRUE(soon([&] { return goes_on_.load(); })) << "no move came";
    if (++steps_ != fault_->step) return;
    if (fault_->instant == Instant::kStep) return strike();
    static_cast<void>(engine_->replace([this] { return move(); }));
  }

  // To another placement of the same devices.
  Result<Executor*> move() {
    goes_on_ = true;
    if (fault_->instant == Instant::kMoveBegins) strike();
    auto made = Result<std::unique_ptr<Watched>>(error(MOTLEY_UNKNOWN, ""));
    {
      const Striker striker(this, Instant::kMoveMakes);
      made = make(lanes_of(model_, fault_->next));
    }
    if (!made.ok()) return made.error();
    if (fault_->instant == Instant::kMoveEnds) strike();
    current_ = *std::move(made);
    return current_.get();
  }

  Result<Executor*> recover(const Status& why) {
    const std::vector<LostDevice> lost = current_->lost_devices();
    EXPECT_EQ(lost.size(), 1u) << why.message();
    for (const LostDevice& each : lost) EXPECT_EQ(each.name, fault_->victim) << why.message();
    current_.reset();
    const std::string left = fault_->victim == std::string_view(kPartner) ? kOther : kPartner;
    ASSIGN_OR_RETURN(current_, make({alone(model_, left)}));
    return current_.get();
  }

  const Model& model_;
  Workers& workers_;
  const Fault* fault_ = nullptr;
  testing::Inbox inbox_;
  Epoch epoch_ = 0;
  uint32_t steps_ = 0;  // the engine's thread's
  Outcome outcome_;
  std::atomic<bool> begun_ = false;    // to strike
  std::atomic<bool> goes_on_ = false;  // after the steps beside which KV is saved
  std::atomic<uint32_t> strikes_ = 0, within_ = 0;
  std::unique_ptr<Watched> current_;
  std::unique_ptr<Engine> engine_;
};

// Tokens that are the same, up to the first that was as good as undecided.
size_t same_tokens(const Text& got, const Text& want) {
  EXPECT_TRUE(got.last.status.ok()) << got.last.status.message();
  EXPECT_EQ(got.last.finished, FinishReason::kLength);
  EXPECT_EQ(got.tokens.size(), want.tokens.size());
  for (size_t i = 0; i < std::min(got.tokens.size(), want.tokens.size()); ++i) {
    if (got.tokens[i].id == want.tokens[i].id) continue;
    const auto& top = want.tokens[i].top;
    EXPECT_LT(top.at(0).logprob - top.at(1).logprob, kTie) << "token " << i;
    return i;
  }
  return want.tokens.size();
}

TEST(SeededLoss, NoRequestNotices) {
  const testing::RandomModel random(spec());
  Workers workers;
  const std::vector<Text> want = Service(random.model(), &workers).serve({alone(random.model(), kOther)}, nullptr);
  std::set<TokenId> different;
  size_t tokens = 0;  // of all services
  const std::vector<Fault> each = Fault::all();
  std::vector<Fault> all;
  for (size_t i = 0; i < each.size(); i += kEvery) all.push_back(each[i]);
  for (uint32_t i = 0; i < kRequests; ++i) {
    ASSERT_EQ(want[i].tokens.size(), tokens_of(i));
    tokens += tokens_of(i) * all.size();
    for (const SampledToken& token : want[i].tokens) different.insert(token.id);
  }
  ASSERT_GE(different.size(), 12u) << "texts that say nothing";
  size_t same = 0, moved = 0;
  std::map<Instant, std::map<std::string, size_t>> faults;
  std::map<Instant, size_t> within;
  for (size_t seed = 0; seed < all.size(); ++seed) {
    const Fault& fault = all[seed];
    SCOPED_TRACE(fmt::format("seed {}: {}", seed, fault.text()));
    {
      Service service(random.model(), &workers);
      const std::vector<Text> got = service.serve(lanes_of(random.model(), fault.way), &fault);
      for (size_t i = 0; i < want.size(); ++i) same += same_tokens(got[i], want[i]);
      EXPECT_EQ(service.outcome().recoveries, 1u);
      EXPECT_EQ(service.outcome().strikes, 1u);
      moved += service.outcome().moved;
      within[fault.instant] += service.outcome().within;
    }
    faults[fault.instant][fault.victim] += 1;
    EXPECT_TRUE(workers.lost(fault.victim));
    workers.open_missing();
  }
  for (const auto& [instant, victims] : faults)
    std::printf("instant %d: %s\n", static_cast<int>(instant), fmt::format("{}", fmt::join(victims, ", ")).c_str());
  std::printf(
      "%zu faults, %zu within a save and %zu within a load; %zu of %zu tokens equal before a tie; %zu blocks of "
      "KV moved\n",
      all.size(), within[Instant::kSaves], within[Instant::kLoads], same, tokens, moved);
  EXPECT_GT(moved, 0u);
  EXPECT_GT(within[Instant::kSaves], 0u);
  EXPECT_GT(within[Instant::kLoads], 0u);
  EXPECT_GE(same, tokens * 3 / 4);
}

}  // namespace
}  // namespace motley
