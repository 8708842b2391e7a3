// What fuse() joins: the steps that are left of whole layers. That a joined step computes the same is conformance's to
// judge.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/ops.hpp"
#include "cpu/variants.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

constexpr int64_t kHidden = 64, kHeadDim = 16, kHeads = 4, kKvHeads = 2, kFfn = 96, kExperts = 4, kTopK = 2;

// Vectors are given in f32; what they hold does not matter here.
class VectorWeight final : public kit::Weight {
 public:
  explicit VectorWeight(int64_t count) : data_(static_cast<size_t>(count), 1.0f) { cols = count; }
  void read_row(int64_t, int64_t, float* out) const override { std::copy(data_.begin(), data_.end(), out); }
  const float* vector() const override { return data_.data(); }

 private:
  std::vector<float> data_;
};

// A plan as kit hands it to fuse(), op by op.
class PlanBuilder {
 public:
  PlanBuilder() { plan_.rows_max = 8; }

  int32_t value(int64_t width, int64_t last = 0, int32_t dtype = MOTLEY_F32) {
    const int32_t id = plan_.add_value(dtype, rows_, width, width * 4);
    if (last > 0) plan_.values.back().last = last;
    return id;
  }
  int32_t bound(int64_t width) {
    const int32_t id = value(width);
    plan_.values.back().bound = true;
    return id;
  }
  int32_t vector(int64_t count) { return keep(std::make_unique<VectorWeight>(count)); }
  void set_head() { plan_.cut = MOTLEY_CUT_HEAD, rows_ = MOTLEY_DIM_HEAD_ROWS; }
  void set_dtype(int32_t dtype) { dtype_ = dtype; }  // of the matrices from now on
  int32_t matrix(int64_t rows, int64_t cols, int64_t experts = 1) {
    const std::vector<float> data(static_cast<size_t>(rows * cols * experts), 0.5f);  // enough for any dtype
    motley_weight_desc desc{};
    desc.struct_size = sizeof desc;
    desc.name = "w";
    desc.dtype = desc.format = dtype_;
    desc.uses = MOTLEY_WEIGHT_MATMUL;
    desc.experts = experts, desc.rows = rows, desc.cols = cols;
    desc.data = data.data();
    desc.bytes = static_cast<uint64_t>(rows * experts * kit::find_format(dtype_)->row_bytes(cols));
    return keep(std::make_unique<PackedWeight>(kit::WeightSource(desc), allocator_, 1, true));
  }
  kit::PlanOp& op(int32_t kind, std::vector<int32_t> in, std::vector<int32_t> out, std::vector<int32_t> weight = {}) {
    kit::PlanOp& o = plan_.ops.emplace_back();
    o.kind = kind, o.in = std::move(in), o.out = std::move(out), o.weight = std::move(weight);
    return o;
  }
  int32_t matmul(int32_t x, int64_t rows, bool bias = false) {
    const int32_t out = value(rows), w = matrix(rows, plan_.values[static_cast<size_t>(x)].width);
    op(MOTLEY_OP_MATMUL, {x}, {out}, {w, bias ? vector(rows) : MOTLEY_NONE});
    return out;
  }
  int32_t norm(int32_t x, int64_t group = 0) {
    const int64_t width = plan_.values[static_cast<size_t>(x)].width;
    const int32_t out = value(width), n = static_cast<int32_t>(group ? group : width);
    op(MOTLEY_OP_RMSNORM, {x}, {out}, {vector(n)}).attr.norm = {1e-5f, n};
    return out;
  }
  int32_t join(int32_t kind, int32_t a, int32_t b) {
    const kit::PlanValue like = plan_.values[static_cast<size_t>(a)];
    const int32_t out = value(like.width, like.last);
    op(kind, {a, b}, {out});
    return out;
  }
  std::vector<int32_t> split(int32_t x, const std::vector<int64_t>& widths) {
    std::vector<int32_t> out;
    for (const int64_t width : widths) out.push_back(value(width));
    op(MOTLEY_OP_SPLIT, {x}, out);
    return out;
  }
  int32_t rope(int32_t x, int32_t heads) {
    const int32_t out = value(heads * kHeadDim);
    op(MOTLEY_OP_ROPE, {x}, {out}, {MOTLEY_NONE}).attr.rope = {
        MOTLEY_ROPE_NEOX, heads, kHeadDim, kHeadDim, 10000, 1, 1, 1, 0, 0, 0};
    return out;
  }
  int32_t grouped(int32_t x, int32_t ids, int64_t rows) {
    const int64_t cols = plan_.values[static_cast<size_t>(x)].last;
    const int32_t out = value(kTopK * rows, rows), w = matrix(rows, cols, kExperts);
    op(MOTLEY_OP_GROUPED_MATMUL, {x, ids}, {out}, {w, vector(kExperts * rows)});
    return out;
  }

