/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every kind of layer shares: loading inputs, activation, the norm guard,
 * scaling errors by the learning rate, bias updates.  docs/numerics.md.
 */
#ifndef SCL_LAYER_H
#define SCL_LAYER_H

#include "scl_fixed.h"

typedef enum { SCL_U8, SCL_I8, SCL_I16 } scl_kind_t;

#if SCL_INPUT_SIGNED
#define SCL_INPUT_KIND SCL_I8
#else
#define SCL_INPUT_KIND SCL_U8
#endif

/* How an error becomes a step: g = sat16(shift(e * multiplier, shift)). */
typedef struct {
  int16_t multiplier;
  int8_t shift;
} scl_rate_t;

SCL_INLINE int32_t scl_load(const void *x, scl_kind_t kind, uint32_t i) {
  switch (kind) {
    case SCL_U8:
      return ((const uint8_t *)x)[i];
    case SCL_I8:
      return ((const int8_t *)x)[i];
    default:
      return ((const int16_t *)x)[i];
  }
}

/* Accumulators to activations or logits; returns how many saturated. */
SCL_INLINE uint32_t scl_activate(const int32_t *acc, int16_t *out, uint32_t n, int32_t shift, int relu) {
  uint32_t saturated = 0;
  for (uint32_t o = 0; o < n; o++) {
    int32_t v = scl_shift(acc[o], shift);
    if (relu && v < 0) {
      v = 0;
    }
    if (v > 32767 || v < -32768) {
      saturated++;
    }
    out[o] = scl_sat16(v);
  }
  return saturated;
}

/* Halves all values until the sum of their magnitudes is at most `limit`, so that the sums they enter cannot overflow. */
SCL_INLINE uint32_t scl_guard(int16_t *v, uint32_t n, uint32_t limit) {
  for (uint32_t rounds = 0;; rounds++) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
      sum += scl_abs(v[i]);
    }
    if (sum <= limit) {
      return rounds;
    }
    for (uint32_t i = 0; i < n; i++) {
      v[i] = (int16_t)scl_shift(v[i], 1);
    }
  }
}

SCL_INLINE void scl_scale(const int16_t *e, int16_t *g, uint32_t n, scl_rate_t rate) {
  for (uint32_t o = 0; o < n; o++) {
    g[o] = scl_sat16(scl_shift(e[o] * rate.multiplier, rate.shift));
  }
}

/* Error sums of a layer's inputs to errors of the layer below; returns how many saturated. */
SCL_INLINE uint32_t scl_errors(const int32_t *sums, int16_t *e, uint32_t n, int32_t fw) {
  uint32_t saturated = 0;
  for (uint32_t i = 0; i < n; i++) {
    const int32_t v = scl_shift(sums[i], fw);
    if (v > 32767 || v < -32768) {
      saturated++;
    }
    e[i] = scl_sat16(v);
  }
  return saturated;
}

SCL_INLINE void scl_bias_step(int32_t *bias, int32_t g, int32_t shift, uint32_t blog) {
  const int32_t limit = (int32_t)(1u << blog) - 1;
  *bias = scl_clamp(*bias - scl_shift(g, shift), -limit, limit);
}

SCL_INLINE void scl_bias_update(int32_t *bias, const int16_t *g, uint32_t n, int32_t shift, uint32_t blog) {
  for (uint32_t o = 0; o < n; o++) {
    scl_bias_step(&bias[o], g[o], shift, blog);
  }
}

SCL_INLINE void scl_bias_accumulate(int32_t *sums, const int16_t *g, uint32_t n) {
  for (uint32_t o = 0; o < n; o++) {
    sums[o] += g[o];
  }
}

SCL_INLINE void scl_bias_apply(int32_t *bias, int32_t *sums, uint32_t n, int32_t shift, uint32_t blog) {
  for (uint32_t o = 0; o < n; o++) {
    scl_bias_step(&bias[o], sums[o], shift, blog);
    sums[o] = 0;
  }
}

#endif
