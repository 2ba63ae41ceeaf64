/* Part of Apus, an inference optimizer and runtime.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The C interface of Apus: build a model into an engine, run the engine.
 *
 *   apus_engine *engine = NULL;
 *   apus_context *context = NULL;
 *   if (apus_build_file("model.onnx", NULL, &engine) != APUS_OK ||
 *       apus_context_create(engine, &context) != APUS_OK) {
 *     fprintf(stderr, "%s\n", apus_last_error());
 *     exit(1);
 *   }
 *   int64_t dims[] = {1, 1, 8, 8};
 *   apus_tensor image = {APUS_FLOAT32, 4, dims, pixels, sizeof pixels};
 *   apus_tensor result;
 *   apus_context_set_input(context, "image", &image);
 *   apus_context_run(context);
 *   apus_context_output(context, "probability", &result);
 *
 * Rules that hold everywhere:
 * - Functions that can fail return an apus_status and write results through pointers, which they
 *   leave alone on failure. The text of a failure is kept per thread: apus_last_error().
 * - Handles are made by *_create, *_load, *_make_* and apus_build_*, and released by the destroy
 *   function of their type, which accepts NULL. An engine may be destroyed while contexts made from
 *   it live: they keep what they need.
 * - Engines and values are immutable and may be used from any number of threads. A context, a
 *   config or a report belongs to one thread at a time.
 * - Text is UTF-8. Sizes are in bytes unless a name says otherwise.
 */
#ifndef APUS_H
#define APUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a change breaks programs compiled against an earlier header. */
#define APUS_ABI_VERSION 1

/* Status ------------------------------------------------------------------------------------- */

typedef int32_t apus_status;

/* Numbers never change; new ones may be added at the end. */
enum {
  APUS_OK = 0,
  APUS_ERROR_INTERNAL = 1,             /* an invariant of Apus is broken; please report it */
  APUS_ERROR_INVALID_ARGUMENT = 2,     /* NULL, an unknown name, a misshapen or missing input */
  APUS_ERROR_FILE_ACCESS = 3,          /* a file cannot be opened, read or written */
  APUS_ERROR_MALFORMED_FILE = 4,       /* the bytes break the format they claim to be in */
  APUS_ERROR_INCOMPATIBLE = 5,         /* made by another version, or for another device */
  APUS_ERROR_UNSUPPORTED_OPERATOR = 6, /* operators without an implementation, all of them listed */
  APUS_ERROR_INVALID_ATTRIBUTE = 7,    /* an attribute is missing, of the wrong type, out of range */
  APUS_ERROR_INVALID_GRAPH = 8,        /* the graph breaks a structural rule */
  APUS_ERROR_TYPE_MISMATCH = 9,        /* element types or shapes contradict each other */
  APUS_ERROR_NOT_YET_SUPPORTED = 10,   /* a valid request that this version cannot serve */
  APUS_ERROR_RESOURCE_LIMIT = 11,      /* memory or another limit is exhausted */
  APUS_ERROR_EXECUTION = 12,           /* a device or kernel failed while running */
  APUS_ERROR_CANCELLED = 13,           /* the caller cancelled the work */
  APUS_ERROR_OTHER = 14                /* a code newer than this header; see apus_last_error_code */
};

/* What went wrong in the last failing call on this thread: where, what, and on a second line
 * beginning with "hint:" what to do about it. Empty when nothing has failed. Valid until the next
 * failing call on this thread. */
const char *apus_last_error(void);

/* The name of its kind, for example "unsupported-operator". Same lifetime. */
const char *apus_last_error_code(void);

/* The version of the library, for example "0.1.0". */
const char *apus_version(void);

/* The APUS_ABI_VERSION the library was built with. */
int32_t apus_abi_version(void);

/* Types and tensors -------------------------------------------------------------------------- */

typedef int32_t apus_dtype;

/* The numbers of ONNX's TensorProto.DataType. Elements narrower than a byte are packed, lowest bits
 * first. */