  // q, k, v -> what attention says, before the output's product.
  int32_t attend(int32_t q, int32_t k, int32_t v) {
    const int32_t turned = rope(q, kHeads), key = rope(k, kKvHeads), out = value(kHeads * kHeadDim);
    kit::PlanOp& write = op(MOTLEY_OP_KV_WRITE, {key, v}, {});
    write.attr.kv = {0, kKvHeads, kHeadDim};
    write.kv_write = 0;
    kit::PlanOp& attention = op(MOTLEY_OP_PAGED_ATTENTION, {turned}, {out, MOTLEY_NONE}, {MOTLEY_NONE});
    attention.attr.attention = {0, kHeads, kKvHeads, kHeadDim, 0.25f, 0, 0};
    attention.kv_read = 0;
    return out;
  }

  // The kinds of the steps that fuse() leaves.
  std::vector<int32_t> fused() { return fused(*variants().front(), true); }
  std::vector<int32_t> fused(const KernelSet& set, bool one_class) {
    fuse(plan_, set, one_class);
    std::vector<int32_t> kinds;
    for (const kit::PlanOp& o : plan_.ops) {
      EXPECT_TRUE(o.data != nullptr);
      kinds.push_back(o.kind);
    }
    return kinds;
  }

  // Of step i, after fuse().
  const MatmulData& product(size_t i) const { return *static_cast<const MatmulData*>(plan_.ops[i].data.get()); }
  const GroupedData& experts(size_t i) const { return *static_cast<const GroupedData*>(plan_.ops[i].data.get()); }

 private:
  int32_t keep(std::unique_ptr<kit::Weight> weight) {
    weights_.push_back(std::move(weight));
    plan_.weights.push_back(weights_.back().get());
    return static_cast<int32_t>(weights_.size()) - 1;
  }
  SlabAllocator allocator_;
  std::vector<std::unique_ptr<kit::Weight>> weights_;
  kit::Plan plan_;
  int32_t dtype_ = MOTLEY_F32;
  int64_t rows_ = MOTLEY_DIM_ROWS;
};

using Kinds = std::vector<int32_t>;

TEST(Fuse, GemmaLayer_BecomesEightSteps) {
  PlanBuilder b;
  const int32_t residual = b.bound(kHidden), x = b.norm(residual);
  const int32_t q = b.matmul(x, kHeads * kHeadDim), k = b.matmul(x, kKvHeads * kHeadDim),
                v = b.matmul(x, kKvHeads * kHeadDim);
  const int32_t qn = b.norm(q, kHeadDim), kn = b.norm(k, kHeadDim);
  const int32_t attended = b.norm(b.matmul(b.attend(qn, kn, v), kHidden));
  b.op(MOTLEY_OP_ADD, {residual, attended}, {residual});
  const int32_t y = b.norm(residual), gate = b.matmul(y, kFfn), up = b.matmul(y, kFfn);
  const int32_t out = b.norm(b.matmul(b.join(MOTLEY_OP_GELU_MUL, gate, up), kHidden));
  b.op(MOTLEY_OP_ADD, {residual, out}, {residual});
  EXPECT_EQ(b.fused(),
            (Kinds{MOTLEY_OP_ROPE /* its table */, MOTLEY_OP_MATMUL, MOTLEY_OP_KV_WRITE, MOTLEY_OP_PAGED_ATTENTION,
                   MOTLEY_OP_MATMUL, MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_RMSNORM}));
}

