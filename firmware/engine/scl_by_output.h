/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sparse fully connected layers of few outputs, whose lines are blocks of
 * outputs and whose places are inputs: what belongs to an output, its sum, its
 * errors and its steps, stays in registers while its line is walked, and there
 * are as few lines as outputs.  docs/spec/numerics.md "Sparse layers".
 */
#ifndef SCL_BY_OUTPUT_H
#define SCL_BY_OUTPUT_H

#include "scl_sparse.h"

/* The outputs of one line: sums, errors or steps. */
typedef struct {
  int32_t of[4];
} scl_outputs_t;

#define SCL_ENTRIES_AT_ONCE 4u

/* Adds the products of `count` entries, a constant, to the sums of their line. */
SCL_INLINE void scl_by_output_sum_some(scl_outputs_t *sums, const int16_t *w, const uint8_t *index,
                                       const uint32_t count, const uint32_t block, const void *x, scl_kind_t kind) {
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < count; k++) {
    const int32_t xi = scl_load(x, kind, index[k]);
    if (SCL_PAIRS && block > 1u) {
      for (uint32_t j = 0; j < block; j += 2u) {
        const uint32_t pair = scl_pair(&w[k * block + j]);
        sums->of[j] = scl_mac_low(sums->of[j], pair, xi);
        sums->of[j + 1u] = scl_mac_high(sums->of[j + 1u], pair, xi);
      }
    } else if (SCL_PAIRS && count > 1u) {
      const uint32_t pair = scl_pair(&w[k & ~1u]);
      sums->of[0] = k % 2u == 0 ? scl_mac_low(sums->of[0], pair, xi) : scl_mac_high(sums->of[0], pair, xi);
    } else {
      SCL_UNROLL_ALL
      for (uint32_t j = 0; j < block; j++) {
        sums->of[j] += w[k * block + j] * xi;
      }
    }
  }
}

/* acc: accumulators of the layer; x: inputs from the panel's first place on. */
SCL_INLINE void scl_by_output_forward(const scl_panel_t *panel, const void *x, scl_kind_t kind, uint32_t lines,
                                      const uint32_t block, int32_t *acc) {
  const uint8_t *index = panel->index;
  const int16_t *w = panel->weight;
  for (uint32_t l = 0; l < lines; l++, acc += block) {
    const uint32_t n = (uint32_t)panel->start[l + 1u] - panel->start[l];
    scl_outputs_t sums;
    for (uint32_t j = 0; j < block; j++) {
      sums.of[j] = acc[j];
    }
    SCL_BY_CHUNKS(SCL_ENTRIES_AT_ONCE, n, index, w, block,
                  scl_by_output_sum_some(&sums, w, index, count, block, x, kind));
    for (uint32_t j = 0; j < block; j++) {
      acc[j] = sums.of[j];
    }
  }
}

/* Whether a line has only zeros, errors or steps. */
SCL_INLINE int scl_all_zero(const int16_t *of, const uint32_t block) {
  uint32_t any = 0;
  for (uint32_t j = 0; j < block; j++) {
    any |= (uint16_t)of[j];
  }
  return any == 0;
}

/* Adds what `count` entries, a constant, hand back of the errors e of their line to the sums of their inputs. */
SCL_INLINE void scl_by_output_error_some(int32_t *sums, const int16_t *w, const uint8_t *index, const uint32_t count,
                                         const uint32_t block, const int16_t *e) {
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < count; k++) {
    int32_t sum = sums[index[k]];
    SCL_UNROLL_ALL
    for (uint32_t j = 0; j < block; j += SCL_PAIRS && block > 1u ? 2u : 1u) {
      const int16_t *wj = &w[k * block + j];
      sum = SCL_PAIRS && block > 1u ? scl_mac_pair(sum, scl_pair(wj), scl_pair(&e[j])) : sum + *wj * e[j];
    }
    sums[index[k]] = sum;
  }
}

/* Adds to sums, which the caller has cleared, from the panel's first place on; e: errors of the layer. */
SCL_INLINE void scl_by_output_error(const scl_panel_t *panel, uint32_t lines, const uint32_t block, const int16_t *e,
                                    int32_t *sums) {
  for (uint32_t l = 0; l < lines; l++, e += block) {
    if (scl_all_zero(e, block)) {
      continue;
    }
    const uint32_t begin = panel->start[l], n = panel->start[l + 1u] - begin;
    const uint8_t *index = panel->index + begin;
    const int16_t *w = panel->weight + begin * block;
    SCL_BY_CHUNKS(SCL_ENTRIES_AT_ONCE, n, index, w, block, scl_by_output_error_some(sums, w, index, count, block, e));
  }
}

/* Steps of `count` entries, a constant, by the steps g of their line; entries of inputs that are 0 are passed over. */
SCL_INLINE void scl_by_output_step_some(int16_t *w, const uint8_t *index, const uint32_t count, const uint32_t block,
                                        const void *x, scl_kind_t kind, const int16_t *g, const scl_stepping_t s) {
  SCL_UNROLL_ALL
  for (uint32_t k = 0; k < count; k++) {
    int32_t xi = scl_load(x, kind, index[k]);
    SCL_KEEP_LOW(xi);
    if (xi == 0) {
      continue;
    }
    if (block > 1u && scl_step_in_pairs(s)) {
      scl_step_pairs(&w[k * block], g, block, xi, scl_upper_factor(xi, s), s);
    } else {
      SCL_UNROLL_ALL
      for (uint32_t j = 0; j < block; j++) {
        scl_weight_step(&w[k * block + j], g[j] * xi, s.shift, s.wlog, s.prng);
      }
    }
  }
}

/* Lines whose steps are all 0 are passed over. */
SCL_INLINE void scl_by_output_update(const scl_panel_t *panel, const void *x, scl_kind_t kind, int rectified,
                                     uint32_t lines, const uint32_t block, const int16_t *g, uint32_t shift,
                                     uint32_t wlog, uint32_t *prng) {
  uint32_t random = *prng;
  const scl_stepping_t stepping = {shift, wlog, scl_bits_of(kind, rectified), &random, 0};
  for (uint32_t l = 0; l < lines; l++, g += block) {
    if (scl_all_zero(g, block)) {
      continue;
    }
    const uint32_t begin = panel->start[l], n = panel->split[l] - begin;
    const uint8_t *index = panel->index + begin;
    int16_t *w = panel->weight + begin * block;
    int16_t step[4]; /* in registers: gcc takes g for what w writes */
    memcpy(step, g, block * sizeof *g);
    SCL_BY_CHUNKS(SCL_ENTRIES_AT_ONCE, n, index, w, block,
                  scl_by_output_step_some(w, index, count, block, x, kind, step, stepping));
  }
  *prng = random;
}

/* Batch > 1: as scl_sparse_accumulate. */
SCL_INLINE void scl_by_output_accumulate(const scl_panel_t *panel, const void *x, scl_kind_t kind, uint32_t lines,
                                         const uint32_t block, const int16_t *g) {
  int32_t *gradient = panel->gradient;
  for (uint32_t l = 0; l < lines; l++, g += block) {
    for (uint32_t k = panel->start[l]; k < panel->split[l]; k++) {
      const int32_t xi = scl_load(x, kind, panel->index[k]);
      for (uint32_t j = 0; j < block; j++) {
        *gradient++ += scl_shift(g[j] * xi, SCL_SACC);
      }
    }
  }
}

#endif
