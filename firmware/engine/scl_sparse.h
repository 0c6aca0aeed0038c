/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Panels of sparse layers, docs/spec/numerics.md "Sparse layers", and the sparse
 * fully connected layer, whose lines are its inputs.  A masked weight is not
 * stored and costs nothing in any pass; within a line the gradient mask comes
 * first, so that the update has no branch.
 */
#ifndef SCL_SPARSE_H
#define SCL_SPARSE_H

#include "scl_layer.h"
#include "scl_mve.h"

typedef struct {
  scl_pos_t *start;  /* lines + 1 */
  scl_pos_t *split;  /* lines */
  uint8_t *index;    /* capacity = nnz + grow_inter */
  int16_t *weight;   /* capacity * block */
  int32_t *gradient; /* batch > 1: (grad + grow_inter) * block */
  /*
   * Gradient sums of a convolution that is scored, else NULL: capacity * block, as `weight`, or with growth by gradient
   * lines * places * block, by line and place.
   */
  int32_t *captured_d, *captured_m;
  uint16_t first;  /* first place in the layer */
  uint16_t places; /* on each line of this panel, at most 256 */
  uint32_t nnz, grad, grow_inter, swap;
} scl_panel_t;

/*
 * `work` on n entries of a line: on `chunk` at a time, a power of 2, and on what is left over without a loop.  It uses
 * `count`, a constant, and finds its entries at `index` and `w`, which move along.
 */
#define SCL_BY_CHUNKS(chunk, n, index, w, block, work)                                \
  do {                                                                                \
    for (const uint8_t *end_ = (index) + ((n) & ~((chunk) - 1u)); (index) != end_;) { \
      const uint32_t count = (chunk);                                                 \
      work;                                                                           \
      (index) += count, (w) += count * (block);                                       \
      SCL_KEEP(index);                                                                \
      SCL_KEEP(w);                                                                    \
    }                                                                                 \
    SCL_UNROLL_ALL                                                                    \
    for (uint32_t count = (chunk) / 2u; count > 0; count /= 2u) {                     \
      if (((n) & count) != 0) {                                                       \
        work;                                                                         \
        (index) += count, (w) += count * (block);                                     \
      }                                                                               \
    }                                                                                 \
  } while (0)

/* Adds x times the weights of `count` entries, a constant, to the accumulators of their places. */
SCL_INLINE void scl_sparse_axpy_some(int32_t *acc, const int16_t *w, const uint8_t *index, const uint32_t count,
                                     const uint32_t block, int32_t x) {
  if (SCL_PAIRS && block > 1u) {
    SCL_UNROLL_ALL
    for (uint32_t k = 0; k < count; k++) {
      if (block == 4u) {
        scl_axpy_four(acc + index[k] * 4u, w + k * 4u, x);
      } else {
        scl_axpy_pairs(acc + index[k] * block, w + k * block, block, x);
      }
    }
  } else if (SCL_PAIRS && count > 1u) {
    SCL_UNROLL_ALL
    for (uint32_t k = 0; k < count; k += 2u) {
      const uint32_t pair = scl_pair(&w[k]);
      acc[index[k]] = scl_mac_low(acc[index[k]], pair, x);
      acc[index[k + 1u]] = scl_mac_high(acc[index[k + 1u]], pair, x);
    }
  } else {
    SCL_UNROLL_ALL
    for (uint32_t k = 0; k < count; k++) {
      int32_t *sums = acc + index[k] * block;
      if (block > 1u) {
        SCL_KEEP(sums); /* one address for the whole block */
      }
      SCL_UNROLL_ALL
      for (uint32_t j = 0; j < block; j++) {
        sums[j] += w[k * block + j] * x;
      }
    }
  }
}

