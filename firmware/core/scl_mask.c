/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_mask.h"

#include <string.h>

#include "scl_fixed.h"
#include "scl_net.h"
#include "scl_prng.h"

#define MASKS (SCL_N_MASKED > 0 && (SCL_TDM || SCL_DGM))

int scl_mask_due(uint32_t pos) {
  const scl_learner_t *l = &scl_learner;
  if (!MASKS || (l->epoch + 1u) % SCL_UPDATE_EVERY_EPOCHS != 0u) {
    return 0;
  }
  if (pos == l->n && l->epoch + 1u == SCL_EPOCHS) {
    return 0;
  }
  for (uint32_t j = 1; j <= SCL_UPDATES_PER_EPOCH; j++) {
    if (pos == j * l->n / SCL_UPDATES_PER_EPOCH) {
      return pos > 0;
    }
  }
  return 0;
}

int scl_mask_capturing(uint32_t pos) {
  for (uint32_t ahead = 1; ahead <= SCL_CAPTURE; ahead++) {
    if (pos + ahead <= scl_learner.n && scl_mask_due(pos + ahead)) {
      return 1;
    }
  }
  return 0;
}

#if MASKS

typedef struct {
  const scl_masked_t *layer;
  const scl_panel_t *panel;
} place_t;

/* What was captured of one line, in a dense layer gathered once for all its entries. */
typedef struct {
  int32_t d[SCL_CAPTURE], m[SCL_CAPTURE];
  int nonzero;
  uint32_t number;
} line_t;

typedef enum { BY_CWI, BY_CGI } rank_t;

static int is_conv(const scl_masked_t *layer) { return SCL_N_MASKED_CONV > 0 && layer->conv; }

static void gather(const scl_masked_t *layer, uint32_t i, line_t *line) {
  line->nonzero = 0;
  if (is_conv(layer)) {
    line->number = i;
    return;
  }
  for (uint32_t k = 0; k < SCL_CAPTURE; k++) {
    line->d[k] = k < scl_learner.captured_d ? scl_load(layer->factor_x, layer->kind, k * layer->n_in + i) : 0;
    line->m[k] =
        k < scl_learner.captured_m ? scl_load(layer->factor_x, layer->kind, (SCL_CAPTURE + k) * layer->n_in + i) : 0;
    line->nonzero |= line->d[k] != 0 || line->m[k] != 0;
  }
}

/* |sum over the captured samples of x * e|: the magnitude of a weight's gradient. */
static uint32_t gradient(const int32_t *x, const int16_t *e, uint32_t n_pad) {
  int32_t sum = 0;
  for (uint32_t k = 0; k < SCL_CAPTURE; k++) {
    if (x[k] != 0) {
      sum += scl_shift(x[k] * e[k * n_pad], 8);
    }
  }
  return scl_abs(sum);
}

static uint32_t unit(uint32_t g, int32_t shift) {
  if (shift >= 0) {
    return scl_min_u32(65535u, g >> shift);
  }
  return g > (65535u >> -shift) ? 65535u : g << -shift;
}

/* The gradient sums of a convolution are kept by place where places without a weight are scored too, else as its weights. */
static uint32_t captured_at(place_t at, const line_t *line, uint32_t b, const int16_t *w) {
  return SCL_GROWTH_GRADIENT ? (line->number * at.panel->places + b) * at.layer->block
                             : (uint32_t)(w - at.panel->weight);
}

