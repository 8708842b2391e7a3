#include "runtime/segment.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace motley {
namespace {

constexpr int32_t kSlots = 0, kResidual = 1, kNormed = 2, kOut = 3, kPicked = 4, kLogits = 5, kIds = 6;

GraphNode node(int32_t kind, Part part, int32_t layer, std::vector<int32_t> in, std::vector<int32_t> out,
               std::vector<int32_t> weights) {
  GraphNode made;
  made.part = part;
  made.layer = layer;
  made.op.kind = kind;
  std::fill(std::begin(made.op.in), std::end(made.op.in), MOTLEY_NONE);
  std::fill(std::begin(made.op.out), std::end(made.op.out), MOTLEY_NONE);
  std::fill(std::begin(made.op.weight), std::end(made.op.weight), MOTLEY_NONE);
  std::copy(in.begin(), in.end(), made.op.in);
  std::copy(out.begin(), out.end(), made.op.out);
  std::copy(weights.begin(), weights.end(), made.op.weight);
  return made;
}

// Two one-op layers between embedding and head.
Graph small_graph() {
  Graph graph;
  graph.values.resize(7);
  graph.weights.resize(4);
  graph.token_slots = kSlots;
  graph.residual = kResidual;
  graph.logits = kLogits;
  graph.sampled_ids = kIds;
  graph.nodes.push_back(node(MOTLEY_OP_EMBED, Part::kEmbed, -1, {kSlots}, {kResidual}, {0}));
  for (const int32_t layer : {0, 1}) {
    graph.nodes.push_back(node(MOTLEY_OP_RMSNORM, Part::kFfn, layer, {kResidual}, {kNormed}, {1 + layer}));
    graph.nodes.push_back(node(MOTLEY_OP_SCALE, Part::kFfn, layer, {kNormed}, {kOut}, {}));
    graph.nodes.push_back(node(MOTLEY_OP_ADD, Part::kFfn, layer, {kResidual, kOut}, {kResidual}, {}));
  }
  graph.nodes.push_back(node(MOTLEY_OP_SELECT_ROWS, Part::kHead, -1, {kResidual}, {kPicked}, {}));
  graph.nodes.push_back(node(MOTLEY_OP_MATMUL, Part::kHead, -1, {kPicked}, {kLogits}, {0}));
  graph.nodes.push_back(node(MOTLEY_OP_SAMPLE, Part::kSample, -1, {kLogits, kSlots}, {kIds}, {}));
  return graph;
}

std::vector<int32_t> to_graph(const Segment& segment, const std::vector<int32_t>& locals) {
  std::vector<int32_t> ids;
  for (const int32_t id : locals) ids.push_back(segment.graph_values()[static_cast<size_t>(id)]);
  return ids;
}

TEST(Segment, Stage_CarriesTheResidualInPlaceAndHidesItsTemporaries) {
  const Segment stage = Segment::cut(small_graph(), MOTLEY_CUT_STAGE, 0, 2);
  EXPECT_EQ(stage.view().op_count, 6u);
  EXPECT_EQ(to_graph(stage, stage.inputs()), std::vector<int32_t>{kResidual});
  EXPECT_EQ(to_graph(stage, stage.outputs()), std::vector<int32_t>{kResidual});
  EXPECT_EQ(stage.graph_weights(), (std::vector<int32_t>{1, 2}));
}

TEST(Segment, StageOfOneLayer_TakesThatLayersWeightsOnly) {
  const Segment stage = Segment::cut(small_graph(), MOTLEY_CUT_STAGE, 1, 2);
  EXPECT_EQ(stage.view().op_count, 3u);
  EXPECT_EQ(stage.graph_weights(), std::vector<int32_t>{2});
  EXPECT_NE(stage.view().hash, Segment::cut(small_graph(), MOTLEY_CUT_STAGE, 0, 1).view().hash);
}

TEST(Segment, Sample_ReadsAndWritesTheSlots) {
  const Segment sample = Segment::cut(small_graph(), MOTLEY_CUT_SAMPLE, 0, 2);
  EXPECT_EQ(to_graph(sample, sample.inputs()), (std::vector<int32_t>{kLogits, kSlots}));
  EXPECT_EQ(to_graph(sample, sample.outputs()), (std::vector<int32_t>{kSlots, kIds}));
}

TEST(Segment, Head_GivesLogitsOnly) {
  const Segment head = Segment::cut(small_graph(), MOTLEY_CUT_HEAD, 0, 2);
  EXPECT_EQ(to_graph(head, head.inputs()), std::vector<int32_t>{kResidual});
  EXPECT_EQ(to_graph(head, head.outputs()), std::vector<int32_t>{kLogits});
}

}  // namespace
}  // namespace motley
