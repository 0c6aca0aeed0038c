/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_mask.h"

#include <string.h>

#include "scl_fixed.h"
#include "scl_net.h"
#include "scl_prng.h"

#define MASKS (SCL_N_MASKED > 0 && (SCL_TDM || SCL_DGM))

/*
 * Position behind `pos` of the next mask update in this epoch, 0 for none.  The compiler turns division by a constant
 * into a multiplication.
 */
static uint32_t next_update(uint32_t pos) {
  const scl_learner_t *l = &scl_learner;
  if (!MASKS || (l->epoch + 1u) % SCL_UPDATE_EVERY_EPOCHS != 0u) {
    return 0;
  }
  for (uint32_t j = 1; j <= SCL_UPDATES_PER_EPOCH; j++) {
    const uint32_t due = j * l->n / SCL_UPDATES_PER_EPOCH;
    if (due > pos) {
      return due == l->n && l->epoch + 1u == SCL_EPOCHS ? 0u : due;
    }
  }
  return 0;
}

int scl_mask_due(uint32_t pos) { return pos > 0 && next_update(pos - 1u) == pos; }

int scl_mask_capturing(uint32_t pos) {
  const uint32_t due = next_update(pos);
  return due != 0 && due - pos <= SCL_CAPTURE;
}

#if MASKS

#include "scl_panel.h"
#include "scl_score.h"
#include "scl_select.h"

typedef void (*count_fn)(scl_at_t at, scl_search_t *s);

/* The cut that separates the `wanted` lowest or highest scores, at least one. */
static scl_cut_t find_cut(scl_at_t at, count_fn count, scl_side_t side, uint32_t wanted) {
  scl_search_t s = scl_search_for(side, wanted);
  do {
    memset(scl_scratch.mask.histogram, 0, sizeof scl_scratch.mask.histogram);
    count(at, &s);
  } while (scl_refine(&s));
  return (scl_cut_t){s.low, s.wanted};
}

static void count_by_cwi(scl_at_t at, scl_search_t *s) {
  const scl_panel_t *p = at.panel;
  uint16_t *score = scl_scratch.mask.line;
  scl_line_t line = scl_lines(at.layer, p);
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    scl_read_line(&line, i);
    scl_score_cwi(&line, p->start[i], p->start[i + 1], s->high, score);
    scl_count_scores(s, score, (uint32_t)p->start[i + 1] - p->start[i]);
    scl_narrow(s);
  }
}

static void count_by_cgi(scl_at_t at, scl_search_t *s) {
  const scl_panel_t *p = at.panel;
  uint16_t *score = scl_scratch.mask.line;
  scl_line_t line = scl_lines(at.layer, p);
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    scl_read_line(&line, i);
    const uint32_t entries = (uint32_t)p->start[i + 1] - p->start[i];
    if (line.live) {
      scl_score_cgi(&line, p->start[i], p->start[i + 1], score);
      scl_count_scores(s, score, entries);
    } else {
      scl_count_zeros(s, entries);
    }
    scl_narrow(s);
  }
}

/* Removes the `count` entries with the least importance and closes the gaps. */
static void prune(scl_at_t at, uint32_t count) {
  const scl_panel_t *p = at.panel;
  if (count == 0) {
    return;
  }
  scl_cut_t cut = find_cut(at, count_by_cwi, SCL_LOWEST, count);
  const uint16_t *score = scl_scratch.mask.line;
  scl_line_t line = scl_lines(at.layer, p);
  uint32_t begin = 0;
  uint32_t to = 0;
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    const uint32_t split = p->split[i];
    const uint32_t end = p->start[i + 1];
    scl_read_line(&line, i);
    scl_score_cwi(&line, begin, end, cut.threshold, scl_scratch.mask.line);
    p->start[i] = (scl_pos_t)to;
    to = scl_keep_line(at, score, begin, split, to, &cut);
    p->split[i] = (scl_pos_t)to;
    to = scl_keep_line(at, score + (split - begin), split, end, to, &cut);
    begin = end;
  }
  p->start[at.layer->lines] = (scl_pos_t)to;
}

/* Chooses the places that line i grows, as many as counted for it; ascending, in scl_scratch.mask.line. */
typedef void (*choose_fn)(scl_at_t at, uint32_t i, uint32_t begin, uint32_t end, scl_cut_t cut);

