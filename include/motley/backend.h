/* The C ABI of device plugins. A plugin is one shared library that exports motley_backend_entry.
 *
 * The unit of work is a *segment* (a portable op graph), compiled into *programs*, one per row bucket, and enqueued on
 * in-order *queues* with bindings for its values and a batch that says which rows belong to which sequence.
 *
 * Rules. Every struct begins with struct_size, set by whoever fills it; a reader looks at no field beyond it. A null
 * entry of the table means "unsupported". No exceptions, no C++ types, no globals, no "current device" cross this line.
 * A function that returns motley_code fills *error (if not null) on failure and leaves its outputs untouched.
 * Handles are opaque and owned by the host, which frees each exactly once; a handle outlives the work enqueued with it.
 * Threads: entries may be called from any thread; one thread at a time per queue (enqueue, copy, fence); no entry
 * blocks but compile, pack, event_wait and destruction. Lengths are in bytes, times in nanoseconds, unless the name
 * says so. Structs grow at their end; one of which arrays cross, motley_device_desc above all, or that has grown since
 * the last number, with a new MOTLEY_BACKEND_ABI, by which plugin and host refuse each other.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MOTLEY_BACKEND_H
#define MOTLEY_BACKEND_H

#include "motley/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MOTLEY_BACKEND_ABI 3
#define MOTLEY_ERROR_TEXT_MAX 512

typedef struct motley_error {
  int32_t code; /* motley_code */
  char text[MOTLEY_ERROR_TEXT_MAX];
} motley_error;

typedef struct motley_device motley_device;
typedef struct motley_queue motley_queue;
typedef struct motley_buffer motley_buffer;
typedef struct motley_weight motley_weight;
typedef struct motley_programs motley_programs; /* a segment compiled for all its buckets */
typedef struct motley_kv motley_kv;             /* the KV pool of one stage on one owner */
typedef struct motley_event motley_event;
typedef struct motley_group motley_group; /* a collective group */

/* ---- what a device is ---- */
typedef enum motley_kind { MOTLEY_KIND_CPU = 0, MOTLEY_KIND_GPU = 1, MOTLEY_KIND_NPU = 2 } motley_kind;

typedef enum motley_tier {
  MOTLEY_TIER_MEASURED = 0,       /* ran on the silicon */
  MOTLEY_TIER_VENDOR_RUNTIME = 1, /* ran on the vendor's own software, other silicon */
  MOTLEY_TIER_CONTRACT_TESTED = 2 /* drives the public API against a double */
} motley_tier;

/* motley_device_desc.caps */
enum {
  MOTLEY_CAP_DYNAMIC_ROWS = 1 << 0,    /* any row count; buckets are ignored */
  MOTLEY_CAP_PAGED_ATTENTION = 1 << 1, /* KV_WRITE and PAGED_ATTENTION */
  MOTLEY_CAP_WEIGHTS_AS_ARGS = 1 << 2, /* one program may serve several layers' weights */
  MOTLEY_CAP_HOST_MEMORY = 1 << 3,     /* map() answers for every buffer */
  MOTLEY_CAP_IMPORT_HOST = 1 << 4,     /* alloc() accepts page-aligned host memory */
  MOTLEY_CAP_ROW_INVARIANT = 1 << 5,   /* bit-identical rows for any batch, chunk and thread count within a class */
  MOTLEY_CAP_ONE_CLASS = 1 << 6, /* opened as deterministic, prompt rows and generated ones are of one numeric class */
  MOTLEY_CAP_COLLECTIVES = 1 << 7,
  MOTLEY_CAP_PARTIAL_ATTENTION = 1 << 8 /* motley_batch.blocks may say that a block lies elsewhere */
};