/* Adds x times the weights of one line. */
SCL_INLINE void scl_sparse_axpy(int32_t *acc, const int16_t *w, const uint8_t *index, uint32_t n, const uint32_t block,
                                int32_t x) {
#if SCL_MVE
  scl_mve_sparse_axpy(acc, w, index, n, block, x);
#else
  const uint32_t chunk = block == 1u ? 8u : 4u;
  SCL_BY_CHUNKS(chunk, n, index, w, block, scl_sparse_axpy_some(acc, w, index, count, block, x));
#endif
}

/* The scalar product of `count` entries, a constant, with the errors of their places. */
SCL_INLINE int32_t scl_sparse_dot_some(int32_t sum, const int16_t *e, const int16_t *w, const uint8_t *index,
                                       const uint32_t count, const uint32_t block) {
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < count; k++) {
    const int16_t *ek = e + index[k] * block;
    const int pairs = SCL_PAIRS && block % 2u == 0;
    SCL_UNROLL_ALL
    for (uint32_t j = 0; j < block; j += pairs ? 2u : 1u) {
      const int16_t *wj = &w[k * block + j];
      sum = pairs ? scl_mac_pair(sum, scl_pair(wj), scl_pair(&ek[j])) : sum + *wj * ek[j];
    }
  }
  return sum;
}

/* The scalar product of one line. */
SCL_INLINE int32_t scl_sparse_dot(const int16_t *e, const int16_t *w, const uint8_t *index, uint32_t n,
                                  const uint32_t block) {
#if SCL_MVE
  return scl_mve_sparse_dot(e, w, index, n, block);
#else
  const uint32_t chunk = 4u / block;
  int32_t sum = 0;
  SCL_BY_CHUNKS(chunk, n, index, w, block, sum = scl_sparse_dot_some(sum, e, w, index, count, block));
  return sum;
#endif
}

/* Steps of `count` entries, a constant. */
SCL_INLINE void scl_sparse_step_some(int16_t *w, const int16_t *g, const uint8_t *index, const uint32_t count,
                                     const uint32_t block, int32_t x, int32_t upper, const scl_stepping_t s) {
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < count; k++) {
    const int16_t *gk = g + index[k] * block;
    if (block % 2u == 0 && scl_step_in_pairs(s)) {
      scl_step_pairs(&w[k * block], gk, block, x, upper, s);
    } else {
      scl_step_each(&w[k * block], gk, block, x, s);
    }
  }
}

/* Steps of the part of one line that is in the gradient mask. */
SCL_INLINE void scl_sparse_step(int16_t *w, const int16_t *g, const uint8_t *index, uint32_t n, const uint32_t block,
                                int32_t x, const scl_stepping_t s) {
#if SCL_MVE && SCL_STOCHASTIC
  scl_mve_sparse_step(w, g, index, n, block, x, s);
#else
  const uint32_t chunk = 4u / block;
  const int32_t upper = scl_upper_factor(x, s);
  SCL_BY_CHUNKS(chunk, n, index, w, block, scl_sparse_step_some(w, g, index, count, block, x, upper, s));
#endif
}

/* acc: accumulators of the layer. */
SCL_INLINE void scl_sparse_forward(const scl_panel_t *panel, const void *x, scl_kind_t kind, uint32_t n_in,
                                   uint32_t block, uint32_t first, int32_t *acc) {
  const scl_pos_t *start = panel->start;
  const uint8_t *index = panel->index;
  const int16_t *weight = panel->weight;
  acc += first * block;
  SCL_KEEP(acc);
  int32_t xi;
  SCL_FOR_ACTIVE(i, xi, x, kind, n_in) {
    const uint32_t begin = start[i];
    scl_sparse_axpy(acc, weight + begin * block, index + begin, start[i + 1] - begin, block, xi);
  }
}

/* The error sum of input i. */
SCL_INLINE int32_t scl_sparse_error_sum(const scl_panel_t *panel, uint32_t i, uint32_t block, const int16_t *e) {
  const uint32_t begin = panel->start[i];
  return scl_sparse_dot(e, panel->weight + begin * block, panel->index + begin, panel->start[i + 1] - begin, block);
}