/* Score of the block of weights at place `b` of a line; w is NULL for a place that is not used. */
static uint32_t score(place_t at, const line_t *line, uint32_t b, const int16_t *w, rank_t rank) {
  const scl_masked_t *layer = at.layer;
  uint32_t total = 0;
  for (uint32_t j = 0; j < layer->block; j++) {
    uint32_t d = 0, m = 0;
    if (is_conv(layer)) {
      d = scl_abs(at.panel->captured_d[captured_at(at, line, b, w) + j]);
      m = scl_abs(at.panel->captured_m[captured_at(at, line, b, w) + j]);
    } else if (line->nonzero) {
      const int16_t *e = layer->factor_e + (at.panel->first + b) * layer->block + j;
      d = gradient(line->d, e, layer->n_pad);
      m = gradient(line->m, e + (uint32_t)SCL_CAPTURE * layer->n_pad, layer->n_pad);
    }
    if (rank == BY_CWI) {
      total += scl_abs(w[j]) +
               ((SCL_ALPHA_Q8 * unit(d, layer->unit_shift) + SCL_BETA_Q8 * unit(m, layer->unit_shift)) >> 8);
    } else {
      total += (SCL_ALPHA_Q8 * scl_min_u32(d, 1u << 20) + SCL_BETA_Q8 * scl_min_u32(m, 1u << 20)) >> 8;
    }
  }
  return scl_min_u32(65535u, total >> layer->block_log2);
}

/*
 * Selection by threshold, with no sort and no array of scores: the scores are
 * computed again for each of the two histogram passes (high byte, low byte).
 */
typedef struct {
  uint32_t threshold; /* scores below belong to the lowest `count` ... */
  uint32_t ties;      /* ... and so do the first `ties` of those equal to it */
} cut_t;

typedef void (*count_fn)(place_t at, rank_t rank, uint32_t *histogram, uint32_t high);

/* Byte 0..255 of a score for a histogram pass, or 256 if it lies outside. */
static uint32_t bin(uint32_t value, uint32_t high) {
  if (high > 255u) {
    return value >> 8;
  }
  return (value >> 8) == high ? (value & 255u) : 256u;
}

static void count_entries(place_t at, rank_t rank, uint32_t *histogram, uint32_t high) {
  const scl_panel_t *p = at.panel;
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    line_t line;
    gather(at.layer, i, &line);
    for (uint32_t k = p->start[i]; k < p->start[i + 1]; k++) {
      const uint32_t b = bin(score(at, &line, p->index[k], &p->weight[k * at.layer->block], rank), high);
      if (b < 256u) {
        histogram[b]++;
      }
    }
  }
}

static uint32_t find_bin(const uint32_t *histogram, uint32_t *count) {
  uint32_t b = 0;
  while (b < 255u && histogram[b] < *count) {
    *count -= histogram[b];
    b++;
  }
  return b;
}

/* The cut that separates the `count` lowest scores. */
static cut_t find_cut(place_t at, rank_t rank, count_fn fn, uint32_t count) {
  uint32_t *histogram = scl_scratch.histogram;
  memset(histogram, 0, sizeof scl_scratch.histogram);
  fn(at, rank, histogram, 256u);
  const uint32_t high = find_bin(histogram, &count);
  memset(histogram, 0, sizeof scl_scratch.histogram);
  fn(at, rank, histogram, high);
  const uint32_t low = find_bin(histogram, &count);
  return (cut_t){(high << 8) | low, count};
}

static int below_cut(uint32_t value, cut_t *cut) {
  if (value != cut->threshold) {
    return value < cut->threshold;
  }
  if (cut->ties == 0) {
    return 0;
  }
  cut->ties--;
  return 1;
}

/* Whether gradient sums move with the entries. */
static int sums_move(place_t at) { return !SCL_GROWTH_GRADIENT && is_conv(at.layer); }

static void copy_entry(place_t at, uint32_t to, uint32_t from) {
  const uint32_t block = at.layer->block;
  at.panel->index[to] = at.panel->index[from];
  for (uint32_t j = 0; j < block; j++) {
    at.panel->weight[to * block + j] = at.panel->weight[from * block + j];
    if (sums_move(at)) {
      at.panel->captured_d[to * block + j] = at.panel->captured_d[from * block + j];
      at.panel->captured_m[to * block + j] = at.panel->captured_m[from * block + j];
    }
  }
}

