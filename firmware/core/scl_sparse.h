/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Panels of sparse layers, docs/numerics.md "Sparse layers", and the sparse
 * fully connected layer, whose lines are its inputs.  A masked weight is not
 * stored and costs nothing in any pass; within a line the gradient mask comes
 * first, so that the update has no branch.
 */
#ifndef SCL_SPARSE_H
#define SCL_SPARSE_H

#include "scl_layer.h"
#include "scl_step.h"

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

/* A base address stays in a register; else gcc adds the offset it has in a larger array to every index. */
#define SCL_KEEP(address) __asm__("" : "+r"(address))

/* acc: accumulators of the layer. */
SCL_INLINE void scl_sparse_forward(const scl_panel_t *panel, const void *x, scl_kind_t kind, uint32_t n_in,
                                   uint32_t block, uint32_t first, int32_t *acc) {
  const scl_pos_t *start = panel->start;
  const uint8_t *index = panel->index;
  const int16_t *weight = panel->weight;
  acc += first * block;
  SCL_KEEP(acc);
  for (uint32_t i = 0; i < n_in; i++) {
    const int32_t xi = scl_load(x, kind, i);
    if (xi == 0) {
      continue;
    }
    const uint32_t end = start[i + 1];
    SCL_UNROLL
    for (uint32_t k = start[i]; k < end; k++) {
      int32_t *a = acc + index[k] * block;
      for (uint32_t j = 0; j < block; j++) {
        a[j] += weight[k * block + j] * xi;
      }
    }
  }
}

/* Adds to sums[i], for a rectified input where x[i] is not 0; the caller has cleared the sums. */
SCL_INLINE void scl_sparse_error(const scl_panel_t *panel, const void *x, scl_kind_t kind, int rectified, uint32_t n_in,
                                 uint32_t block, uint32_t first, const int16_t *e, int32_t *sums) {
  e += first * block;
  SCL_KEEP(e);
  for (uint32_t i = 0; i < n_in; i++) {
    if (rectified && scl_load(x, kind, i) <= 0) {
      continue;
    }
    int32_t sum = 0;
    const uint32_t end = panel->start[i + 1];
    SCL_UNROLL
    for (uint32_t k = panel->start[i]; k < end; k++) {
      for (uint32_t j = 0; j < block; j++) {
        sum += panel->weight[k * block + j] * e[panel->index[k] * block + j];
      }
    }
    sums[i] += sum;
  }
}

SCL_INLINE void scl_sparse_update(const scl_panel_t *panel, const void *x, scl_kind_t kind, uint32_t n_in,
                                  uint32_t block, uint32_t first, const int16_t *g, uint32_t shift, uint32_t wlog,
                                  uint32_t *prng) {
  const scl_pos_t *start = panel->start;
  const scl_pos_t *split = panel->split;
  const uint8_t *index = panel->index;
  int16_t *weight = panel->weight;
  uint32_t random = *prng;
  g += first * block;
  SCL_KEEP(g);
  for (uint32_t i = 0; i < n_in; i++) {
    const int32_t xi = scl_load(x, kind, i);
    if (xi == 0) {
      continue;
    }
    const uint32_t end = split[i];
    SCL_UNROLL
    for (uint32_t k = start[i]; k < end; k++) {
      const int16_t *gk = g + index[k] * block;
      for (uint32_t j = 0; j < block; j++) {
        scl_weight_step(&weight[k * block + j], gk[j] * xi, shift, wlog, &random);
      }
    }
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

SCL_INLINE void scl_sparse_apply(const scl_panel_t *panel, uint32_t n_in, uint32_t block, uint32_t shift,
                                 uint32_t wlog, uint32_t *prng) {
  int32_t *gradient = panel->gradient;
  for (uint32_t i = 0; i < n_in; i++) {
    for (uint32_t k = panel->start[i] * block; k < panel->split[i] * block; k++, gradient++) {
      if (*gradient != 0) {
        scl_weight_step(&panel->weight[k], *gradient, shift, wlog, prng);
        *gradient = 0;
      }
    }
  }
}

#endif