/* Adds `count` entries, as many to each line as counted for it, where `choose` wants them. */
static void insert(scl_at_t at, uint32_t count, choose_fn choose, scl_cut_t cut) {
  const scl_panel_t *p = at.panel;
  uint32_t end = p->start[at.layer->lines];
  uint32_t to = end + count;
  p->start[at.layer->lines] = (scl_pos_t)to;
  for (uint32_t i = at.layer->lines; i-- > 0 && to > end;) {
    const uint32_t begin = p->start[i];
    const uint32_t grown = scl_scratch.mask.grow[i];
    if (grown > 0) {
      choose(at, i, begin, end, cut);
    }
    to = scl_move_line(at, i, begin, end, to, grown);
    p->start[i] = (scl_pos_t)to;
    end = begin;
  }
}

static void choose_random(scl_at_t at, uint32_t i, uint32_t begin, uint32_t end, scl_cut_t cut) {
  (void)cut;
  uint16_t *place = scl_scratch.mask.line;
  scl_places_t used = scl_used_places(at.panel, begin, end);
  for (uint32_t n = 0; n < scl_scratch.mask.grow[i]; n++) {
    uint32_t b = scl_prng_below(&scl_learner.choices, at.panel->places);
    while (scl_is_marked(&used, b)) {
      b = b + 1u < at.panel->places ? b + 1u : 0u;
    }
    scl_mark(&used, b);
    uint32_t k = n;
    for (; k > 0 && place[k - 1u] > b; k--) {
      place[k] = place[k - 1u];
    }
    place[k] = (uint16_t)b;
  }
}

static void grow_random(scl_at_t at, uint32_t count) {
  const scl_panel_t *p = at.panel;
  uint16_t *grow = scl_scratch.mask.grow;
  memset(grow, 0, at.layer->lines * sizeof *grow);
  for (uint32_t n = 0; n < count; n++) {
    uint32_t i = scl_prng_below(&scl_learner.choices, at.layer->lines);
    while ((uint32_t)p->start[i + 1] - p->start[i] + grow[i] >= p->places) {
      i = i + 1u < at.layer->lines ? i + 1u : 0u;
    }
    grow[i]++;
  }
  insert(at, count, choose_random, (scl_cut_t){0, 0});
}

#if SCL_GROWTH_GRADIENT

/*
 * A gradient is at most S * E / 256 plus what rounding adds, S the weighted sum
 * of the line's inputs and E the largest error of the place.  Places whose E is
 * too small for a score of `low` or more are not scored; `reach` keeps E by its
 * coarse bin.
 */
static void measure_reach(scl_at_t at) {
  const scl_masked_t *layer = at.layer;
  for (uint32_t b = 0; scl_origin(layer) == SCL_OF_INPUT && b < at.panel->places; b++) {
    uint32_t largest = 0;
    for (uint32_t k = 0; k < SCL_ROWS; k++) {
      const int16_t *e = layer->factor_e + k * layer->n_pad + (at.panel->first + b) * layer->block;
      for (uint32_t j = 0; j < layer->block; j++) {
        largest = scl_abs(e[j]) > largest ? scl_abs(e[j]) : largest;
      }
    }
    scl_scratch.mask.reach[b] = (uint8_t)scl_log_bin(largest);
  }
}

static uint32_t reach_needed(const scl_line_t *line, uint32_t low) {
  uint32_t sum = 0;
  for (uint32_t k = 0; k < SCL_CAPTURE; k++) {
    sum += SCL_ALPHA_Q8 * scl_abs(line->x[k]) + SCL_BETA_Q8 * scl_abs(line->x[SCL_CAPTURE + k]);
  }
  const uint32_t rounding = (SCL_ALPHA_Q8 + SCL_BETA_Q8) * SCL_CAPTURE * 128u;
  if (sum == 0 || low << 16 <= rounding) {
    return 0;
  }
  return scl_log_bin(scl_min_u32(SCL_SCORE_MAX, ((low << 16) - rounding) / sum));
}

/* cgi of all places of a line, 0 where it is less than `low` for sure. */
static void score_places(scl_line_t *line, uint32_t low, uint16_t *score) {
  const uint8_t *reach = scl_scratch.mask.reach;
  const uint32_t block = line->layer->block;
  if (scl_is_conv(line->layer)) {
    scl_cgi_places(line, SCL_OF_SUMS, block, reach, 0, score);
  } else if (scl_origin(line->layer) == SCL_OF_OUTPUT) {
    scl_cgi_places(line, SCL_OF_OUTPUT, block, reach, 0, score);
  } else if (block == 1) {
    scl_cgi_places(line, SCL_OF_INPUT, 1, reach, reach_needed(line, low), score);
  } else {
    scl_cgi_places(line, SCL_OF_INPUT, block, reach, reach_needed(line, low), score);
  }
}

