/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Modules of the engine one by one: `harness OPERATION` reads records from
 * standard input and writes results to standard output, both as they lie in
 * memory.  test_modules.py holds the other side.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scl_by_output.h"
#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_dense.h"
#include "scl_fixed.h"
#include "scl_frame.h"
#include "scl_loss.h"
#include "scl_port.h"
#include "scl_prng.h"
#include "scl_sparse.h"

/* The port: what the engine sends comes out. */
void scl_port_write(const uint8_t *data, uint32_t size) { fwrite(data, 1, size, stdout); }

static int take(void *data, size_t size) { return fread(data, 1, size, stdin) == size; }

static void give(const void *data, size_t size) { fwrite(data, 1, size, stdout); }

static void give_i32(int32_t v) { give(&v, sizeof v); }

static void fixed(void) {
  struct {
    int32_t v, s;
  } in;
  while (take(&in, sizeof in)) {
    give_i32(in.s >= 0 ? scl_asr(in.v, (uint32_t)in.s) : 0);
    give_i32(scl_shift(in.v, in.s));
    give_i32(scl_sat16(in.v));
    give_i32(scl_clamp_weight(in.v, 1u + ((uint32_t)in.s & 15u) % 15u));
    const uint32_t magnitude = scl_abs(in.v);
    give(&magnitude, sizeof magnitude);
  }
}

static void prng(void) {
  uint32_t in[2];
  while (take(in, sizeof in)) {
    uint32_t out[2] = {in[0], 0};
    out[1] = scl_prng_below(&out[0], in[1]);
    give(out, sizeof out);
  }
}

static void crc(void) {
  uint32_t head[3]; /* former value, bytes, where they lie after a word's boundary */
  _Alignas(4) uint8_t memory[4096];
  while (take(head, sizeof head) && take(memory + head[2], head[1])) {
    const uint32_t sum = scl_crc32(head[0], memory + head[2], head[1]);
    give(&sum, sizeof sum);
  }
}

static void loss(void) {
  struct {
    int16_t z[SCL_N_CLASSES], stored[SCL_N_CLASSES];
    uint8_t class_task[SCL_N_CLASSES];
    uint8_t label;
    int8_t task;
  } in;
  while (take(in.z, sizeof in.z) && take(in.stored, sizeof in.stored) && take(in.class_task, sizeof in.class_task) &&
         take(&in.label, 1) && take(&in.task, 1)) {
    int16_t e[SCL_LOGITS_PAD];
    give_i32((int32_t)scl_loss_cross_entropy(in.z, in.label, in.class_task, in.task, e));
    give(e, sizeof e);
    scl_loss_distil(in.z, in.stored, e);
    give(e, sizeof e);
    give_i32((int32_t)scl_loss_predict(in.z));
  }
}

/* Events, and the bytes of complete frames. */
static void frames(void) {
  static scl_frame_t frame;
  uint8_t byte;
  while (take(&byte, 1)) {
    const int32_t event = (int32_t)scl_frame_take(&frame, byte);
    if (event != SCL_FRAME_MORE) {
      give_i32(event);
      give_i32(event == SCL_FRAME_COMPLETE ? (int32_t)frame.size : 0);
      give(frame.bytes, event == SCL_FRAME_COMPLETE ? frame.size : 0u);
    }
  }
}

static void send(void) {
  uint32_t size;
  uint8_t bytes[SCL_FRAME_BYTES];
  while (take(&size, sizeof size) && take(bytes, size)) {
    scl_frame_send(bytes, size);
  }
}

static void bytes(void) {
  uint8_t p[8];
  while (take(p, sizeof p)) {
    uint8_t q[16];
    uint64_t wide;
    memcpy(&wide, p, sizeof wide);
    scl_put_u16(q, scl_get_u16(p));
    scl_put_u32(q + 2, scl_get_u32(p + 2));
    scl_put_u64(q + 6, wide);
    give(q, 14);
  }
}

/*
 * Kernels on one panel, or on a dense layer (blocks of 1, no start).  Memory of
 * exactly the right size, so that the sanitizer sees an access beyond it.
 */
static void *take_array(size_t count, size_t size) {
  void *data = calloc(count ? count : 1u, size);
  if (data == NULL || !take(data, count * size)) {
    exit(2);
  }
  return data;
}

typedef struct {
  uint32_t kind, rectified, n_in, n_out, block, entries, shift, wlog, prng, sparse;
} shape_t;