TEST(Fuse, JoinedMatrices_AreCutWithoutASplit) {
  PlanBuilder b;
  const int32_t residual = b.bound(kHidden), x = b.norm(residual);
  const auto parts = b.split(b.matmul(x, (kHeads + 2 * kKvHeads) * kHeadDim),
                             {kHeads * kHeadDim, kKvHeads * kHeadDim, kKvHeads * kHeadDim});
  b.op(MOTLEY_OP_ADD, {residual, b.matmul(b.attend(parts[0], parts[1], parts[2]), kHidden, true)}, {residual});
  const auto halves = b.split(b.matmul(b.norm(residual), 2 * kFfn), {kFfn, kFfn});
  const int32_t both = b.join(MOTLEY_OP_SILU_MUL, halves[0], halves[1]);
  b.op(MOTLEY_OP_ADD, {residual, b.matmul(both, kHidden)}, {residual});
  EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_ROPE, MOTLEY_OP_MATMUL, MOTLEY_OP_KV_WRITE, MOTLEY_OP_PAGED_ATTENTION,
                              MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL}));
}

TEST(Fuse, PartsThatDoNotBeginAtPanels_StayASplit) {
  PlanBuilder b;
  const auto halves = b.split(b.matmul(b.bound(kHidden), 40), {20, 20});
  b.op(MOTLEY_OP_SILU_MUL, {halves[0], halves[1]}, {b.bound(20)});
  EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_MATMUL, MOTLEY_OP_SPLIT, MOTLEY_OP_SILU_MUL}));
}

TEST(Fuse, ExpertLayerWithASharedExpert_JoinsGateUpAndActivation) {
  PlanBuilder b;
  const int32_t residual = b.bound(kHidden), x = b.norm(residual);
  const int32_t ids = b.value(kTopK, 0, MOTLEY_I32), weights = b.value(kTopK);
  b.op(MOTLEY_OP_TOPK_ROUTER, {b.matmul(x, kExperts)}, {ids, weights}).attr.router = {kExperts, kTopK, 1, 0, 1};
  const int32_t up = b.grouped(x, ids, kFfn), gate = b.grouped(x, ids, kFfn);
  const int32_t down = b.grouped(b.join(MOTLEY_OP_CLAMPED_SWIGLU, gate, up), ids, kHidden), sum = b.value(kHidden);
  b.op(MOTLEY_OP_COMBINE_EXPERTS, {down, weights}, {sum});
  const int32_t shared = b.matmul(b.join(MOTLEY_OP_SILU_MUL, b.matmul(x, kFfn), b.matmul(x, kFfn)), kHidden);
  const int32_t gated = b.value(kHidden), all = b.value(kHidden);
  b.op(MOTLEY_OP_SIGMOID_MUL, {shared, b.matmul(x, 1)}, {gated});
  b.op(MOTLEY_OP_ADD, {sum, gated}, {all});
  b.op(MOTLEY_OP_ADD, {residual, all}, {residual});
  // Router and the shared expert's gate are one step; so are its gate, up and activation.
  EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_GROUPED_MATMUL,
                              MOTLEY_OP_GROUPED_MATMUL, MOTLEY_OP_COMBINE_EXPERTS, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL,
                              MOTLEY_OP_SIGMOID_MUL, MOTLEY_OP_ADD, MOTLEY_OP_ADD}));
}

