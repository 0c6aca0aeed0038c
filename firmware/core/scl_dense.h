/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fully connected layer with every weight present: weight[i * n_out + o].
 * All passes skip inputs that are 0: after ReLU and in most images these are
 * the majority, and they contribute nothing to any sum.
 */
#ifndef SCL_DENSE_H
#define SCL_DENSE_H

#include "scl_layer.h"
#include "scl_step.h"

SCL_INLINE void scl_dense_forward(const int16_t *weight, const void *x, scl_kind_t kind, uint32_t n_in, uint32_t n_out,
                                  int32_t *acc) {
  for (uint32_t i = 0; i < n_in; i++) {
    const int32_t xi = scl_load(x, kind, i);
    if (xi == 0) {
      continue;
    }
    const int16_t *w = weight + i * n_out;
    SCL_UNROLL
    for (uint32_t o = 0; o < n_out; o++) {
      acc[o] += w[o] * xi;
    }
  }
}

/* sums[i] = sum over o of w * e[o]; for a rectified input 0 where x[i] is. */
SCL_INLINE void scl_dense_error(const int16_t *weight, const void *x, scl_kind_t kind, int rectified, uint32_t n_in,
                                uint32_t n_out, const int16_t *e, int32_t *sums) {
  for (uint32_t i = 0; i < n_in; i++) {
    int32_t sum = 0;
    if (!rectified || scl_load(x, kind, i) > 0) {
      const int16_t *w = weight + i * n_out;
      SCL_UNROLL
      for (uint32_t o = 0; o < n_out; o++) {
        sum += w[o] * e[o];
      }
    }
    sums[i] = sum;
  }
}

SCL_INLINE void scl_dense_update(int16_t *weight, const void *x, scl_kind_t kind, uint32_t n_in, uint32_t n_out,
                                 const int16_t *g, uint32_t shift, uint32_t wlog, uint32_t *prng) {
  uint32_t random = *prng;
  for (uint32_t i = 0; i < n_in; i++) {
    const int32_t xi = scl_load(x, kind, i);
    if (xi == 0) {
      continue;
    }
    int16_t *w = weight + i * n_out;
    SCL_UNROLL
    for (uint32_t o = 0; o < n_out; o++) {
      scl_weight_step(&w[o], g[o] * xi, shift, wlog, &random);
    }
  }
  *prng = random;
}

SCL_INLINE void scl_dense_accumulate(int32_t *gradient, const void *x, scl_kind_t kind, uint32_t n_in, uint32_t n_out,
                                     const int16_t *g) {
  for (uint32_t i = 0; i < n_in; i++) {
    const int32_t xi = scl_load(x, kind, i);
    if (xi == 0) {
      continue;
    }
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