static void kernel(void) {
  shape_t s;
  while (take(&s, sizeof s)) {
    const scl_kind_t kind = (scl_kind_t)s.kind;
    const uint32_t count = s.sparse ? s.entries * s.block : s.n_in * s.n_out;
    void *x = take_array(s.n_in, kind == SCL_I16 ? 2 : 1);
    int16_t *weight = take_array(count, sizeof *weight);
    int16_t *e = take_array(s.n_out, sizeof *e);
    int32_t *acc = take_array(s.n_out, sizeof *acc);
    int32_t *sums = calloc(s.n_in, sizeof *sums);
    int32_t *gradient = calloc(count ? count : 1u, sizeof *gradient);
    uint32_t random = s.prng;
    scl_panel_t p = {.weight = weight, .gradient = gradient};
    const uint32_t lines = s.sparse == 2u ? s.n_out / s.block : s.n_in; /* 2: by output */
    if (s.sparse) {
      p.start = take_array(lines + 1u, sizeof *p.start);
      p.split = take_array(lines, sizeof *p.split);
      p.index = take_array(s.entries, 1);
    }
    int16_t *error = calloc(s.n_in, sizeof *error);
    if (s.sparse == 2u) {
      scl_by_output_forward(&p, x, kind, lines, s.block, acc);
      scl_by_output_error(&p, lines, s.block, e, sums);
      give_i32((int32_t)scl_errors_alive(sums, x, kind, (int)s.rectified, error, s.n_in, 3, 1));
      scl_by_output_update(&p, x, kind, (int)s.rectified, lines, s.block, e, s.shift, s.wlog, &random);
      scl_by_output_accumulate(&p, x, kind, lines, s.block, e);
    } else if (s.sparse) {
      scl_sparse_forward(&p, x, kind, s.n_in, s.block, 0, acc);
      scl_sparse_error(&p, x, kind, (int)s.rectified, s.n_in, s.block, 0, e, sums);
      scl_sparse_update(&p, x, kind, (int)s.rectified, s.n_in, s.block, 0, e, s.shift, s.wlog, &random);
      scl_sparse_accumulate(&p, x, kind, s.n_in, s.block, 0, e);
    } else {
      scl_dense_forward(weight, x, kind, s.n_in, s.n_out, acc);
      give_i32((int32_t)scl_dense_error(weight, x, kind, (int)s.rectified, s.n_in, s.n_out, e, 3, error, 1));
      scl_dense_update(weight, x, kind, (int)s.rectified, s.n_in, s.n_out, e, s.shift, s.wlog, &random);
      scl_dense_accumulate(gradient, x, kind, s.n_in, s.n_out, e);
    }
    for (uint32_t i = 0; s.sparse != 1u && i < s.n_in; i++) {
      sums[i] = error[i];
    }
    free(error);
    give(acc, s.n_out * sizeof *acc);
    give(sums, s.n_in * sizeof *sums);
    give(weight, count * sizeof *weight);
    give(gradient, count * sizeof *gradient);
    give(&random, sizeof random);
    if (s.sparse) {
      scl_sparse_apply(&p, lines, s.block, s.shift - SCL_SACC, s.wlog, &random);
    } else {
      scl_dense_apply(weight, gradient, count, s.shift - SCL_SACC, s.wlog, &random);
    }
    give(weight, count * sizeof *weight);
    give(&random, sizeof random);
    if (s.sparse) {
      free(p.start);
      free(p.split);
      free(p.index);
    }
    free(x), free(weight), free(e), free(acc), free(sums), free(gradient);
  }
}

static void guard(void) {
  uint32_t head[2];
  int16_t v[64];
  while (take(head, sizeof head) && take(v, head[0] * sizeof *v)) {
    give_i32((int32_t)scl_guard(v, head[0], head[1]));
    give(v, head[0] * sizeof *v);
  }
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(void);
  } operations[] = {{"fixed", fixed}, {"prng", prng},   {"crc", crc},       {"loss", loss},  {"frames", frames},
                    {"send", send},   {"bytes", bytes}, {"kernel", kernel}, {"guard", guard}};
  for (size_t k = 0; argc == 2 && k < sizeof operations / sizeof operations[0]; k++) {
    if (strcmp(argv[1], operations[k].name) == 0) {
      operations[k].run();
      return 0;
    }
  }
  return 2;
}