TEST(Fuse, ExpertsAlone_TakeTheResidualWithThem) {
  PlanBuilder b;
  const int32_t residual = b.bound(kHidden), weights = b.bound(kTopK), sum = b.value(kHidden);
  const int32_t said = b.value(kTopK * kHidden, kHidden);
  b.op(MOTLEY_OP_SCALE, {b.bound(kTopK * kHidden)}, {said}).attr.scale.factor = 1;
  b.op(MOTLEY_OP_COMBINE_EXPERTS, {said, weights}, {sum});
  b.op(MOTLEY_OP_ADD, {residual, sum}, {residual});
  EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_SCALE, MOTLEY_OP_COMBINE_EXPERTS}));
}

TEST(Fuse, CappedHead_IsOneStep) {
  PlanBuilder b;
  b.op(MOTLEY_OP_SOFTCAP, {b.matmul(b.bound(kHidden), 97)}, {b.bound(97)}).attr.scale.factor = 30;
  EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_MATMUL}));
}

// Only where logits go out as the product makes them, and only by int8.
TEST(Fuse, Head_MayLookForTheBestAlone) {
  const auto looks = [](int32_t dtype, bool head, bool bias, bool capped) {
    PlanBuilder b;
    if (head) b.set_head();
    b.set_dtype(dtype);
    const int32_t x = b.norm(b.bound(kHidden)), y = capped ? b.value(97) : b.bound(97);
    b.op(MOTLEY_OP_MATMUL, {x}, {y}, {b.matrix(97, kHidden), bias ? b.vector(97) : MOTLEY_NONE});
    if (capped) b.op(MOTLEY_OP_SOFTCAP, {y}, {b.bound(97)}).attr.scale.factor = 30;
    EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_MATMUL}));
    return b.product(0).best != nullptr;
  };
  EXPECT_TRUE(looks(MOTLEY_Q8_0, true, false, false));
  EXPECT_FALSE(looks(MOTLEY_BF16, true, false, false));
  EXPECT_FALSE(looks(MOTLEY_Q8_0, false, false, false));
  EXPECT_FALSE(looks(MOTLEY_Q8_0, true, true, false));
  EXPECT_FALSE(looks(MOTLEY_Q8_0, true, false, true));
}

// A norm that something else reads as well must stay.
TEST(Fuse, ValueReadTwice_IsKept) {
  PlanBuilder b;
  const int32_t residual = b.bound(kHidden), y = b.norm(b.bound(kHidden));
  b.op(MOTLEY_OP_ADD, {residual, y}, {residual});
  b.op(MOTLEY_OP_MUL, {residual, y}, {b.bound(kHidden)});
  EXPECT_EQ(b.fused(), (Kinds{MOTLEY_OP_RMSNORM, MOTLEY_OP_ADD, MOTLEY_OP_MUL}));
}

// Two products of the layer before, then q, k and v: by their work. The output's product has no attention behind
// it.
TEST(Fuse, ProductsBeforeAnAttention_ShareItsKv) {
  PlanBuilder b;
  b.set_dtype(MOTLEY_Q8_0);
  const int32_t x = b.bound(kHidden);
  const int32_t down = b.matmul(b.matmul(x, kFfn), kHidden), n = b.norm(down);
  b.matmul(b.attend(b.matmul(n, kHeads * kHeadDim), b.matmul(n, kKvHeads * kHeadDim), b.matmul(n, kKvHeads * kHeadDim)),
           kHidden);
  KernelSet set = *variants().front();
  set.fetches = true;
  const std::vector<int32_t> kinds = b.fused(set, true);
  std::vector<FetchShare> shares;
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i] == MOTLEY_OP_MATMUL) shares.push_back(b.product(i).fetch);
  }
  ASSERT_EQ(shares.size(), 4u);
  const int64_t qkv = kHidden * (kHeads + 2 * kKvHeads) * kHeadDim, ffn = kHidden * kFfn;
  const int64_t borders[] = {0, ffn, 2 * ffn, 2 * ffn + qkv};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(shares[i].layer, 0);
    EXPECT_EQ(shares[i].from, borders[i]);
    EXPECT_EQ(shares[i].to, borders[i + 1]);
    EXPECT_EQ(shares[i].all, borders[3]);
  }
  EXPECT_LT(shares[3].layer, 0);
}