typedef struct motley_device_desc {
  uint32_t struct_size;
  uint32_t index;    /* among this plugin's devices */
  char family[16];   /* the name's first part: "CPU", "GPU", "NPU", "REF", "SIM" */
  char label[32];    /* the name's second part, where it is not the index: "gpu-like"; else empty */
  int32_t kind;      /* motley_kind */
  int32_t tier;      /* motley_tier */
  int32_t simulated; /* 0 or 1 */
  char vendor[64];
  char model[128];
  char variant[64]; /* the kernels chosen at run time, e.g. "avx512-vnni" */
  uint64_t memory_total, memory_free;
  uint32_t memory_group; /* devices with the same non-zero number share one memory bus */
  uint64_t caps;
  uint64_t ops;           /* bit k: motley_op_kind k */
  uint64_t weight_dtypes; /* bit t: motley_dtype t is packed without loss */
  uint64_t kv_dtypes;
  uint32_t alignment;               /* of buffers and imports */
  uint32_t queues_max, queue_depth; /* depth: enqueued and unfinished programs a queue takes before it refuses */
  uint32_t threads;                 /* workers of a host device, else 0 */
  int32_t result_dtype;             /* motley_dtype to which ops round what they compute, all but ADD; F32: to none */
  char driver[64]; /* version of what compiles for it, on which blobs and times depend; "" where there is none */
} motley_device_desc;

typedef void (*motley_log_fn)(void* user, int32_t level /* 0 debug, 1 info, 2 warning, 3 error */, const char* text);

typedef struct motley_open_options {
  uint32_t struct_size;
  uint32_t threads;      /* 0 = the device's default */
  const char* cores;     /* "0-3,8" or null = all allowed to this process */
  uint64_t memory_cap;   /* 0 = none */
  const char* cache_dir; /* for compiled blobs; null = none */
  const char* variant;   /* force a kernel variant (tests); null = the best the machine runs */
  /* Not null: a simulated device keeps virtual time. Work begins no earlier than what this answers at its enqueue, on
   * the enqueuing thread; events fire as soon as the work is computed, and event_times says when it would have been.
   * A device that is not simulated refuses it with UNIMPLEMENTED. */
  int64_t (*virtual_now)(void* user);
  void* virtual_user;
  int32_t deterministic; /* 1: one numeric class for prompt and generated rows */
  motley_log_fn log;     /* may be null; may be called from any thread */
  void* log_user;
} motley_open_options;

/* ---- memory ---- */
typedef enum motley_use { MOTLEY_USE_ACTIVATION = 0, MOTLEY_USE_STAGING = 1 } motley_use;

typedef struct motley_region {
  uint64_t dst_offset, src_offset, bytes;
} motley_region;

/* ---- weights ---- */
typedef struct motley_range {
  int64_t begin, end; /* half open */
} motley_range;

/* motley_weight_desc.uses */
enum {
  MOTLEY_WEIGHT_MATMUL = 1, /* w of MATMUL or GROUPED_MATMUL */
  MOTLEY_WEIGHT_GATHER = 2, /* w of EMBED; both bits: one packed copy serves both */
  MOTLEY_WEIGHT_VECTOR = 4  /* norms, biases, rope divisors, sinks */
};

typedef struct motley_weight_desc {
  uint32_t struct_size;
  const char* name;
  int32_t dtype; /* of data: motley_dtype */
  int32_t
      format; /* to pack to, of weight_dtypes; = dtype unless re-quantisation is wanted, which may be UNIMPLEMENTED */
  uint32_t uses;
  int64_t experts, rows, cols; /* cols = ne[0], the fastest axis; a vector has rows = 1 */
  const void* data;            /* rows back to back in dtype's block layout; borrowed for the call */
  uint64_t bytes;
  const motley_range* row_ranges; /* the shard's units; null = all. Joined in order. */
  uint32_t row_range_count;
  const motley_range* col_ranges;
  uint32_t col_range_count;
  /* What EMBED and GROUPED_MATMUL read by id keeps the file's numbering: an id that was left out gives zeros (of a
   * GROUPED_MATMUL its bias, which has the kept experts only, included). */
  const motley_range* expert_ranges;
  uint32_t expert_range_count;
} motley_weight_desc;

typedef struct motley_weight_info {
  uint32_t struct_size;
  uint64_t bytes; /* resident on the device */
  int32_t format;
  int32_t aliases_source; /* 1: data must stay valid while the weight lives */
} motley_weight_info;

