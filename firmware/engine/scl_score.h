/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores of a line's entries or places, docs/spec/algorithm.md "Scores".  They are
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

/* Where a weight's gradient comes from: of a dense layer from its input and its error, either of which its line has. */
typedef enum { SCL_OF_INPUT, SCL_OF_OUTPUT, SCL_OF_SUMS } scl_origin_t;

/* A panel, and what was captured of the line that scl_read_line has read last. */
typedef struct {
  const scl_masked_t *layer;
  const scl_panel_t *panel;
  const int16_t *e; /* dense: errors of the first output of the panel, or of the line; rows of n_pad */
  uint32_t n_pad;
  uint32_t number;
  int32_t x[SCL_ROWS]; /* dense: inputs of the line, or of the entry that is looked at */
  int live; /* whether a gradient on this line can differ from 0 */
} scl_line_t;

/* Where there is only one kind of masked layer the compiler drops what the others need. */
SCL_INLINE scl_origin_t scl_origin(const scl_masked_t *layer) {
  if (SCL_N_MASKED_CONV > 0 && (SCL_N_MASKED_CONV == SCL_N_MASKED || layer->conv)) {
    return SCL_OF_SUMS;
  }
  if (SCL_N_MASKED_BY_OUTPUT > 0 && (SCL_N_MASKED_BY_OUTPUT == SCL_N_MASKED || layer->by_output)) {
    return SCL_OF_OUTPUT;
  }
  return SCL_OF_INPUT;
}

SCL_INLINE int scl_is_conv(const scl_masked_t *layer) { return scl_origin(layer) == SCL_OF_SUMS; }

SCL_INLINE scl_line_t scl_lines(const scl_masked_t *layer, const scl_panel_t *panel) {
  scl_line_t line = {.layer = layer, .panel = panel, .n_pad = layer->n_pad};
  if (scl_origin(layer) == SCL_OF_INPUT) {
    line.e = layer->factor_e + panel->first * layer->block;
  }
  return line;
}

/* Whether row k was captured; others count as 0. */
SCL_INLINE int scl_captured(uint32_t k) {
  const uint32_t rows_d = scl_learner.captured_d, rows_m = scl_learner.captured_m;
  return k < SCL_CAPTURE ? k < rows_d : k < SCL_CAPTURE + rows_m;
}

/* Returns whether one of them is not 0. */
SCL_INLINE int scl_read_inputs_of(scl_line_t *line, scl_kind_t kind, uint32_t i) {
  const void *x = line->layer->factor_x;
  const uint32_t n_in = line->layer->n_in;
  int32_t any = 0;
  for (uint32_t k = 0; k < SCL_ROWS; k++) {
    line->x[k] = scl_captured(k) ? scl_load(x, kind, k * n_in + i) : 0;
    any |= line->x[k];
  }
  return any != 0;
}

static inline int scl_read_inputs(scl_line_t *line, uint32_t i) {
  switch (line->layer->kind) {
    case SCL_U8:
      return scl_read_inputs_of(line, SCL_U8, i);
    case SCL_I8:
      return scl_read_inputs_of(line, SCL_I8, i);
    default:
      return scl_read_inputs_of(line, SCL_I16, i);
  }
}

/* Finds the errors of a block of outputs; returns whether one of them is not 0. */
static inline int scl_read_errors(scl_line_t *line, uint32_t b) {
  const uint32_t block = line->layer->block;
  int32_t any = 0;
  line->e = line->layer->factor_e + b * block;
  for (uint32_t k = 0; k < SCL_ROWS; k++) {
    for (uint32_t j = 0; j < block && scl_captured(k); j++) {
      any |= line->e[k * line->n_pad + j];
    }
  }
  return any != 0;
}

static inline void scl_read_line(scl_line_t *line, uint32_t i) {
  const scl_origin_t origin = scl_origin(line->layer);
  line->number = i;
  line->live = origin == SCL_OF_SUMS     ? 1
               : origin == SCL_OF_OUTPUT ? scl_read_errors(line, i)
                                         : scl_read_inputs(line, i);
}