enum {
  APUS_UNDEFINED = 0,
  APUS_FLOAT32 = 1,
  APUS_UINT8 = 2,
  APUS_INT8 = 3,
  APUS_UINT16 = 4,
  APUS_INT16 = 5,
  APUS_INT32 = 6,
  APUS_INT64 = 7,
  APUS_STRING = 8,
  APUS_BOOL = 9,
  APUS_FLOAT16 = 10,
  APUS_FLOAT64 = 11,
  APUS_UINT32 = 12,
  APUS_UINT64 = 13,
  APUS_COMPLEX64 = 14,
  APUS_COMPLEX128 = 15,
  APUS_BFLOAT16 = 16,
  APUS_FLOAT8E4M3FN = 17,
  APUS_FLOAT8E4M3FNUZ = 18,
  APUS_FLOAT8E5M2 = 19,
  APUS_FLOAT8E5M2FNUZ = 20,
  APUS_UINT4 = 21,
  APUS_INT4 = 22,
  APUS_FLOAT4E2M1 = 23,
  APUS_FLOAT8E8M0 = 24,
  APUS_UINT2 = 25,
  APUS_INT2 = 26
};

/* A dense, row-major tensor in memory that somebody else owns. */
typedef struct apus_tensor {
  apus_dtype dtype;
  int32_t rank;
  const int64_t *dims; /* rank sizes, outermost first; may be NULL when rank is 0 */
  const void *data;    /* may be NULL when there is no element; NULL for strings */
  size_t byte_count;   /* 0 for strings */
} apus_tensor;

typedef int32_t apus_value_kind;

enum { APUS_KIND_TENSOR = 0, APUS_KIND_SEQUENCE = 1, APUS_KIND_OPTIONAL = 2 };

/* One input or output of an engine. All pointers live as long as the engine. */
typedef struct apus_port {
  const char *name;
  const char *type;       /* in words, for example "f32[N,1,8,8]" or "seq(i64[])" */
  apus_value_kind kind;
  apus_dtype dtype;       /* of the tensor, or of the tensors in the container */
  int32_t rank;           /* -1 when it is not known before running */
  const int64_t *dims;    /* rank sizes, -1 for symbolic ones */
  const char *const *dim_names; /* rank names; an empty string where the size is known */
} apus_port;

/* Text or bytes that a call returns. */
typedef struct apus_report apus_report;
const char *apus_report_data(const apus_report *report); /* a zero byte follows the last one */
size_t apus_report_size(const apus_report *report);
void apus_report_destroy(apus_report *report);

/* Values: tensors, sequences and optionals with a lifetime of their own ------------------------ */

typedef struct apus_value apus_value;

/* Called once, on any thread, when borrowed memory is no longer used. */
typedef void (*apus_release)(void *user);

/* A tensor that uses the caller's memory without copying it. The memory must stay as it is until
 * `release` is called; with a NULL `release`, until everything computed from the value is gone. */
apus_status apus_value_make_tensor(const apus_tensor *tensor, apus_release release, void *user,
                                   apus_value **value);

/* A string tensor; `lengths` may be NULL when every string ends in a zero byte. Copies. */
apus_status apus_value_make_strings(int32_t rank, const int64_t *dims, const char *const *strings,
                                    const size_t *lengths, apus_value **value);

/* A sequence of `count` values of one kind; `dtype` is that of its tensors. Keeps its items. */
apus_status apus_value_make_sequence(apus_dtype dtype, const apus_value *const *items, size_t count,
                                     apus_value **value);

/* An optional; a NULL `item` makes an empty one whose type is a tensor of `dtype`. */
apus_status apus_value_make_optional(apus_dtype dtype, const apus_value *item, apus_value **value);

apus_value_kind apus_value_get_kind(const apus_value *value);

/* The tensor inside; valid as long as the value. `data` is NULL for strings. */
apus_status apus_value_get_tensor(const apus_value *value, apus_tensor *tensor);

/* Element `index`, in row-major order, of a string tensor; valid as long as the value. A zero byte
 * follows the last one. */