/* ---- KV ---- */
typedef struct motley_kv_desc {
  uint32_t struct_size;
  int32_t dtype;       /* F32, F16, BF16 or I8 (with a scale per head and position) */
  uint32_t block_size; /* positions */
  uint32_t blocks;
  uint32_t layers;
  const int32_t* kv_heads; /* [layers] */
  const int32_t* head_dim; /* [layers] */
  const int32_t* windows;  /* [layers], 0 = full */
} motley_kv_desc;

typedef struct motley_kv_layout {
  uint32_t struct_size;
  uint64_t bytes_total;               /* address space of the pool; touched on use */
  uint64_t bytes_per_block;           /* over all layers */
  uint64_t canonical_bytes_per_block; /* of export and import: docs/formats/kv.md */
} motley_kv_layout;

/* ---- segments and programs ---- */
typedef enum motley_cut {
  MOTLEY_CUT_EMBED = 0,
  MOTLEY_CUT_STAGE = 1,
  MOTLEY_CUT_ATTN_PART = 2,
  MOTLEY_CUT_FFN_PART = 3,
  MOTLEY_CUT_PRE = 4,
  MOTLEY_CUT_POSTPRE = 5,
  MOTLEY_CUT_POST = 6,
  MOTLEY_CUT_EXPERT = 7,
  MOTLEY_CUT_HEAD = 8,
  MOTLEY_CUT_SAMPLE = 9
} motley_cut;

typedef struct motley_segment {
  uint32_t struct_size;
  int32_t cut;
  int32_t layer_begin, layer_end;
  const motley_value* values;
  uint32_t value_count;
  const motley_op* ops; /* in an order in which every value is written before it is read */
  uint32_t op_count;
  const int32_t* inputs; /* value ids the host binds; an id in both lists is read and written in place */
  uint32_t input_count;
  const int32_t* outputs;
  uint32_t output_count;
  uint32_t weight_count; /* motley_op.weight indexes the array given to compile */
  uint64_t hash;         /* of all the above; the key of caches */
} motley_segment;

typedef enum motley_support { MOTLEY_SUPPORT_NO = 0, MOTLEY_SUPPORT_CUT = 1, MOTLEY_SUPPORT_NATIVE = 2 } motley_support;

typedef struct motley_query_result {
  uint32_t struct_size;
  int32_t support;          /* motley_support */
  uint32_t cut_before;      /* with SUPPORT_CUT: the op to cut before */
  uint64_t workspace_bytes; /* for the largest bucket */
  uint64_t compile_ns;      /* estimate */
  char reason[160];
  uint64_t program_bytes; /* resident, of the programs of all buckets together, beside the weights */
} motley_query_result;

typedef struct motley_compile_options {
  uint32_t struct_size;
  const uint32_t* buckets; /* row counts; a dynamic device takes the last as its maximum */
  uint32_t bucket_count;
  const void* blob; /* of export_programs, or null; stale blobs are refused with FAILED_PRECONDITION */
  uint64_t blob_bytes;
} motley_compile_options;

/* The rows of one step. Host memory, borrowed until the step's last event has fired. Arrays are [rows] unless said.
 * Rows of one sequence are contiguous and ascending in position; its last row is at position seq_context[s] - 1. */