/* Removes the `count` entries with the least importance and closes the gaps. */
static void prune(place_t at, uint32_t count) {
  const scl_panel_t *p = at.panel;
  if (count == 0) {
    return;
  }
  cut_t cut = find_cut(at, BY_CWI, count_entries, count);
  uint32_t to = 0;
  uint32_t k = 0;
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    const uint32_t split = p->split[i];
    const uint32_t end = p->start[i + 1];
    line_t line;
    gather(at.layer, i, &line);
    p->start[i] = (scl_pos_t)to;
    p->split[i] = (scl_pos_t)to;
    for (; k < end; k++) {
      if (!below_cut(score(at, &line, p->index[k], &p->weight[k * at.layer->block], BY_CWI), &cut)) {
        copy_entry(at, to++, k);
        if (k < split) {
          p->split[i] = (scl_pos_t)to;
        }
      }
    }
  }
  p->start[at.layer->lines] = (scl_pos_t)to;
}

/* One line's entries spread out by place, so that they can be added to and put back in order. */
typedef struct {
  uint8_t *flag; /* FREE, KEPT or GRADIENT for each place of the panel */
  int16_t *weight;
  uint16_t *grow; /* entries to grow on each line of the layer */
} spread_t;

enum { FREE = 0, KEPT = 1, GRADIENT = 2 };

static spread_t spread_space(void) {
  return (spread_t){scl_scratch.spread.flag, scl_scratch.spread.weight, scl_scratch.spread.grow};
}

/*
 * The gradient sums of an entry to its place and back.  When the gradient mask alone changes they can stay behind: the
 * sums are cleared right after.
 */
#if SCL_SPREAD_SUMS > 0
static void spread_sums(place_t at, uint32_t b, uint32_t k) {
  const uint32_t block = at.layer->block;
  if (sums_move(at)) {
    memcpy(&scl_scratch.spread.d[b * block], &at.panel->captured_d[k * block], block * sizeof(int32_t));
    memcpy(&scl_scratch.spread.m[b * block], &at.panel->captured_m[k * block], block * sizeof(int32_t));
  }
}

static void gather_sums(place_t at, uint32_t b, uint32_t k) {
  const uint32_t block = at.layer->block;
  if (sums_move(at)) {
    memcpy(&at.panel->captured_d[k * block], &scl_scratch.spread.d[b * block], block * sizeof(int32_t));
    memcpy(&at.panel->captured_m[k * block], &scl_scratch.spread.m[b * block], block * sizeof(int32_t));
  }
}

static void clear_sums(place_t at, uint32_t b) {
  const uint32_t block = at.layer->block;
  if (sums_move(at)) {
    memset(&scl_scratch.spread.d[b * block], 0, block * sizeof(int32_t));
    memset(&scl_scratch.spread.m[b * block], 0, block * sizeof(int32_t));
  }
}
#else
static void spread_sums(place_t at, uint32_t b, uint32_t k) { (void)at, (void)b, (void)k; }
static void gather_sums(place_t at, uint32_t b, uint32_t k) { (void)at, (void)b, (void)k; }
static void clear_sums(place_t at, uint32_t b) { (void)at, (void)b; }
#endif

static void spread(place_t at, spread_t s, uint32_t begin, uint32_t split, uint32_t end) {
  const uint32_t block = at.layer->block;
  memset(s.flag, FREE, at.panel->places);
  for (uint32_t k = begin; k < end; k++) {
    const uint32_t b = at.panel->index[k];
    s.flag[b] = k < split ? GRADIENT : KEPT;
    memcpy(&s.weight[b * block], &at.panel->weight[k * block], block * sizeof(int16_t));
    spread_sums(at, b, k);
  }
}

static uint32_t gather_flag(place_t at, spread_t s, uint8_t flag, uint32_t to) {
  const uint32_t block = at.layer->block;
  for (uint32_t b = 0; b < at.panel->places; b++) {
    if (s.flag[b] == flag) {
      at.panel->index[to] = (uint8_t)b;
      memcpy(&at.panel->weight[to * block], &s.weight[b * block], block * sizeof(int16_t));
      gather_sums(at, b, to);
      to++;
    }
  }
  return to;
}

/* Writes the spread line back at entry `to`, gradient mask first. */
static void unspread(place_t at, spread_t s, uint32_t i, uint32_t to) {
  at.panel->start[i] = (scl_pos_t)to;
  to = gather_flag(at, s, GRADIENT, to);
  at.panel->split[i] = (scl_pos_t)to;
  (void)gather_flag(at, s, KEPT, to);
}