apus_status apus_value_get_string(const apus_value *value, size_t index, const char **bytes,
                                  size_t *byte_count);

/* The number of items of a sequence; 1 or 0 for an optional; 0 for a tensor. */
size_t apus_value_item_count(const apus_value *value);

/* A new handle to an item; destroy it too. */
apus_status apus_value_get_item(const apus_value *value, size_t index, apus_value **item);

void apus_value_destroy(apus_value *value);

/* Operators of one's own ----------------------------------------------------------------------- */

/* Computes an operator: reads `inputs` (NULL for an omitted one), and makes a value for every output,
 * which the caller destroys. `attributes` is a JSON object of the node's attributes; tensors appear as
 * {"dims": [...], "values": [...]}. On failure calls apus_fail and returns its status. May be called on
 * any thread, and by several at once. */
typedef apus_status (*apus_operator_run)(void *user, const char *attributes,
                                         const apus_value *const *inputs, size_t input_count,
                                         apus_value **outputs, size_t output_count);

/* Registers an operator for every model built and engine loaded afterwards in this process; the same
 * domain and name again replaces it. `since` is the first version of the domain's operator set that it
 * holds for. `results` names the results' types, separated by commas: "#0" is the element type and
 * shape of input 0; "f32", "i64", ... an element type, the shape being known only after running.
 * `release`, which may be NULL, is called with `user` when the operator is no longer needed. */
apus_status apus_register_operator(const char *domain, const char *name, int32_t since,
                                   const char *results, apus_operator_run run, void *user,
                                   apus_release release);

/* Sets the text of this thread's last error; returns APUS_ERROR_EXECUTION. */
apus_status apus_fail(const char *message);

/* Building ----------------------------------------------------------------------------------- */

typedef struct apus_config apus_config;

/* Options by name, the same names and texts as `apus build --NAME TEXT`:
 *   device        auto, cpu, cuda or cuda:N
 *   precision     fp32, bf16, fp16, int8, int4 or auto
 *   threads       a count
 *   batch         a count; the size that symbolic first dimensions are tuned for
 *   shape         NAME=MIN:OPT:MAX, each like 1x3x224x224; may be set once per input
 *   workspace     a size, for example 512M
 *   timing-cache  a file
 *   level         0...5, how hard to search for fast kernels
 *   time-budget   seconds
 *   calibration   FILE.npz, FILE.npy, a folder of them or of images, or random:N; samples for int8 and auto
 *   preprocess    what is done to images: resize=S, size=WxH, crop=S, scale=D, mean=R:G:B, std=R:G:B, gray, bgr,
 *                 layout=NHWC, separated by commas
 *   calibrator    entropy, minmax, percentile, percentile:P or mse
 *   calibration-cache  a file, used when it exists, else written
 *   skip-bad-calibration-files  true or false
 *   accuracy-budget    what auto may cost: points of top-1, or percent of the results' energy
 *   accuracy-metric    top1 or noise
 *   labels        a .npy file with the class of each sample
 *   layer-precision    NODE=PRECISION; may be set once per layer
 *   int4-group    32, 64 or 128: weights of a column that share a scale with int4
 *   weight-clipping, bias-correction, rounding-correction, equalize   true or false
 * and two that only exist here:
 *   calibration-table  the text of a calibration cache
 *   optimize      full, or reference: no optimisation, every operator by the reference interpreter
 * An unknown name or an unusable text fails and leaves the config as it was. */
apus_status apus_config_create(apus_config **config);
apus_status apus_config_set(apus_config *config, const char *name, const char *text);
void apus_config_destroy(apus_config *config);

typedef struct apus_engine apus_engine;

/* Builds the model in a file. A NULL `config` means every option's default. */
apus_status apus_build_file(const char *path, const apus_config *config, apus_engine **engine);

/* Builds a model in memory, which is not needed afterwards. `directory`, which may be NULL, is where
 * its external data lies. */
