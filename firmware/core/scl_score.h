/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores of a line's entries or places, docs/algorithm.md "Scores".  They are
 * made a line at a time: the captured inputs are the same for all of it, and
 * where none of them differs from 0 nothing has to be multiplied.
 */
#ifndef SCL_SCORE_H
#define SCL_SCORE_H

#include "scl_fixed.h"
#include "scl_net.h"

typedef enum { SCL_BY_CWI, SCL_BY_CGI } scl_rank_t;

#define SCL_SCORE_MAX 65535u

#define SCL_ROWS (2u * SCL_CAPTURE) /* captured of a dense layer: D, then M */

/* A panel, and what was captured of the line that scl_read_line has read last. */
typedef struct {
  const scl_masked_t *layer;
  const scl_panel_t *panel;
  const int16_t *e; /* dense: errors of the panel's first output, rows of n_pad */
  uint32_t n_pad;
  uint32_t number;
  int32_t x[SCL_ROWS]; /* dense: inputs */
  int live;            /* whether a gradient on this line can differ from 0 */
} scl_line_t;

/* Where there is only one kind of masked layer the compiler drops what the other needs. */
SCL_INLINE int scl_is_conv(const scl_masked_t *layer) {
  return SCL_N_MASKED_CONV > 0 && (SCL_N_MASKED_CONV == SCL_N_MASKED || layer->conv);
}

SCL_INLINE scl_line_t scl_lines(const scl_masked_t *layer, const scl_panel_t *panel) {
  scl_line_t line = {.layer = layer, .panel = panel, .n_pad = layer->n_pad};
  if (!scl_is_conv(layer)) {
    line.e = layer->factor_e + panel->first * layer->block;
  }
  return line;
}

/* Rows that were not captured count as 0. */
SCL_INLINE void scl_read_inputs(scl_line_t *line, scl_kind_t kind, uint32_t i) {
  const void *x = line->layer->factor_x;
  const uint32_t n_in = line->layer->n_in;
  const uint32_t rows_d = scl_learner.captured_d, rows_m = scl_learner.captured_m;
  int32_t any = 0;
  for (uint32_t k = 0; k < SCL_ROWS; k++) {
    const int captured = k < SCL_CAPTURE ? k < rows_d : k < SCL_CAPTURE + rows_m;
    line->x[k] = captured ? scl_load(x, kind, k * n_in + i) : 0;
    any |= line->x[k];
  }
  line->live = any != 0;
}

static inline void scl_read_line(scl_line_t *line, uint32_t i) {
  line->number = i;
  line->live = 1;
  if (scl_is_conv(line->layer)) {
    return;
  }
  if (line->layer->kind == SCL_U8) {
    scl_read_inputs(line, SCL_U8, i);
  } else if (line->layer->kind == SCL_I8) {
    scl_read_inputs(line, SCL_I8, i);
  } else {
    scl_read_inputs(line, SCL_I16, i);
  }
}

/*
 * |sum over the captured samples of x * e|; a product of 16-bit factors leaves room for what rounds it, which stays in
 * a register for one multiply-add each.
 */
SCL_INLINE uint32_t scl_gradient_size(const int32_t *x, const int16_t *e, uint32_t n_pad) {
  int32_t half = 128;
  SCL_KEEP(half);
  int32_t sum = 0;
  for (uint32_t k = 0; k < SCL_CAPTURE; k++) {
    sum += scl_asr(x[k] * e[k * n_pad] + half, 8);
  }
  return scl_abs(sum);
}

/* Sizes of the two gradients of a weight. */
typedef struct {
  uint32_t d, m;
} scl_sizes_t;

/* o: output within the panel; of a convolution k counts the weights of the panel, see scl_panel_t. */
SCL_INLINE scl_sizes_t scl_gradient_sizes(const scl_line_t *line, int conv, uint32_t o, uint32_t k) {
  if (conv) {
    return (scl_sizes_t){scl_abs(line->panel->captured_d[k]), scl_abs(line->panel->captured_m[k])};
  }
  const int16_t *e = line->e + o;
  return (scl_sizes_t){scl_gradient_size(line->x, e, line->n_pad),
                       scl_gradient_size(line->x + SCL_CAPTURE, e + SCL_CAPTURE * line->n_pad, line->n_pad)};
}

/* In units of the weight: `shift` is unit_shift of the layer. */
SCL_INLINE uint32_t scl_unit(uint32_t g, int32_t shift) {
  if (shift >= 0) {
    return scl_min_u32(SCL_SCORE_MAX, g >> shift);
  }
  return g > SCL_SCORE_MAX >> -shift ? SCL_SCORE_MAX : g << -shift;
}

/* The part of cwi that gradients make. */
SCL_INLINE uint32_t scl_weigh_units(scl_sizes_t g, int32_t shift) {
  return (SCL_ALPHA_Q8 * scl_unit(g.d, shift) + SCL_BETA_Q8 * scl_unit(g.m, shift)) >> 8;
}

SCL_INLINE uint32_t scl_weigh_gradients(scl_sizes_t g) {
  return (SCL_ALPHA_Q8 * scl_min_u32(g.d, 1u << 20) + SCL_BETA_Q8 * scl_min_u32(g.m, 1u << 20)) >> 8;
}

