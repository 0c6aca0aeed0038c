/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every kind of layer shares: loading inputs, activation, the norm guard,
 * scaling errors by the learning rate, bias updates.  docs/spec/numerics.md.
 */
#ifndef SCL_LAYER_H
#define SCL_LAYER_H

#include <string.h>

#include "scl_fixed.h"
#include "scl_mve.h"
#include "scl_simd.h"

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

/* How an error becomes a step: g = sat16(shift(e * multiplier, shift)), shift at least 1. */
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

/*
 * `body` for each i below n, in order, where xi, which is x[i], is not 0.  After ReLU and in most images zeros are the
 * majority: 8-bit inputs are looked at four at a time.
 */
#define SCL_FOR_ACTIVE(i, xi, x, kind, n)                                               \
  for (uint32_t i##_at = 0; i##_at < (n); i##_at += scl_values_at_once(kind))           \
    for (uint32_t i##_word = scl_values(x, kind, i##_at, n), i = i##_at; i##_word != 0; \
         i##_word = scl_without_first(i##_word, kind), i++)                             \
      if (((xi) = scl_first_of(i##_word, kind)) != 0)

SCL_INLINE uint32_t scl_values_at_once(scl_kind_t kind) { return kind != SCL_I16 && SCL_UNALIGNED ? 4u : 1u; }

SCL_INLINE uint32_t scl_values(const void *x, scl_kind_t kind, uint32_t i, uint32_t n) {
  if (kind == SCL_I16) {
    return ((const uint16_t *)x)[i];
  }
  const uint8_t *from = (const uint8_t *)x + i;
  if (!SCL_UNALIGNED) {
    return *from;
  }
  uint32_t word = 0;
  if (n % 4u == 0 || i + 4u <= n) {
    memcpy(&word, from, 4);
  } else {
    memcpy(&word, from, n % 4u);
  }
  return word;
}

SCL_INLINE int32_t scl_first_of(uint32_t word, scl_kind_t kind) {
  return kind == SCL_U8 ? (int32_t)(word & 255u) : kind == SCL_I8 ? (int8_t)word : (int16_t)word;
}

SCL_INLINE uint32_t scl_without_first(uint32_t word, scl_kind_t kind) {
  return kind != SCL_I16 && SCL_UNALIGNED ? word >> 8 : 0u;
}

/* Bits of the magnitude of an input. */
SCL_INLINE uint32_t scl_bits_of(scl_kind_t kind, int rectified) {
  return kind == SCL_I16 ? (rectified ? 15u : 16u) : 8u;
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

/*
 * The sums of a dense layer to activations or logits; returns how many saturated.  Adds their magnitudes to *norm, for
 * the norm guard.
 */
SCL_INLINE uint32_t scl_activate_all(const int32_t *acc, int16_t *out, uint32_t n, scl_activation_t a, uint32_t *norm) {
  uint32_t saturated = 0;
  for (uint32_t o = 0; o < n; o++) {
    out[o] = scl_activate_value(acc[o], a, &saturated);
    *norm += scl_abs(out[o]);
  }
  return saturated;
}

/* For ReLU that nothing saturates, which is almost always, is found by the bits of all values. */
SCL_INLINE uint32_t scl_activate(const int32_t *acc, int16_t *out, uint32_t n, scl_activation_t a, uint32_t *norm) {
  if (a.low == 0 && a.high == 32767) {
    uint32_t sum = 0, bits = 0, o = 0;
#if SCL_MVE
    o = scl_mve_relu(acc, out, n, a.shift, &sum, &bits);
#endif
    SCL_UNROLL
    for (; o < n; o++) {
      const int32_t v = scl_shift(acc[o], a.shift);
      const uint32_t alive = (uint32_t)(v > 0 ? v : 0);
      sum += alive;
      bits |= alive;
      out[o] = (int16_t)alive;
    }
    if (bits <= 32767u) {
      *norm += sum;
      return 0;
    }
  }
  return scl_activate_all(acc, out, n, a, norm);
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

/* An error to a step.  A product of 16 bits leaves room to add one half. */
SCL_INLINE int32_t scl_scaled(int32_t e, scl_rate_t rate) {
  return scl_saturate(scl_asr(e * rate.multiplier + (int32_t)(1u << ((uint32_t)rate.shift - 1u)), (uint32_t)rate.shift),
                      15);
}

SCL_INLINE void scl_scale(const int16_t *e, int16_t *g, uint32_t n, scl_rate_t rate) {
  for (uint32_t o = 0; o < n; o++) {
    g[o] = (int16_t)scl_scaled(e[o], rate);
  }
}

/* Adds a contribution of 16 bits to an error; first: the error has none yet. */
SCL_INLINE void scl_contribute(int16_t *e, int32_t contribution, int first) {
  *e = first ? (int16_t)contribution : scl_sat16(*e + contribution);
}

/* What an error sum contributes to the error of a value; returns whether it saturated. */
SCL_INLINE uint32_t scl_contribute_sum(int16_t *e, int32_t sum, int32_t shift, int first) {
  const int32_t v = scl_shift(sum, shift);
  const int32_t kept = scl_saturate(v, 15);
  scl_contribute(e, kept, first);
  return kept != v;
}

/* What the error sums contribute to the errors of all values of a layer's input; returns how many saturated. */
SCL_INLINE uint32_t scl_errors(const int32_t *sums, int16_t *e, uint32_t n, int32_t fw, int first) {
  uint32_t saturated = 0;
  for (uint32_t i = 0; i < n; i++) {
    saturated += scl_contribute_sum(&e[i], sums[i], fw, first);
  }
  return saturated;
}

/*
 * What the error sums contribute to the errors of an input x; what is not alive, a rectified value that is 0, has no
 * error.  Many sums are 0 as well.
 */
SCL_INLINE uint32_t scl_errors_alive(const int32_t *sums, const void *x, scl_kind_t kind, int rectified, int16_t *e,
                                     uint32_t n, int32_t fw, int first) {
  uint32_t saturated = 0;
  SCL_UNROLL
  for (uint32_t i = 0; i < n; i++) {
    int32_t sum = sums[i];
    SCL_KEEP_LOW(sum);
    if (sum != 0 && (!rectified || scl_load(x, kind, i) > 0)) {
      saturated += scl_contribute_sum(&e[i], sum, fw, first);
    } else if (first) {
      e[i] = 0;
    }
  }
  return saturated;
}

SCL_INLINE void scl_bias_step(int32_t *bias, int32_t g, int32_t shift, uint32_t blog) {
  const int32_t limit = (int32_t)(1u << blog) - 1;
  const int32_t b = *bias - scl_shift(g, shift);
  *bias = (uint32_t)(b + limit) <= 2u * (uint32_t)limit ? b : scl_clamp(b, -limit, limit);
}

SCL_INLINE void scl_scale_one(int16_t *e, int32_t value, int32_t *bias, scl_rate_t rate, int32_t shift, uint32_t blog) {
  if (value != 0) {
    SCL_KEEP(value); /* gcc would scale zeros as well */
    const int32_t g = scl_scaled(value, rate);
    *e = (int16_t)g;
    scl_bias_step(bias, g, shift, blog);
  }
}

/*
 * Errors to steps, in place, and the bias's step.  Where the error is 0, as it is behind ReLU for about half of the
 * values, both stay what they are.
 */
SCL_INLINE void scl_scale_and_bias(int16_t *e, int32_t *bias, uint32_t n, scl_rate_t rate, int32_t shift,
                                   uint32_t blog) {
  uint32_t o = 0;
#if SCL_MVE
  o = scl_mve_scale_and_bias(e, bias, n, rate.multiplier, rate.shift, shift, (int32_t)(1u << blog) - 1);
#endif
  for (; SCL_UNALIGNED && o + 2u <= n; o += 2u) {
    uint32_t pair = scl_pair(&e[o]);
    SCL_KEEP_LOW(pair);
    if (pair != 0) {
      scl_scale_one(&e[o], scl_low(pair), &bias[o], rate, shift, blog);
      scl_scale_one(&e[o + 1u], scl_high(pair), &bias[o + 1u], rate, shift, blog);
    }
  }
  for (; o < n; o++) {
    scl_scale_one(&e[o], e[o], &bias[o], rate, shift, blog);
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
