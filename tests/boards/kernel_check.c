/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firmware that runs the inner loops of fully connected layers on random numbers and says what they left behind: a line
 * "<kernel> <count> <digest>" for each, then "end".  test_kernels.py compares two builds of it.
 */
#include "scl_app.h"
#include "scl_dense.h"
#include "scl_port.h"
#include "scl_sparse.h"

enum { ENTRIES = 41, PLACES = 64, ROWS = 13, WIDTH = 40 };

static uint32_t seed, digest, prng;
static uint8_t index[ENTRIES];
static int16_t weight[ROWS * WIDTH], error[4 * PLACES], input[16], output[WIDTH];
static int32_t sums[4 * PLACES];

static void say(const char *text) {
  uint32_t size = 0;
  while (text[size] != 0) {
    size++;
  }
  scl_port_write((const uint8_t *)text, size);
}

static void say_number(uint32_t v) {
  char digits[] = " 00000000";
  for (uint32_t k = 8; k > 0; k--, v >>= 4) {
    digits[k] = "0123456789abcdef"[v & 15u];
  }
  say(digits);
}

static uint32_t draw(void) {
  seed ^= seed << 13;
  seed ^= seed >> 17;
  seed ^= seed << 5;
  return seed;
}

static void fill(int16_t *p, uint32_t n, uint32_t bits) {
  for (uint32_t k = 0; k < n; k++) {
    p[k] = (int16_t)(draw() % 5u == 0 ? 0 : scl_asr((int32_t)draw(), 32u - bits));
  }
}

/* New numbers; bits of weights and errors, so that no sum of their products overflows. */
static void begin(uint32_t bits) {
  digest = 2166136261u;
  prng = draw();
  fill(weight, ROWS * WIDTH, bits);
  fill(error, 4 * PLACES, bits);
  fill(input, 16, 16);
  fill(output, WIDTH, bits);
  for (uint32_t k = 0; k < 4 * PLACES; k++) {
    sums[k] = scl_asr((int32_t)draw(), 3);
  }
  for (uint32_t k = 0, at = draw(), by = draw() | 1u; k < ENTRIES; k++, at += by) {
    index[k] = (uint8_t)(at % PLACES);
  }
}

static void take(const void *p, uint32_t bytes) {
  for (uint32_t k = 0; k < bytes; k++) {
    digest = (digest ^ ((const uint8_t *)p)[k]) * 16777619u;
  }
}

static void end(const char *kernel, uint32_t count, uint32_t result) {
  take(weight, sizeof weight);
  take(error, sizeof error);
  take(output, sizeof output);
  take(sums, sizeof sums);
  take(&prng, sizeof prng);
  take(&result, sizeof result);
  say(kernel);
  say_number(count);
  say_number(digest);
  say("\n");
}

/* Where the kernels have constants, so have these. */
#define SPARSE(block)                                                                                         \
  static __attribute__((noinline)) void sparse_##block(uint32_t n) {                                          \
    begin(16);                                                                                                \
    scl_sparse_axpy(sums, weight, index, n, block, input[0]);                                                 \
    end("sparse_axpy_" #block, n, 0);                                                                         \
    begin(12);                                                                                                \
    end("sparse_dot_" #block, n, (uint32_t)scl_sparse_dot(error, weight, index, n, block));                   \
    SPARSE_STEP(block, 1, 15) SPARSE_STEP(block, 14, 15) SPARSE_STEP(block, 17, 9) SPARSE_STEP(block, 30, 14) \
  }
#define SPARSE_STEP(block, shift, wlog)                                                                   \
  begin(wlog);                                                                                            \
  scl_sparse_step(weight, error, index, n, block, input[0], (scl_stepping_t){shift, wlog, 16, &prng, 1}); \
  end("sparse_step_" #block "_" #shift "_" #wlog, n, 0);

SPARSE(1)
SPARSE(2)
SPARSE(4)

#define DENSE(n)                                                                                     \
  static __attribute__((noinline)) void dense_##n(void) {                                            \
    begin(12);                                                                                       \
    scl_dense_forward(weight, input, SCL_I16, ROWS, n, sums);                                        \
    end("dense_forward", n, 0);                                                                      \
    begin(12);                                                                                       \
    end("dense_error", n, scl_dense_error(weight, input, SCL_I16, 1, ROWS, n, error, 5, output, 1)); \
    begin(15);                                                                                       \
    scl_dense_update(weight, input, SCL_I16, 1, ROWS, n, error, 13, 15, &prng);                      \
    end("dense_update_16", n, 0);                                                                    \
    begin(13);                                                                                       \
    scl_dense_update(weight, input, SCL_U8, 0, ROWS, n, error, 9, 13, &prng);                        \
    end("dense_update_8", n, 0);                                                                     \
  }

#define ALL_DENSE(m) \
  m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15) m(16) m(17) m(18) m(23) m(32) m(39)
ALL_DENSE(DENSE)
#define CALL(n) dense_##n();

static void activations(uint32_t n, int8_t shift) {
  begin(16);
  uint32_t norm = 7;
  const scl_activation_t relu = {0, 32767, shift, 0, 1};
  const uint32_t saturated = scl_activate(sums, output, n, relu, &norm);
  take(&norm, sizeof norm);
  end("activate", n, saturated);
  begin(16);
  scl_scale_and_bias(output, sums, n, (scl_rate_t){input[0], (int8_t)(9 + shift / 2)}, shift - 14, 29);
  end("scale_and_bias", n, 0);
}

int scl_app_main(void) {
  scl_port_init();
  while (scl_port_read_byte() < 0) {
  }
  seed = 1;
  for (uint32_t n = 0; n < ENTRIES; n++) {
    sparse_1(n);
    sparse_2(n);
    sparse_4(n);
    activations(n % WIDTH, (int8_t)(n % 25u));
  }
  ALL_DENSE(CALL)
  say("end\n");
  for (;;) {
  }
}