/* Sum of the weights' magnitudes of one entry. */
SCL_INLINE uint32_t scl_magnitude(const int16_t *w, uint32_t block) {
  uint32_t sum = 0;
  for (uint32_t j = 0; j < block; j++) {
    sum += scl_abs(w[j]);
  }
  return sum;
}

/*
 * cwi of the entries begin .. end-1.  The magnitude alone is a score's lower
 * bound: beyond `limit`, or where there is no gradient, it stands for the score.
 */
SCL_INLINE void scl_cwi(const scl_line_t *line, int conv, uint32_t block, int32_t shift, uint32_t begin, uint32_t end,
                        uint32_t limit, uint16_t *score) {
  const scl_panel_t *p = line->panel;
  const uint32_t block_log2 = block >> 1; /* of 1, 2, 4 */
  const uint32_t bound = line->live ? limit + 1u : 0u;
  for (uint32_t k = begin; k < end; k++, score++) {
    uint32_t total = scl_magnitude(&p->weight[k * block], block);
    if (total >> block_log2 >= bound) {
      *score = (uint16_t)(total >> block_log2);
      continue;
    }
    const uint32_t place = SCL_GROWTH_GRADIENT && conv ? line->number * p->places + p->index[k] : k;
    for (uint32_t j = 0; j < block; j++) {
      total += scl_weigh_units(scl_gradient_sizes(line, conv, p->index[k] * block + j, place * block + j), shift);
    }
    *score = (uint16_t)scl_min_u32(SCL_SCORE_MAX, total >> block_log2);
  }
}

/* cgi of the entries begin .. end-1. */
SCL_INLINE void scl_cgi(const scl_line_t *line, int conv, uint32_t block, uint32_t begin, uint32_t end,
                        uint16_t *score) {
  const scl_panel_t *p = line->panel;
  for (uint32_t k = begin; k < end; k++) {
    uint32_t total = 0;
    const uint32_t place = SCL_GROWTH_GRADIENT && conv ? line->number * p->places + p->index[k] : k;
    for (uint32_t j = 0; j < block; j++) {
      total += scl_weigh_gradients(scl_gradient_sizes(line, conv, p->index[k] * block + j, place * block + j));
    }
    *score++ = (uint16_t)scl_min_u32(SCL_SCORE_MAX, total >> (block >> 1));
  }
}

/* cgi of all places; 0 where `reach` is below `need`: the score does not matter there. */
SCL_INLINE void scl_cgi_places(const scl_line_t *line, int conv, uint32_t block, const uint8_t *reach, uint32_t need,
                               uint16_t *score) {
  const scl_panel_t *p = line->panel;
  for (uint32_t b = 0; b < p->places; b++) {
    uint32_t total = 0;
    if (conv || reach[b] >= need) {
      for (uint32_t j = 0; j < block; j++) {
        const uint32_t k = (line->number * p->places + b) * block + j;
        total += scl_weigh_gradients(scl_gradient_sizes(line, conv, b * block + j, k));
      }
    }
    score[b] = (uint16_t)scl_min_u32(SCL_SCORE_MAX, total >> (block >> 1));
  }
}

SCL_INLINE void scl_cwi_of_block(const scl_line_t *line, uint32_t block, uint32_t begin, uint32_t end, uint32_t limit,
                                 uint16_t *score) {
  const int32_t shift = line->layer->unit_shift;
  if (scl_is_conv(line->layer)) {
    scl_cwi(line, 1, block, shift, begin, end, limit, score);
  } else {
    scl_cwi(line, 0, block, shift, begin, end, limit, score);
  }
}

/* cwi of the entries begin .. end-1 of a line; only those up to `limit` are exact. */
static inline void scl_score_cwi(const scl_line_t *line, uint32_t begin, uint32_t end, uint32_t limit,
                                 uint16_t *score) {
  if (line->layer->block == 1) {
    scl_cwi_of_block(line, 1, begin, end, limit, score);
  } else if (line->layer->block == 2) {
    scl_cwi_of_block(line, 2, begin, end, limit, score);
  } else {
    scl_cwi_of_block(line, 4, begin, end, limit, score);
  }
}

SCL_INLINE void scl_cgi_of_block(const scl_line_t *line, uint32_t block, uint32_t begin, uint32_t end,
                                 uint16_t *score) {
  if (scl_is_conv(line->layer)) {
    scl_cgi(line, 1, block, begin, end, score);
  } else {
    scl_cgi(line, 0, block, begin, end, score);
  }
}

/* cgi of the entries begin .. end-1 of a live line. */
static inline void scl_score_cgi(const scl_line_t *line, uint32_t begin, uint32_t end, uint16_t *score) {
  if (line->layer->block == 1) {
    scl_cgi_of_block(line, 1, begin, end, score);
  } else if (line->layer->block == 2) {
    scl_cgi_of_block(line, 2, begin, end, score);
  } else {
    scl_cgi_of_block(line, 4, begin, end, score);
  }
}

#endif
