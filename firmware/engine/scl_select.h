/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Selection of the lowest or highest scores of a panel by threshold, docs/spec/algorithm.md "Mask update": no sort, and no
 * array of scores but that of one line, so they are made again for each pass.
 */
#ifndef SCL_SELECT_H
#define SCL_SELECT_H

#include "scl_fixed.h"
#include "scl_net.h"
#include "scl_score.h"

typedef enum { SCL_LOWEST, SCL_HIGHEST } scl_side_t;

/*
 * A search for the threshold of the `wanted` lowest or highest scores.  The
 * first pass has bins that widen with the score, each of the next cuts the bin
 * found into bins of 2^shift, until a bin is one score.
 */
typedef struct {
  scl_side_t side;
  uint32_t wanted;
  uint32_t low, high; /* scores outside do not matter */
  int coarse;         /* the first pass */
  uint32_t shift;
  uint32_t counted, edge; /* first pass: scores counted, and the last bin on the far side that may hold the threshold */
} scl_search_t;

/* The scores beyond the threshold are selected, and the first `quota` of those equal to it. */
typedef struct {
  uint32_t threshold, quota;
} scl_cut_t;

#define SCL_COARSE_BINS 208u

static inline uint32_t scl_coarse_shift(uint32_t bin) { return bin < 32u ? 0u : (bin >> 4) - 1u; }

static inline uint32_t scl_coarse_low(uint32_t bin) {
  const uint32_t shift = scl_coarse_shift(bin);
  return (bin - (shift << 4)) << shift;
}

static inline uint32_t scl_coarse_high(uint32_t bin) {
  return scl_coarse_low(bin) + (1u << scl_coarse_shift(bin)) - 1u;
}

/* Bin of a score in low .. high. */
static inline uint32_t scl_bin_of(const scl_search_t *s, uint32_t score) {
  return s->coarse ? scl_log_bin(score) : (score - s->low) >> s->shift;
}

/* Adds scores in low .. high to the histogram. */
static inline void scl_count_scores(scl_search_t *s, const uint16_t *score, uint32_t n) {
  scl_pos_t *histogram = scl_scratch.mask.histogram;
  const uint32_t low = s->low, span = s->high - s->low, shift = s->shift;
  uint32_t counted = 0;
  if (s->coarse) {
    for (uint32_t k = 0; k < n; k++) {
      if (score[k] - low <= span) {
        histogram[scl_log_bin(score[k])]++;
        counted++;
      }
    }
    s->counted += counted;
    return;
  }
  for (uint32_t k = 0; k < n; k++) {
    if (score[k] - low <= span) {
      histogram[(score[k] - low) >> shift]++;
    }
  }
}

/* Adds n scores of 0 to the histogram. */
static inline void scl_count_zeros(scl_search_t *s, uint32_t n) {
  if (s->low == 0) {
    scl_scratch.mask.histogram[0] = (scl_pos_t)(scl_scratch.mask.histogram[0] + n);
    s->counted += n;
  }
}

/* As soon as enough scores lie on the near side of a bin, those beyond it do not matter any more. */
static inline void scl_narrow(scl_search_t *s) {
  const scl_pos_t *histogram = scl_scratch.mask.histogram;
  if (!s->coarse) {
    return;
  }
  while (s->wanted > 0 && s->counted - histogram[s->edge] >= s->wanted) {
    s->counted -= histogram[s->edge];
    if (s->side == SCL_LOWEST) {
      s->high = scl_coarse_low(s->edge--) - 1u;
    } else {
      s->low = scl_coarse_high(s->edge++) + 1u;
    }
  }
}

/* The bin of the threshold; leaves in s->wanted how many of its scores are selected. */
static inline uint32_t scl_find_bin(scl_search_t *s) {
  const scl_pos_t *histogram = scl_scratch.mask.histogram;
  uint32_t b = s->side == SCL_LOWEST ? 0u : 255u;
  while (histogram[b] < s->wanted) {
    s->wanted -= histogram[b];
    b = s->side == SCL_LOWEST ? b + 1u : b - 1u;
  }
  return b;
}

/* The next pass looks at the scores of one bin. */
static inline void scl_look_into(scl_search_t *s, uint32_t bin) {
  const uint32_t width = s->coarse ? scl_coarse_shift(bin) : s->shift;
  s->low = s->coarse ? scl_coarse_low(bin) : s->low + (bin << s->shift);
  s->high = s->low + (1u << width) - 1u;
  s->shift = width > 8u ? width - 8u : 0u;
  s->coarse = 0;
}

/* Whether the next score in storage order is selected. */
SCL_INLINE int scl_selected(uint32_t score, scl_side_t side, scl_cut_t *cut) {
  if (score != cut->threshold) {
    return side == SCL_LOWEST ? score < cut->threshold : score > cut->threshold;
  }
  if (cut->quota == 0) {
    return 0;
  }
  cut->quota--;
  return 1;
}

SCL_INLINE scl_search_t scl_search_for(scl_side_t side, uint32_t wanted) {
  const uint32_t edge = side == SCL_LOWEST ? SCL_COARSE_BINS - 1u : 0u;
  return (scl_search_t){.side = side, .wanted = wanted, .high = SCL_SCORE_MAX, .coarse = 1, .edge = edge};
}

/* Whether one more pass is needed; the counts of the last one are in the histogram. */
static inline int scl_refine(scl_search_t *s) {
  scl_look_into(s, scl_find_bin(s));
  return s->low != s->high;
}

#endif
