/* Values that every room and every plugin share: status codes, number formats and the closed set of
 * operations of the portable graph. Plain C, no functions, nothing here allocates.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MOTLEY_TYPES_H
#define MOTLEY_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The sixteen canonical codes (and OK); the same numbers as gRPC's. Mapped once to HTTP (src/server). */
typedef enum motley_code {
  MOTLEY_OK = 0,
  MOTLEY_CANCELLED = 1,
  MOTLEY_UNKNOWN = 2,
  MOTLEY_INVALID_ARGUMENT = 3,
  MOTLEY_DEADLINE_EXCEEDED = 4,
  MOTLEY_NOT_FOUND = 5,
  MOTLEY_ALREADY_EXISTS = 6,
  MOTLEY_PERMISSION_DENIED = 7,
  MOTLEY_RESOURCE_EXHAUSTED = 8,
  MOTLEY_FAILED_PRECONDITION = 9,
  MOTLEY_ABORTED = 10,
  MOTLEY_OUT_OF_RANGE = 11,
  MOTLEY_UNIMPLEMENTED = 12,
  MOTLEY_INTERNAL = 13,
  MOTLEY_UNAVAILABLE = 14,
  MOTLEY_DATA_LOSS = 15,
  MOTLEY_UNAUTHENTICATED = 16
} motley_code;

/* Number formats. The values are GGUF's tensor type ids, so a file's type needs no translation. GGUF lacks F8_E4M3, of
 * KV pools alone (docs/formats/kv.md), and F8_E4M3_S64, of weights: blocks of 64 such numbers behind a scale in F32
 * (docs/formats/safetensors.md). Other block layouts: docs/formats/gguf.md. */
typedef enum motley_dtype {
  MOTLEY_F32 = 0,
  MOTLEY_F16 = 1,
  MOTLEY_Q4_0 = 2,
  MOTLEY_Q4_1 = 3,
  MOTLEY_Q5_0 = 6,
  MOTLEY_Q5_1 = 7,
  MOTLEY_Q8_0 = 8,
  MOTLEY_Q2_K = 10,
  MOTLEY_Q3_K = 11,
  MOTLEY_Q4_K = 12,
  MOTLEY_Q5_K = 13,
  MOTLEY_Q6_K = 14,
  MOTLEY_IQ4_NL = 20,
  MOTLEY_IQ4_XS = 23,
  MOTLEY_I8 = 24,
  MOTLEY_I32 = 26,
  MOTLEY_BF16 = 30,
  MOTLEY_MXFP4 = 39,
  MOTLEY_F8_E4M3 = 62,
  MOTLEY_F8_E4M3_S64 = 63
} motley_dtype;
#define MOTLEY_DTYPE_COUNT 64 /* dtype ids are below this, so a 64-bit mask (1 << id) names a set */

/* A symbolic dimension of a value. Only dims[0] may be symbolic. */
#define MOTLEY_DIM_ROWS (-1)      /* the rows (tokens) of the batch */
#define MOTLEY_DIM_HEAD_ROWS (-2) /* the rows whose logits are asked for */
#define MOTLEY_DIM_SLOTS (-3)     /* the token slots of the executor */

#define MOTLEY_RANK_MAX 4
#define MOTLEY_OP_INPUTS_MAX 4
#define MOTLEY_OP_OUTPUTS_MAX 4
#define MOTLEY_OP_WEIGHTS_MAX 4
#define MOTLEY_NONE (-1) /* "no value", "no weight" */

/* The closed op set, version 1. R = rows, H = head rows; all activations f32 unless a value says otherwise.
 * "in", "out" and "w" below index motley_op's arrays. Row r of every op depends on row r of its inputs only, except
 * through the KV pool (KV_WRITE, PAGED_ATTENTION) and the gathers. */