static void add_entry(place_t at, spread_t s, uint32_t b) {
  s.flag[b] = GRADIENT;
  memset(&s.weight[b * at.layer->block], 0, at.layer->block * sizeof(int16_t));
  clear_sums(at, b);
}

typedef void (*fill_fn)(place_t at, spread_t s, uint32_t i, cut_t *cut);

static void move_entries(place_t at, uint32_t to, uint32_t from, uint32_t count) {
  const scl_panel_t *p = at.panel;
  const uint32_t block = at.layer->block;
  memmove(&p->index[to], &p->index[from], count);
  memmove(&p->weight[to * block], &p->weight[from * block], count * block * sizeof(int16_t));
  if (sums_move(at)) {
    memmove(&p->captured_d[to * block], &p->captured_d[from * block], count * block * sizeof(int32_t));
    memmove(&p->captured_m[to * block], &p->captured_m[from * block], count * block * sizeof(int32_t));
  }
}

/* Makes room for the entries counted in s.grow, from the last line down, and lets `fill` place them. */
static void insert(place_t at, spread_t s, uint32_t count, fill_fn fill, cut_t *cut) {
  const scl_panel_t *p = at.panel;
  uint32_t end = p->start[at.layer->lines];
  uint32_t shift = count;
  p->start[at.layer->lines] = (scl_pos_t)(end + shift);
  for (uint32_t i = at.layer->lines; i-- > 0 && shift > 0;) {
    const uint32_t begin = p->start[i];
    const uint32_t split = p->split[i];
    const uint32_t grown = s.grow[i];
    shift -= grown;
    if (grown > 0) {
      spread(at, s, begin, split, end);
      fill(at, s, i, cut);
      unspread(at, s, i, begin + shift);
    } else {
      move_entries(at, begin + shift, begin, end - begin);
      p->start[i] = (scl_pos_t)(begin + shift);
      p->split[i] = (scl_pos_t)(split + shift);
    }
    end = begin;
  }
}

static void fill_random(place_t at, spread_t s, uint32_t i, cut_t *cut) {
  (void)cut;
  for (uint32_t n = s.grow[i]; n > 0; n--) {
    uint32_t b = scl_prng_below(&scl_learner.prng, at.panel->places);
    while (s.flag[b] != FREE) {
      b = b + 1u < at.panel->places ? b + 1u : 0u;
    }
    add_entry(at, s, b);
  }
}

static void grow_random(place_t at, uint32_t count) {
  const scl_panel_t *p = at.panel;
  const spread_t s = spread_space();
  memset(s.grow, 0, at.layer->lines * sizeof *s.grow);
  for (uint32_t n = 0; n < count; n++) {
    uint32_t i = scl_prng_below(&scl_learner.prng, at.layer->lines);
    while ((uint32_t)p->start[i + 1] - p->start[i] + s.grow[i] >= p->places) {
      i = i + 1u < at.layer->lines ? i + 1u : 0u;
    }
    s.grow[i]++;
  }
  insert(at, s, count, fill_random, NULL);
}

#if SCL_GROWTH_GRADIENT
static int is_used(const scl_panel_t *p, uint32_t i, uint32_t b) {
  for (uint32_t k = p->start[i]; k < p->start[i + 1]; k++) {
    if (p->index[k] == b) {
      return 1;
    }
  }
  return 0;
}

/* Ranks unused places; complemented, so that the highest gradient is the lowest value. */
static uint32_t growth_rank(place_t at, const line_t *line, uint32_t b) {
  return 65535u - score(at, line, b, NULL, BY_CGI);
}

static void count_unused(place_t at, rank_t rank, uint32_t *histogram, uint32_t high) {
  (void)rank;
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    line_t line;
    gather(at.layer, i, &line);
    for (uint32_t b = 0; b < at.panel->places; b++) {
      const uint32_t place = bin(growth_rank(at, &line, b), high);
      if (place < 256u && !is_used(at.panel, i, b)) {
        histogram[place]++;
      }
    }
  }
}