/* Takes the scores of places that are used out of the histogram again. */
static void uncount_used(scl_search_t *s, const scl_panel_t *p, uint32_t i, const uint16_t *score) {
  for (uint32_t k = p->start[i]; k < p->start[i + 1]; k++) {
    const uint32_t value = score[p->index[k]];
    if (value >= s->low && value <= s->high) {
      scl_scratch.mask.histogram[scl_bin_of(s, value)]--;
      s->counted--;
    }
  }
}

static void count_free(scl_at_t at, scl_search_t *s) {
  const scl_panel_t *p = at.panel;
  uint16_t *score = scl_scratch.mask.line;
  scl_line_t line = scl_lines(at.layer, p);
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    scl_read_line(&line, i);
    if (line.live) {
      score_places(&line, s->low, score);
      scl_count_scores(s, score, p->places);
      uncount_used(s, p, i, score);
    } else {
      scl_count_zeros(s, (uint32_t)p->places + p->start[i] - p->start[i + 1]);
    }
    scl_narrow(s);
  }
}

/* The selected of a line's free places, ascending, over the scores they are selected by; returns how many. */
static uint32_t select_free(const scl_panel_t *p, const scl_places_t *used, scl_cut_t *cut) {
  uint16_t *score = scl_scratch.mask.line;
  uint32_t n = 0;
  for (uint32_t b = 0; b < p->places; b++) {
    if (score[b] >= cut->threshold && !scl_is_marked(used, b) && scl_selected(score[b], SCL_HIGHEST, cut)) {
      score[n++] = (uint16_t)b;
    }
  }
  return n;
}

static uint32_t free_above(const scl_panel_t *p, const scl_places_t *used, uint32_t threshold) {
  const uint16_t *score = scl_scratch.mask.line;
  uint32_t n = 0;
  for (uint32_t b = 0; b < p->places; b++) {
    n += score[b] > threshold && !scl_is_marked(used, b);
  }
  return n;
}

/* The line's share of the quota is what is left of its number. */
static void choose_by_gradient(scl_at_t at, uint32_t i, uint32_t begin, uint32_t end, scl_cut_t cut) {
  scl_line_t line = scl_lines(at.layer, at.panel);
  scl_read_line(&line, i);
  const scl_places_t used = scl_used_places(at.panel, begin, end);
  score_places(&line, cut.threshold, scl_scratch.mask.line);
  cut.quota = scl_scratch.mask.grow[i] - free_above(at.panel, &used, cut.threshold);
  (void)select_free(at.panel, &used, &cut);
}

static void grow_gradient(scl_at_t at, uint32_t count) {
  const scl_panel_t *p = at.panel;
  if (count == 0) {
    return;
  }
  measure_reach(at);
  const scl_cut_t cut = find_cut(at, count_free, SCL_HIGHEST, count);
  scl_cut_t left = cut;
  scl_line_t line = scl_lines(at.layer, p);
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    scl_read_line(&line, i);
    uint32_t grown = 0;
    if (line.live || cut.threshold == 0) {
      const scl_places_t used = scl_used_places(p, p->start[i], p->start[i + 1]);
      score_places(&line, cut.threshold, scl_scratch.mask.line);
      grown = select_free(p, &used, &left);
    }
    scl_scratch.mask.grow[i] = (uint16_t)grown;
  }
  insert(at, count, choose_by_gradient, cut);
}
#endif

/* Turns the scores of a line's entries into keys; returns how many are chosen, and whether the keys ascend. */
static uint32_t make_keys(const uint8_t *index, uint32_t n, scl_cut_t *cut, int *ascending) {
  uint16_t *key = scl_scratch.mask.line;
  scl_cut_t left = *cut;
  uint32_t chosen = 0;
  uint32_t last = 0;
  *ascending = 1;
  for (uint32_t k = 0; k < n; k++) {
    uint32_t value = index[k];
    if (scl_selected(key[k], SCL_HIGHEST, &left)) {
      chosen++;
    } else {
      value |= SCL_NOT_CHOSEN;
    }
    if (value < last) {
      *ascending = 0;
    }
    key[k] = (uint16_t)value;
    last = value;
  }
  *cut = left;
  return chosen;
}