typedef enum motley_op_kind {
  /* out0[R,n] = w0[token[r]] * scale. The token is batch.token_ids[r], or, where batch.token_slots[r] >= 0,
   * in0[token_slots[r]] (in0: i32 [SLOTS]). w0: [vocab, n]. attr.embed */
  MOTLEY_OP_EMBED = 0,
  /* out0[.,n] = in0[.,k] * w0^T (+ w1). w0: [n, k]; w1: bias [n] or none. */
  MOTLEY_OP_MATMUL = 1,
  MOTLEY_OP_ADD = 2,   /* out0 = in0 + in1, same shape; out0 may be in0 */
  MOTLEY_OP_MUL = 3,   /* out0 = in0 * in1 */
  MOTLEY_OP_SCALE = 4, /* out0 = in0 * attr.scale.factor */
  /* Over each run of attr.norm.group elements of the last axis: x * w0 / sqrt(mean(x^2) + eps). w0: [group].
   * group = the width for the plain norm, head_dim for per-head q/k norms. */
  MOTLEY_OP_RMSNORM = 5,
  /* Rotary embedding of in0[R, heads*head_dim] at batch.positions; w0: frequency divisors [n_rot/2] or none.
   * attr.rope */
  MOTLEY_OP_ROPE = 6,
  MOTLEY_OP_SILU_MUL = 7, /* out0 = silu(in0) * in1 */
  MOTLEY_OP_GELU_MUL = 8, /* out0 = gelu_tanh(in0) * in1 */
  MOTLEY_OP_SOFTCAP = 9,  /* out0 = cap * tanh(in0 / cap); attr.scale.factor = cap */
  MOTLEY_OP_SPLIT = 10,   /* in0's last axis cut into out0, out1, ... in order */
  MOTLEY_OP_CONCAT = 11,  /* in0, in1, ... joined on the last axis */
  MOTLEY_OP_CAST = 12,    /* out0 = in0 in out0's dtype */
  /* in0 = k [R, kv_heads*head_dim], in1 = v [R, kv_heads*head_dim] stored at batch.kv_slots[r] of attr.kv.layer;
   * kv_slots[r] < 0: not stored. */
  MOTLEY_OP_KV_WRITE = 13,
  /* in0 = q [R, heads*head_dim] -> out0 [R, heads*head_dim]; out1: log-sum-exp [R, heads] or none. Causal over the
   * row's sequence: a row at position p sees KV positions max(0, p-window+1)..p, of blocks that are there. w0: sinks
   * [heads] or none. A row that sees nothing, no sink either: out0 = 0, out1 = -infinity. attr.attention */
  MOTLEY_OP_PAGED_ATTENTION = 14,
  /* in0, in1: partial outputs; in2, in3: their log-sum-exps -> out0 merged, out1 merged log-sum-exp or none. A part
   * whose log-sum-exp is -infinity is not looked at; where both are, out0 = 0 and out1 = -infinity. */
  MOTLEY_OP_ATTN_MERGE = 15,
  MOTLEY_OP_SELECT_ROWS = 16, /* out0[H,n] = in0[batch.head_rows[h], n] */
  /* in0 = logits [H, vocab]; in1 = token slots i32 [SLOTS], read (pending tokens) and written (samples[h].out_slot).
   * out0 = ids i32 [H]; out1 = log-probability of the id [H]; out2 = top ids i32 [H, MOTLEY_TOP_MAX];
   * out3 = top log-probabilities [H, MOTLEY_TOP_MAX]. Semantics: docs/contracts/sampling.md. */
  MOTLEY_OP_SAMPLE = 17,
  /* in0 = router logits [R, experts] -> out0 = ids i32 [R, k], out1 = weights [R, k]. attr.router */
  MOTLEY_OP_TOPK_ROUTER = 18,
  /* in0 [R, k], or [R, top_k, k] where each choice has an input of its own; in1 = ids i32 [R, top_k];
   * w0 [experts, n, k]; w1: biases, a vector of experts * n, or none -> out0 [R, top_k, n]. */
  MOTLEY_OP_GROUPED_MATMUL = 19,
  MOTLEY_OP_ALL_REDUCE = 20, /* out0 = sum over the shards of the stage of in0; never inside a plugin's program */
  /* in0 [R, top_k, n], in1 = weights [R, top_k] -> out0 [R, n] = sum over j, ascending, of in1[r, j] * in0[r, j]. */
  MOTLEY_OP_COMBINE_EXPERTS = 21,
  MOTLEY_OP_SIGMOID_MUL = 22, /* out0 = in0 * sigmoid(in1); in1 [R, n], or [R, 1] for the whole row */
  /* gpt-oss: g = min(in0, limit), u = clamp(in1, -limit, limit); out0 = g * sigmoid(alpha * g) * (u + 1). attr.glu */
  MOTLEY_OP_CLAMPED_SWIGLU = 23,
  MOTLEY_OP_KIND_COUNT = 24
} motley_op_kind;