TEST(Fuse, ProductsThatDoNotAsk_HaveNoShare) {
  for (const bool fetches : {false, true}) {
    KernelSet set = *variants().front();
    set.fetches = fetches;
    PlanBuilder b;
    b.set_dtype(fetches ? MOTLEY_F32 : MOTLEY_Q8_0);
    const int32_t v = b.matmul(b.bound(kHidden), kKvHeads * kHeadDim);
    b.attend(b.bound(kHeads * kHeadDim), v, v);
    b.fused(set, true);
    EXPECT_LT(b.product(1).fetch.layer, 0);  // after the rotation's table
  }
}

// Routes and logits are chosen by: all their blocks have rests. Others' have them where they are large, experts' none.
TEST(Fuse, Rests_AreOfAllBlocksWhereSomethingIsChosen) {
  PlanBuilder b;
  b.set_dtype(MOTLEY_Q8_0);
  const int32_t routes = b.matmul(b.bound(kHidden), kExperts), ids = b.value(kTopK, kTopK), weights = b.value(kTopK);
  b.op(MOTLEY_OP_TOPK_ROUTER, {routes}, {ids, weights}, {MOTLEY_NONE});
  const int32_t x = b.value(kHidden, kHidden);
  b.op(MOTLEY_OP_SCALE, {b.matmul(b.bound(kHidden), kHidden)}, {x}).attr.scale.factor = 2;
  b.grouped(x, ids, kHidden);
  EXPECT_EQ(
      (Kinds{MOTLEY_OP_MATMUL, MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_MATMUL, MOTLEY_OP_SCALE, MOTLEY_OP_GROUPED_MATMUL}),
      b.fused());
  EXPECT_EQ(kAllRests, b.product(0).forms.rests_from);
  EXPECT_EQ(kRestsFrom, b.product(2).forms.rests_from);
  EXPECT_EQ(kNoRests, b.experts(4).forms.rests_from);

  PlanBuilder head;
  head.set_head();
  head.set_dtype(MOTLEY_Q8_0);
  head.matmul(head.bound(kHidden), 64);
  head.fused();
  EXPECT_EQ(kAllRests, head.product(0).forms.rests_from);
}

// By a set that takes tiled rows, for steps' rows; in one class only where they have the bits of other rows.
TEST(Fuse, PromptRows_AreTiledWhereTheirClassLetsThem) {
  KernelSet tiled = *variants().front(), other = tiled;
  tiled.takes_tiled = true, other.takes_tiled = false;
  const auto prompt_of = [](const KernelSet& set, bool one_class, int32_t dtype) {
    PlanBuilder b;
    b.set_dtype(dtype);
    const int32_t v = b.matmul(b.bound(kHidden), kKvHeads * kHeadDim);  // wants to be fine
    b.attend(b.bound(kHeads * kHeadDim), v, v);
    b.fused(set, one_class);
    return b.product(1).prompt;  // after the rotation's table
  };
  EXPECT_TRUE(prompt_of(tiled, false, MOTLEY_Q8_0).tiled);
  EXPECT_FALSE(prompt_of(tiled, false, MOTLEY_Q8_0).fine);
  EXPECT_FALSE(prompt_of(tiled, true, MOTLEY_Q8_0).prepared());
  EXPECT_TRUE(prompt_of(tiled, false, MOTLEY_BF16).tiled);
  EXPECT_FALSE(prompt_of(tiled, false, MOTLEY_BF16).fine);
  EXPECT_TRUE(prompt_of(tiled, true, MOTLEY_BF16).tiled);
  EXPECT_TRUE(prompt_of(tiled, true, MOTLEY_BF16).fine);
  EXPECT_FALSE(prompt_of(tiled, false, MOTLEY_F32).prepared());
  EXPECT_FALSE(prompt_of(other, false, MOTLEY_Q8_0).prepared());
}

}  // namespace
}  // namespace motley::cpu
