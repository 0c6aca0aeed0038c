/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fully connected layer with every weight present: weight[i * n_out + o].
 * All passes skip inputs that are 0: after ReLU and in most images these are
 * the majority, and they contribute nothing to any sum.
 */
#ifndef SCL_DENSE_H
#define SCL_DENSE_H

#include "scl_layer.h"
#include "scl_mve.h"

/*
 * The benchmark's other baseline: every step touches every weight, like trainers without sparsity.  Its random numbers
 * differ, because each weight draws one.
 */
#ifdef SCL_BENCH_EVERY_INPUT
#define SCL_FOR_DENSE(i, xi, x, kind, n) \
  for (uint32_t i = 0; i < (n); i++)     \
    if (((xi) = scl_load(x, kind, i)), 1)
#else
#define SCL_FOR_DENSE SCL_FOR_ACTIVE
#endif

/* acc += x * w */
SCL_INLINE void scl_axpy(int32_t *acc, const int16_t *w, int32_t x, const uint32_t n) {
#if SCL_MVE
  scl_mve_axpy(acc, w, n, x);
#else
  uint32_t o = 0;
  if (SCL_PAIRS) {
    for (; o + 8u <= n; o += 8u) {
      scl_axpy_pairs(acc + o, w + o, 8, x);
    }
    scl_axpy_pairs(acc + o, w + o, (n - o) & 6u, x);
    o += (n - o) & 6u;
  }
  SCL_UNROLL
  for (; o < n; o++) {
    acc[o] += w[o] * x;
  }
#endif
}

/* The scalar product. */
SCL_INLINE int32_t scl_dot(const int16_t *w, const int16_t *e, uint32_t n) {
  int32_t sum = 0;
  uint32_t o = 0;
  if (SCL_PAIRS) {
    SCL_UNROLL
    for (; o + 2u <= n; o += 2u) {
      sum = scl_mac_pair(sum, scl_pair(&w[o]), scl_pair(&e[o]));
    }
  }
  SCL_UNROLL
  for (; o < n; o++) {
    sum += w[o] * e[o];
  }
  return sum;
}

/* Errors of so few outputs that they stay in registers from input to input. */
#define SCL_FEW_PAIRS 5u

SCL_INLINE int scl_few_errors(const uint32_t n_out) {
  return SCL_PAIRS && n_out % 2u == 0 && n_out <= 2u * SCL_FEW_PAIRS;
}

typedef struct {
  uint32_t pair[SCL_FEW_PAIRS];
} scl_few_t;

SCL_INLINE scl_few_t scl_load_errors(const int16_t *e, const uint32_t n_out) {
  scl_few_t few = {{0}};
  const uint32_t pairs = scl_few_errors(n_out) ? n_out / 2u : 0;
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < pairs; k++) {
    few.pair[k] = scl_pair(&e[2u * k]);
    SCL_KEEP(few.pair[k]);
  }
  return few;
}

/* scl_dot with `few`, which are the errors e, where there are few. */
SCL_INLINE int32_t scl_dot_few(const int16_t *w, const int16_t *e, scl_few_t few, const uint32_t n_out) {
  if (!scl_few_errors(n_out)) {
    return scl_dot(w, e, n_out);
  }
  int32_t sum = 0;
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < n_out / 2u; k++) {
    sum = scl_mac_pair(sum, scl_pair(&w[2u * k]), few.pair[k]);
  }
  return sum;
}

/* w -= g * x, rounded. */
SCL_INLINE void scl_step_row(int16_t *w, const int16_t *g, const uint32_t n, int32_t x, const scl_stepping_t s) {
#if SCL_MVE && SCL_STOCHASTIC
  scl_mve_step_row(w, g, n, x, s);
#else
  uint32_t o = 0;
  if (scl_step_in_pairs(s)) {
    const int32_t upper = scl_upper_factor(x, s);
    for (; o + 8u <= n; o += 8u) {
      scl_step_pairs(w + o, g + o, 8, x, upper, s);
    }
    scl_step_pairs(w + o, g + o, (n - o) & 6u, x, upper, s);
    o += (n - o) & 6u;
  }
  scl_step_each(w + o, g + o, n - o, x, s);
#endif
}

SCL_INLINE void scl_dense_forward(const int16_t *weight, const void *x, scl_kind_t kind, uint32_t n_in, uint32_t n_out,
                                  int32_t *acc) {
  int32_t xi;
#if SCL_MVE
  if (scl_mve_few_sums(n_out)) {
    scl_mve_sums_t sums = scl_mve_load_sums(acc, n_out);
    SCL_FOR_DENSE(i, xi, x, kind, n_in) {
      scl_mve_add_row(&sums, weight + i * n_out, n_out, xi);
    }
    scl_mve_store_sums(acc, sums, n_out);
    return;
  }
#endif
  SCL_FOR_DENSE(i, xi, x, kind, n_in) {
    scl_axpy(acc, weight + i * n_out, xi, n_out);
  }
}

/*
 * Contributes to the error of the input; returns how many values saturated.  What is not alive, a rectified value that
 * is 0, has no error.
 */
SCL_INLINE uint32_t scl_dense_error(const int16_t *weight, const void *x, scl_kind_t kind, int rectified, uint32_t n_in,
                                    uint32_t n_out, const int16_t *e, int32_t fw, int16_t *error, int first) {
  uint32_t saturated = 0;
#if SCL_MVE
  const scl_mve_errors_t errors = scl_mve_load_errors(e, n_out);
#else
  const scl_few_t few = scl_load_errors(e, n_out);
#endif
  for (uint32_t i = 0; i < n_in; i++) {
    const int alive = !rectified || scl_load(x, kind, i) > 0;
    if (alive || !SCL_SKIP_ERRORS) {
#if SCL_MVE
      const int32_t sum = scl_mve_dot_row(weight + i * n_out, e, errors, n_out);
#else
      const int32_t sum = scl_dot_few(weight + i * n_out, e, few, n_out);
#endif
      saturated += scl_contribute_sum(&error[i], alive ? sum : 0, fw, first);
    } else if (first) {
      error[i] = 0;
    }
  }
  return saturated;
}

SCL_INLINE void scl_dense_update(int16_t *weight, const void *x, scl_kind_t kind, int rectified, uint32_t n_in,
                                 uint32_t n_out, const int16_t *g, uint32_t shift, uint32_t wlog, uint32_t *prng) {
  uint32_t random = *prng;
  const scl_stepping_t stepping = {shift, wlog, scl_bits_of(kind, rectified), &random, 0};
  int32_t xi;
  SCL_FOR_DENSE(i, xi, x, kind, n_in) {
    scl_step_row(weight + i * n_out, g, n_out, xi, stepping);
  }
  *prng = random;
}

SCL_INLINE void scl_dense_accumulate(int32_t *gradient, const void *x, scl_kind_t kind, uint32_t n_in, uint32_t n_out,
                                     const int16_t *g) {
  int32_t xi;
  SCL_FOR_DENSE(i, xi, x, kind, n_in) {
    SCL_UNROLL
    for (uint32_t o = 0; o < n_out; o++) {
      gradient[i * n_out + o] += scl_shift(g[o] * xi, SCL_SACC);
    }
  }
}

SCL_INLINE void scl_dense_apply(int16_t *weight, int32_t *gradient, uint32_t count, uint32_t shift, uint32_t wlog,
                                uint32_t *prng) {
  for (uint32_t k = 0; k < count; k++) {
    if (gradient[k] != 0) {
      scl_weight_step(&weight[k], gradient[k], shift, wlog, prng);
      gradient[k] = 0;
    }
  }
}

#endif
