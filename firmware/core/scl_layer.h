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

#if SCL_LATENT_SIGNED
#define SCL_LATENT_KIND SCL_I8
#else
#define SCL_LATENT_KIND SCL_U8
#endif

/*
 * From sums to activations: shift, then clamp to low .. high; count_low,
 * count_high: whether a value beyond that limit counts as saturated.
 */
typedef struct {
  int32_t low, high;
  int8_t shift;
  uint8_t count_low, count_high;
} scl_activation_t;

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

/* Where value i lies. */
SCL_INLINE const void *scl_at(const void *x, scl_kind_t kind, uint32_t i) {
  return (const uint8_t *)x + (kind == SCL_I16 ? 2u * i : i);
}

/* One sum to an activation; adds to *saturated. */
SCL_INLINE int16_t scl_activate_value(int32_t sum, scl_activation_t a, uint32_t *saturated) {
  int32_t v = scl_shift(sum, a.shift);
  if (v < a.low) {
    v = a.low;
    *saturated += a.count_low;
  }
  if (v > a.high) {
    v = a.high;
    *saturated += a.count_high;
  }
  return (int16_t)v;
}

/* The sums of a dense layer to activations or logits; returns how many saturated. */
SCL_INLINE uint32_t scl_activate(const int32_t *acc, int16_t *out, uint32_t n, scl_activation_t a) {
  uint32_t saturated = 0;
  for (uint32_t o = 0; o < n; o++) {
    out[o] = scl_activate_value(acc[o], a, &saturated);
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

/* Adds a contribution of 16 bits to an error; first: the error has none yet. */
SCL_INLINE void scl_contribute(int16_t *e, int32_t contribution, int first) {
  *e = first ? (int16_t)contribution : scl_sat16(*e + contribution);
}

/*
 * What the error sums of a dense layer contribute to its input's error; returns how many saturated.  For a rectified
 * input scl_dense_error and scl_sparse_error leave the sums 0 that do not count.
 */
SCL_INLINE uint32_t scl_errors(const int32_t *sums, int16_t *e, uint32_t n, int32_t fw, int first) {
  uint32_t saturated = 0;
  for (uint32_t i = 0; i < n; i++) {
    const int32_t v = scl_shift(sums[i], fw);
    if (v > 32767 || v < -32768) {
      saturated++;
    }
    scl_contribute(&e[i], scl_sat16(v), first);
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