/* Whether the next n scores, all of them 0, are all selected (1), or none of them (0), or only the first (-1). */
static int all_alike(uint32_t n, const scl_cut_t *cut) {
  if (cut->threshold > 0 || cut->quota == 0) {
    return 0;
  }
  return cut->quota >= n ? 1 : -1;
}

/* scored: whether the cut depends on scores; else it takes all. */
static void regroup_line(scl_at_t at, scl_line_t *line, uint32_t i, int scored, scl_cut_t *cut) {
  const scl_panel_t *p = at.panel;
  const uint32_t begin = p->start[i];
  const uint32_t end = p->start[i + 1];
  const uint32_t n = end - begin;
  uint16_t *key = scl_scratch.mask.line;
  scl_read_line(line, i);
  if (!scored || !line->live) {
    const int alike = all_alike(n, cut);
    if ((alike == 0 && p->split[i] == begin) || (alike == 1 && p->split[i] == end)) {
      cut->quota -= alike == 1 ? n : 0u;
      return;
    }
    memset(key, 0, n * sizeof *key);
  } else {
    scl_score_cgi(line, begin, end, key);
  }
  int ascending;
  const uint32_t chosen = make_keys(p->index + begin, n, cut, &ascending);
  if (!ascending) {
    scl_reorder(at, i, n);
  }
  p->split[i] = (scl_pos_t)(begin + chosen);
}

/* Chooses a new gradient mask and restores the storage order. */
static void regroup(scl_at_t at) {
  const scl_panel_t *p = at.panel;
  const uint32_t entries = p->start[at.layer->lines];
  const uint32_t wanted = SCL_DGM ? scl_min_u32(p->grad, entries) : entries;
  scl_cut_t cut = {0, entries}; /* all */
  if (wanted < entries) {
    cut = find_cut(at, count_by_cgi, SCL_HIGHEST, wanted);
  }
  scl_line_t line = scl_lines(at.layer, p);
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    regroup_line(at, &line, i, wanted < entries, &cut);
  }
}

static void grow(scl_at_t at, uint32_t count) {
#if SCL_GROWTH_GRADIENT
  grow_gradient(at, count);
#else
  grow_random(at, count);
#endif
}

static void clear_captured_sums(scl_at_t at) {
  const scl_panel_t *p = at.panel;
  const uint32_t entries = SCL_GROWTH_GRADIENT ? at.layer->lines * p->places : p->nnz + p->grow_inter;
  const uint32_t bytes = entries * at.layer->block * (uint32_t)sizeof(int32_t);
  memset(p->captured_d, 0, bytes);
  memset(p->captured_m, 0, bytes);
}

void scl_mask_clear_captured(void) {
  scl_learner.captured_d = 0;
  scl_learner.captured_m = 0;
  for (uint32_t l = 0; l < SCL_N_MASKED; l++) {
    for (uint32_t q = 0; scl_is_conv(&scl_masked[l]) && q < scl_masked[l].n_panels; q++) {
      clear_captured_sums((scl_at_t){&scl_masked[l], &scl_masked[l].panels[q]});
    }
  }
}

void scl_mask_begin_task(void) {
  if (!SCL_TDM || scl_learner.task == 0 || scl_learner.grown) {
    return;
  }
  for (uint32_t l = 0; l < SCL_N_MASKED; l++) {
    for (uint32_t q = 0; q < scl_masked[l].n_panels; q++) {
      const scl_at_t at = {&scl_masked[l], &scl_masked[l].panels[q]};
      if (at.panel->grow_inter > 0) {
        grow_random(at, at.panel->grow_inter);
        scl_learner.grown = 1;
      }
    }
  }
}

void scl_mask_update(void) {
  for (uint32_t l = 0; l < SCL_N_MASKED; l++) {
    for (uint32_t q = 0; q < scl_masked[l].n_panels; q++) {
      const scl_at_t at = {&scl_masked[l], &scl_masked[l].panels[q]};
      if (SCL_TDM) {
        prune(at, at.panel->swap + at.panel->start[at.layer->lines] - at.panel->nnz);
        grow(at, at.panel->swap);
      }
      regroup(at);
    }
  }
  scl_learner.grown = 0;
}

#else

void scl_mask_clear_captured(void) {
  scl_learner.captured_d = 0;
  scl_learner.captured_m = 0;
}

void scl_mask_begin_task(void) {}
void scl_mask_update(void) {}

#endif