typedef struct motley_batch {
  uint32_t struct_size;
  /* Real rows. The program's bucket may hold more, whose contents must not matter; a device of fixed rows (without
   * CAP_DYNAMIC_ROWS) computes those too, so its buffers hold the bucket's rows, and those of outputs are overwritten.
   */
  uint32_t rows;
  const int32_t* token_ids;
  const int32_t* token_slots; /* >= 0: take the token from this slot instead */
  const int32_t* positions;
  const int32_t* kv_slots;  /* block id * block_size + offset; -1 = not stored */
  const uint8_t* generated; /* 0: a prompt row, 1: a generated row (chooses the numeric class) */
  uint32_t seqs;
  const uint32_t* seq_row_begin;   /* [seqs + 1] */
  const int32_t* seq_context;      /* [seqs] KV positions visible to the sequence's last row, itself included */
  const uint32_t* seq_block_begin; /* [seqs + 1] into blocks */
  /* Block ids, concatenated. MOTLEY_NONE: the block lies elsewhere, and no position of it is seen. Only with
   * CAP_PARTIAL_ATTENTION, and in programs all of whose PAGED_ATTENTIONs give a log-sum-exp. */
  const int32_t* blocks;
  uint32_t head_row_count;
  const int32_t* head_rows; /* [head_row_count] row indices */
  /* [head_row_count]; a program of MOTLEY_CUT_HEAD that is given them (null: it is not) may leave the logits of a row
   * of which docs/contracts/sampling.md asks for the best token alone less exact wherever none becomes as large as the
   * best one, which keeps its bits. */
  const motley_sample_row* samples;
  const motley_token_count* counts;
  const int32_t* pending;
  const motley_token_bias* biases;
  uint32_t slot_count;
  const int32_t* adapters; /* reserved (LoRA): must be null */
  const void* overrides;   /* reserved (hidden-state override, mask spans): must be null */
} motley_batch;

typedef struct motley_binding {
  int32_t value; /* id in the segment */
  motley_buffer* buffer;
  uint64_t offset;
} motley_binding;

typedef struct motley_enqueue_args {
  uint32_t struct_size;
  uint32_t bucket;                /* index into compile's buckets; 0 for a dynamic device */
  const motley_binding* bindings; /* every input and output, once */
  uint32_t binding_count;
  motley_kv* kv; /* null if the segment has no KV op */
  const motley_batch* batch;
} motley_enqueue_args;

/* When a fired event's work ran, in nanoseconds of the host's monotonic clock, or of virtual time. */
typedef struct motley_event_times {
  uint32_t struct_size;
  int64_t start_ns, end_ns;
} motley_event_times;

typedef struct motley_device_stats {
  uint32_t struct_size;
  uint64_t programs, rows, padded_rows, bytes_copied, busy_ns; /* padded_rows: run, the padding of buckets included */
  uint64_t bytes_resident;
  int32_t lost;                            /* 1: every further call answers UNAVAILABLE */
  uint64_t compile_ns, blob_hits, reloads; /* compiling; programs made of blobs; those that had to be loaded anew */
  /* Floating-point operations of products with weights and of attention, two a multiply-add: of real rows, and run, the
   * padding of buckets included. Of experts of which some are elsewhere, as if all were chosen alike. */
  double flops, padded_flops;
} motley_device_stats;

typedef enum motley_collective {
  MOTLEY_ALL_REDUCE = 0,
  MOTLEY_ALL_GATHER_V = 1,
  MOTLEY_REDUCE_SCATTER_V = 2,
  MOTLEY_BROADCAST = 3,
  MOTLEY_SEND = 4,
  MOTLEY_RECV = 5
} motley_collective;

