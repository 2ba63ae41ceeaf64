/* Part of Apus, an inference optimizer and runtime.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Uses the C interface the way a C program does: interface MODEL ENGINE
 * builds the digits model, saves it to ENGINE, loads it again, runs both. Python's tests compile and
 * run it; it prints the first failing check and exits with 1. */
#include "apus.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      printf("line %d: %s\nlast error: %s\n", __LINE__, #condition, apus_last_error()); \
      exit(1);                                                                        \
    }                                                                                 \
  } while (0)

static int releases = 0;

static void count_release(void *user) { releases += *(int *)user; }

static void check_errors(void) {
  apus_engine *engine = NULL;
  CHECK(apus_last_error()[0] == 0);
  CHECK(apus_build_file(NULL, NULL, &engine) == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(strcmp(apus_last_error_code(), "invalid-argument") == 0);
  CHECK(apus_build_file("no-such-file.onnx", NULL, &engine) == APUS_ERROR_FILE_ACCESS);
  CHECK(strstr(apus_last_error(), "no-such-file.onnx") != NULL);
  CHECK(apus_build_bytes("junk", 4, NULL, NULL, &engine) != APUS_OK);
  CHECK(apus_engine_load_bytes("junk", 4, NULL, &engine) != APUS_OK);
  CHECK(engine == NULL);
  apus_engine_destroy(NULL);
  apus_context_destroy(NULL);
  apus_value_destroy(NULL);
  apus_config_destroy(NULL);
  apus_report_destroy(NULL);
}

static void check_values(void) {
  int64_t dims[] = {2, 3};
  float numbers[] = {1, 2, 3, 4, 5, 6};
  int step = 1;
  apus_tensor tensor = {APUS_FLOAT32, 2, dims, numbers, sizeof numbers};
  apus_tensor seen;
  apus_value *value = NULL, *item = NULL, *sequence = NULL, *strings = NULL, *absent = NULL;

  tensor.byte_count -= 4;
  CHECK(apus_value_make_tensor(&tensor, count_release, &step, &value) ==
        APUS_ERROR_INVALID_ARGUMENT);
  CHECK(releases == 0);
  tensor.byte_count += 4;
  CHECK(apus_value_make_tensor(&tensor, count_release, &step, &value) == APUS_OK);
  CHECK(apus_value_get_kind(value) == APUS_KIND_TENSOR);
  CHECK(apus_value_get_tensor(value, &seen) == APUS_OK);
  CHECK(seen.data == numbers && seen.rank == 2 && seen.dims[1] == 3);

  CHECK(apus_value_make_sequence(APUS_FLOAT32, (const apus_value *const *)&value, 1, &sequence) ==
        APUS_OK);
  apus_value_destroy(value);
  CHECK(releases == 0);
  CHECK(apus_value_item_count(sequence) == 1);
  CHECK(apus_value_get_item(sequence, 1, &item) == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(apus_value_get_item(sequence, 0, &item) == APUS_OK);
  apus_value_destroy(sequence);
  CHECK(apus_value_get_tensor(item, &seen) == APUS_OK && seen.data == numbers);
  apus_value_destroy(item);
  CHECK(releases == 1);

  {
    const char *words[] = {"one", "two\0three"};
    size_t lengths[] = {3, 9};
    int64_t two = 2;
    const char *bytes = NULL;
    size_t count = 0;
    CHECK(apus_value_make_strings(1, &two, words, lengths, &strings) == APUS_OK);
    CHECK(apus_value_get_string(strings, 1, &bytes, &count) == APUS_OK);
    CHECK(count == 9 && memcmp(bytes, words[1], 10) == 0);
    CHECK(apus_value_get_string(strings, 2, &bytes, &count) != APUS_OK);
    apus_value_destroy(strings);
  }
  CHECK(apus_value_make_optional(APUS_INT64, NULL, &absent) == APUS_OK);
  CHECK(apus_value_get_kind(absent) == APUS_KIND_OPTIONAL);
  CHECK(apus_value_item_count(absent) == 0);
  apus_value_destroy(absent);
}

static void run(const apus_engine *engine, float *probability) {
  apus_context *context = NULL;
  int64_t dims[] = {1, 1, 8, 8};
  float pixels[64];
  apus_tensor image = {APUS_FLOAT32, 4, dims, pixels, sizeof pixels};
  apus_tensor result;
  float sum = 0;
  int index;
  for (index = 0; index < 64; ++index) pixels[index] = (float)(index % 5) / 5;

  CHECK(apus_context_create(engine, &context) == APUS_OK);
  CHECK(apus_context_run(context) == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(apus_last_error(), "image") != NULL);
  CHECK(apus_context_set_input(context, "picture", &image) == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(apus_context_set_input(context, "image", &image) == APUS_OK);
  CHECK(apus_context_run(context) == APUS_OK);
  CHECK(apus_context_output(context, "logits", &result) == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(apus_context_output(context, "probability", &result) == APUS_OK);
  CHECK(result.dtype == APUS_FLOAT32 && result.rank == 2 && result.byte_count == 40);
  CHECK(result.dims[0] == 1 && result.dims[1] == 10);
  for (index = 0; index < 10; ++index) sum += ((const float *)result.data)[index];
  CHECK(fabsf(sum - 1) < 1e-5f);
  memcpy(probability, result.data, 40);
  {
    apus_value *kept = NULL;
    apus_tensor again;
    CHECK(apus_context_get_value(context, "probability", &kept) == APUS_OK);
    apus_context_destroy(context);
    CHECK(apus_value_get_tensor(kept, &again) == APUS_OK);
    CHECK(memcmp(again.data, probability, 40) == 0);
    apus_value_destroy(kept);
  }
}

static void check_engine(const char *model, const char *path) {
  apus_config *config = NULL;
  apus_engine *built = NULL, *loaded = NULL, *reference = NULL;
  apus_report *report = NULL;
  apus_port port;
  float a[10], b[10], c[10];
  int index;

  CHECK(apus_config_create(&config) == APUS_OK);
  CHECK(apus_config_set(config, "colour", "blue") == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(apus_config_set(config, "threads", "many") == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(apus_config_set(config, "threads", "1") == APUS_OK);
  CHECK(apus_build_file(model, config, &built) == APUS_OK);
  CHECK(apus_engine_input_count(built) == 1 && apus_engine_output_count(built) == 1);
  CHECK(apus_engine_input(built, 1, &port) == APUS_ERROR_INVALID_ARGUMENT);
  CHECK(apus_engine_input(built, 0, &port) == APUS_OK);
  CHECK(strcmp(port.name, "image") == 0 && port.kind == APUS_KIND_TENSOR);
  CHECK(port.dtype == APUS_FLOAT32 && port.rank == 4);
  CHECK(port.dims[0] == -1 && strcmp(port.dim_names[0], "N") == 0);
  CHECK(port.dims[3] == 8 && port.dim_names[3][0] == 0);
  CHECK(apus_engine_inspect(built, &report) == APUS_OK);
  CHECK(apus_report_data(report)[0] == '{' &&
        strlen(apus_report_data(report)) == apus_report_size(report));
  apus_report_destroy(report);
  run(built, a);

  CHECK(apus_engine_save(built, path) == APUS_OK);
  apus_engine_destroy(built);
  CHECK(apus_engine_load(path, config, &loaded) == APUS_OK);
  run(loaded, b);
  CHECK(apus_engine_serialize(loaded, &report) == APUS_OK && apus_report_size(report) > 0);
  apus_report_destroy(report);
  apus_engine_destroy(loaded);

  CHECK(apus_config_set(config, "optimize", "reference") == APUS_OK);
  CHECK(apus_build_file(model, config, &reference) == APUS_OK);
  run(reference, c);
  apus_engine_destroy(reference);
  apus_config_destroy(config);
  for (index = 0; index < 10; ++index) {
    CHECK(a[index] == b[index]);
    CHECK(fabsf(a[index] - c[index]) < 1e-5f);
  }
}

int main(int argc, char **argv) {
  if (argc != 3) {
    printf("usage: interface MODEL ENGINE\n");
    return 64;
  }
  CHECK(apus_abi_version() == APUS_ABI_VERSION);
  CHECK(strlen(apus_version()) > 0);
  check_errors();
  check_values();
  check_engine(argv[1], argv[2]);
  printf("apus %s: every check passed\n", apus_version());
  return 0;
}