apus_status apus_build_bytes(const void *bytes, size_t byte_count, const char *directory,
                             const apus_config *config, apus_engine **engine);

/* Maps an engine file, or the same bytes in memory, which are copied. Of the config only options
 * about running count (threads). */
apus_status apus_engine_load(const char *path, const apus_config *config, apus_engine **engine);
apus_status apus_engine_load_bytes(const void *bytes, size_t byte_count, const apus_config *config,
                                   apus_engine **engine);

/* Writes the engine to a file, or to memory. */
apus_status apus_engine_save(const apus_engine *engine, const char *path);
apus_status apus_engine_serialize(const apus_engine *engine, apus_report **bytes);

size_t apus_engine_input_count(const apus_engine *engine);
size_t apus_engine_output_count(const apus_engine *engine);
apus_status apus_engine_input(const apus_engine *engine, size_t index, apus_port *port);
apus_status apus_engine_output(const apus_engine *engine, size_t index, apus_port *port);

/* JSON: graph, kernels with their source nodes, tactics and refusals, memory plan. */
apus_status apus_engine_inspect(const apus_engine *engine, apus_report **json);

void apus_engine_destroy(apus_engine *engine);

/* JSON: the devices of this machine. */
apus_status apus_devices(apus_report **json);

/* Finding ranges for int8. Batches are given one after another; what is kept of them does not grow. The
 * text of the result is what a calibration cache holds: save it as a file and build with the option
 * "calibration-cache", or set it as the option "calibration-table". */
typedef struct apus_calibration apus_calibration;

apus_status apus_calibration_create(const char *path, const apus_config *config,
                                    apus_calibration **calibration);
apus_status apus_calibration_create_bytes(const void *bytes, size_t byte_count, const char *directory,
                                          const apus_config *config, apus_calibration **calibration);

/* An input of the next batch; the bytes are read when the batch is added. */
apus_status apus_calibration_set_input(apus_calibration *calibration, const char *name,
                                       const apus_tensor *tensor);
apus_status apus_calibration_add(apus_calibration *calibration);
apus_status apus_calibration_finish(apus_calibration *calibration, apus_report **table);
void apus_calibration_destroy(apus_calibration *calibration);

/* The threshold of the calibrator "entropy" for a histogram of magnitudes without zeros. */
apus_status apus_entropy_threshold(const uint64_t *bins, size_t bin_count, double bin_width,
                                   double *threshold);

/* Which layers make results differ from single precision, as JSON. `engine` may be NULL: then the
 * config's precision and calibration are looked at. `inputs` names files like calibration data;
 * `wanted_decibels` is 0, or the signal-to-noise ratio for which to find the layers to raise. */
apus_status apus_blame(const char *model, const apus_engine *engine, const apus_config *config,
                       const char *inputs, double wanted_decibels, apus_report **json);

/* Running ------------------------------------------------------------------------------------ */

typedef struct apus_context apus_context;

/* The state of one run at a time: inputs, workspace, outputs. */
apus_status apus_context_create(const apus_engine *engine, apus_context **context);

/* Sets an input for the runs that follow. The memory is used in place and must stay as it is until
 * the input is set again or the context is destroyed; `dims` is copied. Strings and containers go
 * through apus_context_set_value. */
apus_status apus_context_set_input(apus_context *context, const char *name,
                                   const apus_tensor *tensor);
apus_status apus_context_set_value(apus_context *context, const char *name,
                                   const apus_value *value);

/* Forgets every input that was set. */
void apus_context_clear(apus_context *context);

/* Runs to the end. */
apus_status apus_context_run(apus_context *context);

/* An output tensor of the last run; valid until the context runs again or is destroyed. */
apus_status apus_context_output(const apus_context *context, const char *name, apus_tensor *tensor);

/* An output of any kind, as a value of its own: it outlives the context. */
apus_status apus_context_get_value(const apus_context *context, const char *name,
                                   apus_value **value);

void apus_context_destroy(apus_context *context);

#ifdef __cplusplus
}
#endif

#endif