/* Of the places at the threshold the first are taken until s.grow[i], which counted this line's share of them, is reached. */
static void fill_gradient(place_t at, spread_t s, uint32_t i, cut_t *cut) {
  line_t line;
  gather(at.layer, i, &line);
  uint32_t above = 0;
  for (uint32_t b = 0; b < at.panel->places; b++) {
    above += s.flag[b] == FREE && growth_rank(at, &line, b) < cut->threshold;
  }
  uint32_t ties = s.grow[i] - above;
  for (uint32_t b = 0; b < at.panel->places; b++) {
    if (s.flag[b] != FREE) {
      continue;
    }
    const uint32_t value = growth_rank(at, &line, b);
    if (value < cut->threshold) {
      add_entry(at, s, b);
    } else if (value == cut->threshold && ties > 0) {
      ties--;
      add_entry(at, s, b);
    }
  }
}

static void grow_gradient(place_t at, uint32_t count) {
  if (count == 0) {
    return;
  }
  cut_t cut = find_cut(at, BY_CGI, count_unused, count);
  const spread_t s = spread_space();
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    line_t line;
    gather(at.layer, i, &line);
    s.grow[i] = 0;
    for (uint32_t b = 0; b < at.panel->places; b++) {
      const uint32_t value = growth_rank(at, &line, b);
      if (value <= cut.threshold && !is_used(at.panel, i, b) && below_cut(value, &cut)) {
        s.grow[i]++;
      }
    }
  }
  insert(at, s, count, fill_gradient, &cut);
}
#endif

/* Chooses the gradient mask anew and restores the storage order. */
static void regroup(place_t at) {
  const scl_panel_t *p = at.panel;
  const uint32_t entries = p->start[at.layer->lines];
  const uint32_t chosen = SCL_DGM ? scl_min_u32(p->grad, entries) : entries;
  cut_t cut = {0, 0};
  uint32_t quota = 0; /* of the entries equal to the threshold, the first `quota` are chosen */
  if (chosen < entries) {
    cut = find_cut(at, BY_CGI, count_entries, entries - chosen);
    uint32_t equal = 0;
    for (uint32_t i = 0; i < at.layer->lines; i++) {
      line_t line;
      gather(at.layer, i, &line);
      for (uint32_t k = p->start[i]; k < p->start[i + 1]; k++) {
        equal += score(at, &line, p->index[k], &p->weight[k * at.layer->block], BY_CGI) == cut.threshold;
      }
    }
    quota = equal - cut.ties;
  }
  const spread_t s = spread_space();
  for (uint32_t i = 0; i < at.layer->lines; i++) {
    line_t line;
    gather(at.layer, i, &line);
    const uint32_t begin = p->start[i];
    const uint32_t end = p->start[i + 1];
    spread(at, s, begin, end, end);
    for (uint32_t k = begin; k < end && chosen < entries; k++) {
      const uint32_t value = score(at, &line, p->index[k], &p->weight[k * at.layer->block], BY_CGI);
      const int tie = value == cut.threshold && quota > 0;
      if (tie) {
        quota--;
      } else if (value <= cut.threshold) {
        s.flag[p->index[k]] = KEPT;
      }
    }
    unspread(at, s, i, begin);
  }
}

static void grow(place_t at, uint32_t count) {
#if SCL_GROWTH_GRADIENT
  grow_gradient(at, count);
#else
  grow_random(at, count);
#endif
}

static void clear_captured_sums(place_t at) {
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
    for (uint32_t q = 0; is_conv(&scl_masked[l]) && q < scl_masked[l].n_panels; q++) {
      clear_captured_sums((place_t){&scl_masked[l], &scl_masked[l].panels[q]});
    }
  }
}

void scl_mask_begin_task(void) {
  if (!SCL_TDM || scl_learner.task == 0 || scl_learner.grown) {
    return;
  }
  for (uint32_t l = 0; l < SCL_N_MASKED; l++) {
    for (uint32_t q = 0; q < scl_masked[l].n_panels; q++) {
      const place_t at = {&scl_masked[l], &scl_masked[l].panels[q]};
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
      const place_t at = {&scl_masked[l], &scl_masked[l].panels[q]};
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