typedef enum motley_rope_style {
  MOTLEY_ROPE_NORM = 0, /* pairs (2j, 2j+1) */
  MOTLEY_ROPE_NEOX = 1  /* pairs (j, j + n_rot/2) */
} motley_rope_style;

typedef union motley_attr {
  struct {
    float scale; /* 1 for most models */
  } embed;
  struct {
    float factor;
  } scale;
  struct {
    float eps;
    int32_t group;
  } norm;
  struct {
    int32_t style; /* motley_rope_style */
    int32_t heads, head_dim, n_rot;
    float base;           /* theta_j = position * position_scale * base^(-2j/n_rot) / w0[j] */
    float position_scale; /* 1, or 1/factor for linear scaling */
    float magnitude;      /* multiplies cos and sin; 1 without YaRN */
    float yarn_factor, yarn_ext_factor, yarn_low, yarn_high; /* ext 0 = no YaRN; low/high: ramp bounds in dimensions */
  } rope;
  struct {
    int32_t layer; /* index into the KV pool's layers */
    int32_t kv_heads, head_dim;
  } kv;
  struct {
    int32_t layer;
    int32_t heads, kv_heads, head_dim;
    float scale;    /* multiplies q.k */
    int32_t window; /* 0 = full */
    float softcap;  /* 0 = none */
  } attention;
  struct {
    int32_t experts, top_k;
    int32_t gating; /* 1 softmax over all, 2 sigmoid, 3 softmax over the chosen */
    int32_t normalise;
    float scale;
  } router;
  struct {
    float alpha, limit;
  } glu;
} motley_attr;

/* One node. Ids index the graph's (or segment's) values and weights; unused entries are MOTLEY_NONE. */
typedef struct motley_op {
  int32_t kind; /* motley_op_kind */
  int32_t in[MOTLEY_OP_INPUTS_MAX];
  int32_t out[MOTLEY_OP_OUTPUTS_MAX];
  int32_t weight[MOTLEY_OP_WEIGHTS_MAX];
  motley_attr attr;
} motley_op;

/* A value of the graph: SSA, written by one op or by the host. Dense, row-major, last axis fastest. */
typedef struct motley_value {
  int32_t dtype; /* motley_dtype */
  int32_t rank;
  int64_t dims[MOTLEY_RANK_MAX];
} motley_value;

#define MOTLEY_TOP_MAX 20 /* most alternatives a row may ask for (OpenAI's limit) */

typedef struct motley_token_bias {
  int32_t id;
  float bias; /* added to the logit; -INFINITY forbids the token */
} motley_token_bias;

/* How often a token stands in a row's text so far; input of the penalties. */
typedef struct motley_token_count {
  int32_t id;
  int32_t in_prompt; /* 0 or 1 */
  int32_t in_output; /* count */
} motley_token_count;

/* How one logit row is turned into one token. Order of application: docs/contracts/sampling.md. */
typedef struct motley_sample_row {
  uint64_t seed;      /* (seed, choice, position, purpose, vocabulary id) keys the noise */
  uint32_t choice;    /* index among a request's n choices */
  uint32_t position;  /* position in the sequence of the token to be drawn */
  float temperature;  /* 0 = greedy */
  float top_p, min_p; /* 1 and 0 = off */
  int32_t top_k;      /* 0 = off */
  float presence_penalty, frequency_penalty, repetition_penalty; /* 0, 0, 1 = off */
  int32_t top_logprobs; /* -1 none; 0 the chosen one's; k the k best as well (raw log-softmax, before any change) */
  int32_t out_slot;     /* the slot that receives the id, or MOTLEY_NONE */
  uint32_t counts_begin, counts_end;   /* into motley_batch.counts */
  uint32_t pending_begin, pending_end; /* into motley_batch.pending: slots whose tokens count as output too */
  uint32_t biases_begin, biases_end;   /* into motley_batch.biases; ascending ids, no duplicates */
} motley_sample_row;

#ifdef __cplusplus
}
#endif
#endif /* MOTLEY_TYPES_H */