/* ---- the table ---- */
typedef struct motley_backend {
  uint32_t struct_size;
  uint32_t abi;     /* MOTLEY_BACKEND_ABI */
  const char* name; /* "cpu" */
  const char* version;

  /* Fills at most capacity descriptions, sets *count to how many there are. Zero devices: *error says why;
     else its text, if any, says what is there and not among them. */
  motley_code (*enumerate)(motley_device_desc* out, uint32_t capacity, uint32_t* count, motley_error* error);
  /* A device that is not enumerated but can be named, "FAMILY:spec": one that a file describes. index is open()'s. */
  motley_code (*describe)(const char* spec, motley_device_desc* out, motley_error*);
  motley_code (*open)(uint32_t index, const motley_open_options*, motley_device** out, motley_error*);
  void (*close)(motley_device*);
  motley_code (*stats)(motley_device*, motley_device_stats* out, motley_error*);

  motley_code (*queue_create)(motley_device*, motley_queue** out, motley_error*);
  void (*queue_destroy)(motley_queue*); /* waits for what is enqueued */

  /* import: page-aligned host memory that outlives the buffer, or null. New memory is zero. */
  motley_code (*alloc)(motley_device*, uint64_t bytes, int32_t use, void* import, motley_buffer** out, motley_error*);
  void (*free)(motley_buffer*);
  void* (*map)(motley_buffer*); /* null when the memory is separate */
  motley_code (*copy)(motley_queue*, motley_buffer* dst, motley_buffer* src, const motley_region*, uint32_t regions,
                      motley_event** event, motley_error*);
  motley_code (*copy_to_host)(motley_queue*, void* dst, motley_buffer* src, uint64_t offset, uint64_t bytes,
                              motley_event** event, motley_error*);
  motley_code (*copy_from_host)(motley_queue*, motley_buffer* dst, uint64_t offset, const void* src, uint64_t bytes,
                                motley_event** event, motley_error*);

  motley_code (*pack)(motley_device*, const motley_weight_desc*, motley_weight** out, motley_weight_info* info,
                      motley_error*);
  void (*weight_free)(motley_weight*);

  motley_code (*kv_create)(motley_device*, const motley_kv_desc*, motley_kv** out, motley_error*);
  void (*kv_destroy)(motley_kv*);
  motley_code (*kv_layout)(motley_device*, const motley_kv_desc*, motley_kv_layout* out, motley_error*);
  /* Blocks to and from the canonical format (docs/formats/kv.md); layers [begin, end) of the pool. */
  motley_code (*kv_export)(motley_queue*, motley_kv*, const int32_t* blocks, uint32_t count, uint32_t layer_begin,
                           uint32_t layer_end, void* dst, uint64_t dst_bytes, motley_event** event, motley_error*);
  motley_code (*kv_import)(motley_queue*, motley_kv*, const int32_t* blocks, uint32_t count, uint32_t layer_begin,
                           uint32_t layer_end, const void* src, uint64_t src_bytes, motley_event** event,
                           motley_error*);

  motley_code (*query)(motley_device*, const motley_segment*, const uint32_t* buckets, uint32_t bucket_count,
                       motley_query_result* out, motley_error*);
  motley_code (*compile)(motley_device*, const motley_segment*, motley_weight* const* weights,
                         const motley_compile_options*, motley_programs** out, motley_error*);
  void (*programs_free)(motley_programs*);
  /* With dst null sets *bytes; else writes the blob, which holds no weights: compile gets them again. */
  motley_code (*export_programs)(motley_programs*, void* dst, uint64_t* bytes, motley_error*);
  /* args and its arrays are read before the call returns, but batch and what it points to is borrowed (see above). */
  motley_code (*enqueue)(motley_queue*, motley_programs*, const motley_enqueue_args*, motley_event** event,
                         motley_error*);

  /* Events start pending and fire once, with the code of the work they stand for. event may be null at every call
   * that makes one. Releasing a pending event is allowed. */
  motley_code (*event_status)(motley_event*, int32_t* fired, motley_error*);
  motley_code (*event_wait)(motley_event*, uint64_t timeout_ns, motley_error*); /* DEADLINE_EXCEEDED, or its code */
  motley_code (*event_times)(motley_event*, motley_event_times* out, motley_error*); /* once it has fired */
  motley_code (*event_notify)(motley_event*, int event_fd, motley_error*); /* adds 1 to the eventfd on firing */
  void (*event_release)(motley_event*);
  motley_code (*fence)(motley_queue*, motley_event*, motley_error*); /* later work of the queue waits for the event */

  motley_code (*group_create)(motley_device*, const void* id, uint64_t id_bytes, uint32_t rank, uint32_t size,
                              motley_group** out, motley_error*);
  void (*group_abort)(motley_group*);
  void (*group_destroy)(motley_group*);
  motley_code (*collective)(motley_queue*, motley_group*, int32_t op, motley_buffer*, uint64_t offset,
                            const uint64_t* counts, int32_t dtype, uint32_t peer, motley_event** event, motley_error*);
} motley_backend;

/* The one exported symbol: motley_backend_entry. Returns a table that lives as long as the library, or null if the
 * host's abi cannot be served. */
typedef const motley_backend* (*motley_backend_entry_fn)(uint32_t host_abi);
#define MOTLEY_BACKEND_ENTRY "motley_backend_entry"

#ifdef __cplusplus
}
#endif
#endif /* MOTLEY_BACKEND_H */