/* Adds to sums[i], for a rectified input where x[i] is not 0; the caller has cleared the sums. */
SCL_INLINE void scl_sparse_error(const scl_panel_t *panel, const void *x, scl_kind_t kind, int rectified, uint32_t n_in,
                                 uint32_t block, uint32_t first, const int16_t *e, int32_t *sums) {
  e += first * block;
  SCL_KEEP(e);
  for (uint32_t i = 0; i < n_in; i++) {
    if (!rectified || scl_load(x, kind, i) > 0) {
      sums[i] += scl_sparse_error_sum(panel, i, block, e);
    }
  }
}

/* Like scl_dense_error, for one panel: contributes to the error of the input, returns how many saturated. */
SCL_INLINE uint32_t scl_sparse_error_alone(const scl_panel_t *panel, const void *x, scl_kind_t kind, int rectified,
                                           uint32_t n_in, uint32_t block, const int16_t *e, int32_t fw, int16_t *error,
                                           int first) {
  uint32_t saturated = 0;
  for (uint32_t i = 0; i < n_in; i++) {
    if (!rectified || scl_load(x, kind, i) > 0) {
      saturated += scl_contribute_sum(&error[i], scl_sparse_error_sum(panel, i, block, e), fw, first);
    } else if (first) {
      error[i] = 0;
    }
  }
  return saturated;
}

SCL_INLINE void scl_sparse_update(const scl_panel_t *panel, const void *x, scl_kind_t kind, int rectified,
                                  uint32_t n_in, uint32_t block, uint32_t first, const int16_t *g, uint32_t shift,
                                  uint32_t wlog, uint32_t *prng) {
  const scl_pos_t *start = panel->start;
  const scl_pos_t *split = panel->split;
  const uint8_t *index = panel->index;
  int16_t *weight = panel->weight;
  uint32_t random = *prng;
  const scl_stepping_t stepping = {shift, wlog, scl_bits_of(kind, rectified), &random, 1};
  g += first * block;
  SCL_KEEP(g);
  int32_t xi;
  SCL_FOR_ACTIVE(i, xi, x, kind, n_in) {
    const uint32_t begin = start[i];
    scl_sparse_step(weight + begin * block, g, index + begin, split[i] - begin, block, xi, stepping);
  }
  *prng = random;
}

/* Batch > 1: gradient sums exist for entries of the gradient mask only, numbered in storage order. */
SCL_INLINE void scl_sparse_accumulate(const scl_panel_t *panel, const void *x, scl_kind_t kind, uint32_t n_in,
                                      uint32_t block, uint32_t first, const int16_t *g) {
  const uint8_t *index = panel->index;
  int32_t *gradient = panel->gradient;
  g += first * block;
  SCL_KEEP(g);
  for (uint32_t i = 0; i < n_in; i++) {
    const uint32_t begin = panel->start[i];
    const uint32_t end = panel->split[i];
    const int32_t xi = scl_load(x, kind, i);
    if (xi == 0) {
      gradient += (end - begin) * block;
      continue;
    }
    for (uint32_t k = begin; k < end; k++) {
      const int16_t *gk = g + index[k] * block;
      SCL_UNROLL
      for (uint32_t j = 0; j < block; j++) {
        *gradient++ += scl_shift(gk[j] * xi, SCL_SACC);
      }
    }
  }
}

SCL_INLINE void scl_sparse_apply(const scl_panel_t *panel, uint32_t lines, uint32_t block, uint32_t shift,
                                 uint32_t wlog, uint32_t *prng) {
  int32_t *gradient = panel->gradient;
  for (uint32_t i = 0; i < lines; i++) {
    for (uint32_t k = panel->start[i] * block; k < panel->split[i] * block; k++, gradient++) {
      if (*gradient != 0) {
        scl_weight_step(&panel->weight[k], *gradient, shift, wlog, prng);
        *gradient = 0;
      }
    }
  }
}

#endif