/* Looks at place b of the line: returns the output of it that line->e begins with. */
SCL_INLINE uint32_t scl_look_at(scl_line_t *line, scl_origin_t origin, uint32_t b, uint32_t block) {
  if (origin == SCL_OF_OUTPUT) {
    (void)scl_read_inputs(line, line->panel->first + b);
    return 0;
  }
  return b * block;
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

/* o: output, counted from line->e; of a convolution k counts the weights of the panel, see scl_panel_t. */
SCL_INLINE scl_sizes_t scl_gradient_sizes(const scl_line_t *line, scl_origin_t origin, uint32_t o, uint32_t k) {
  if (origin == SCL_OF_SUMS) {
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

/* Which of a convolution's gradient sums belongs to entry k of line i. */
SCL_INLINE uint32_t scl_sum_of(const scl_panel_t *p, scl_origin_t origin, uint32_t i, uint32_t k) {
  return SCL_GROWTH_GRADIENT && origin == SCL_OF_SUMS ? i * p->places + p->index[k] : k;
}

/*
 * cwi of the entries begin .. end-1.  The magnitude alone is a score's lower
 * bound: beyond `limit`, or where there is no gradient, it stands for the score.
 */
SCL_INLINE void scl_cwi(scl_line_t *line, scl_origin_t origin, uint32_t block, int32_t shift, uint32_t begin,
                        uint32_t end, uint32_t limit, uint16_t *score) {
  const scl_panel_t *p = line->panel;
  const uint32_t block_log2 = block >> 1; /* of 1, 2, 4 */
  const uint32_t bound = line->live ? limit + 1u : 0u;
  for (uint32_t k = begin; k < end; k++, score++) {
    uint32_t total = scl_magnitude(&p->weight[k * block], block);
    if (total >> block_log2 >= bound) {
      *score = (uint16_t)(total >> block_log2);
      continue;
    }
    const uint32_t place = scl_sum_of(p, origin, line->number, k);
    const uint32_t o = scl_look_at(line, origin, p->index[k], block);
    for (uint32_t j = 0; j < block; j++) {
      total += scl_weigh_units(scl_gradient_sizes(line, origin, o + j, place * block + j), shift);
    }
    *score = (uint16_t)scl_min_u32(SCL_SCORE_MAX, total >> block_log2);
  }
}

/* cgi of the entries begin .. end-1. */
SCL_INLINE void scl_cgi(scl_line_t *line, scl_origin_t origin, uint32_t block, uint32_t begin, uint32_t end,
                        uint16_t *score) {
  const scl_panel_t *p = line->panel;
  for (uint32_t k = begin; k < end; k++) {
    uint32_t total = 0;
    const uint32_t place = scl_sum_of(p, origin, line->number, k);
    const uint32_t o = scl_look_at(line, origin, p->index[k], block);
    for (uint32_t j = 0; j < block; j++) {
      total += scl_weigh_gradients(scl_gradient_sizes(line, origin, o + j, place * block + j));
    }
    *score++ = (uint16_t)scl_min_u32(SCL_SCORE_MAX, total >> (block >> 1));
  }
}

/* cgi of all places; 0 where `reach` is below `need`: the score does not matter there. */
SCL_INLINE void scl_cgi_places(scl_line_t *line, scl_origin_t origin, uint32_t block, const uint8_t *reach,
                               uint32_t need, uint16_t *score) {
  const scl_panel_t *p = line->panel;
  for (uint32_t b = 0; b < p->places; b++) {
    uint32_t total = 0;
    if (origin != SCL_OF_INPUT || reach[b] >= need) {
      const uint32_t o = scl_look_at(line, origin, b, block);
      for (uint32_t j = 0; j < block; j++) {
        const uint32_t k = (line->number * p->places + b) * block + j;
        total += scl_weigh_gradients(scl_gradient_sizes(line, origin, o + j, k));
      }
    }
    score[b] = (uint16_t)scl_min_u32(SCL_SCORE_MAX, total >> (block >> 1));
  }
}

SCL_INLINE void scl_cwi_of_block(scl_line_t *line, uint32_t block, uint32_t begin, uint32_t end, uint32_t limit,
                                 uint16_t *score) {
  const int32_t shift = line->layer->unit_shift;
  switch (scl_origin(line->layer)) {
    case SCL_OF_SUMS:
      scl_cwi(line, SCL_OF_SUMS, block, shift, begin, end, limit, score);
      break;
    case SCL_OF_OUTPUT:
      scl_cwi(line, SCL_OF_OUTPUT, block, shift, begin, end, limit, score);
      break;
    default:
      scl_cwi(line, SCL_OF_INPUT, block, shift, begin, end, limit, score);
  }
}

/* cwi of the entries begin .. end-1 of a line; only those up to `limit` are exact. */
static inline void scl_score_cwi(scl_line_t *line, uint32_t begin, uint32_t end, uint32_t limit, uint16_t *score) {
  if (line->layer->block == 1) {
    scl_cwi_of_block(line, 1, begin, end, limit, score);
  } else if (line->layer->block == 2) {
    scl_cwi_of_block(line, 2, begin, end, limit, score);
  } else {
    scl_cwi_of_block(line, 4, begin, end, limit, score);
  }
}

SCL_INLINE void scl_cgi_of_block(scl_line_t *line, uint32_t block, uint32_t begin, uint32_t end, uint16_t *score) {
  switch (scl_origin(line->layer)) {
    case SCL_OF_SUMS:
      scl_cgi(line, SCL_OF_SUMS, block, begin, end, score);
      break;
    case SCL_OF_OUTPUT:
      scl_cgi(line, SCL_OF_OUTPUT, block, begin, end, score);
      break;
    default:
      scl_cgi(line, SCL_OF_INPUT, block, begin, end, score);
  }
}

/* cgi of the entries begin .. end-1 of a live line. */
static inline void scl_score_cgi(scl_line_t *line, uint32_t begin, uint32_t end, uint16_t *score) {
  if (line->layer->block == 1) {
    scl_cgi_of_block(line, 1, begin, end, score);
  } else if (line->layer->block == 2) {
    scl_cgi_of_block(line, 2, begin, end, score);
  } else {
    scl_cgi_of_block(line, 4, begin, end, score);
  }
}

#endif
