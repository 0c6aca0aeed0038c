/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries of a panel on the move in a mask update: gaps closed, room made for
 * new ones, storage order restored.  docs/spec/numerics.md "Sparse layers".
 */
#ifndef SCL_PANEL_H
#define SCL_PANEL_H

#include "scl_net.h"
#include "scl_select.h"

/* A panel and its layer. */
typedef struct {
  const scl_masked_t *layer;
  const scl_panel_t *panel;
} scl_at_t;

/* The lists of a panel, copied: a byte that is written could be part of the panel itself for all the compiler knows. */
typedef struct {
  uint8_t *index;
  int16_t *weight;
  int32_t *d, *m; /* gradient sums, if they move with the entries */
  uint32_t block;
} scl_entries_t;

SCL_INLINE scl_entries_t scl_entries_of(scl_at_t at, uint32_t block, int sums) {
  const scl_panel_t *p = at.panel;
  return (scl_entries_t){p->index, p->weight, sums ? p->captured_d : NULL, sums ? p->captured_m : NULL, block};
}

/* Whether gradient sums are kept by entry, and move with them. */
static inline int scl_sums_move(scl_at_t at) { return !SCL_GROWTH_GRADIENT && scl_is_conv(at.layer); }

SCL_INLINE void scl_copy_entry(scl_entries_t e, uint32_t to, uint32_t from) {
  e.index[to] = e.index[from];
  for (uint32_t j = 0; j < e.block; j++) {
    e.weight[to * e.block + j] = e.weight[from * e.block + j];
  }
  for (uint32_t j = 0; e.d != NULL && j < e.block; j++) {
    e.d[to * e.block + j] = e.d[from * e.block + j];
    e.m[to * e.block + j] = e.m[from * e.block + j];
  }
}

SCL_INLINE void scl_new_entry(scl_entries_t e, uint32_t to, uint32_t place) {
  e.index[to] = (uint8_t)place;
  for (uint32_t j = 0; j < e.block; j++) {
    e.weight[to * e.block + j] = 0;
  }
  for (uint32_t j = 0; e.d != NULL && j < e.block; j++) {
    e.d[to * e.block + j] = 0;
    e.m[to * e.block + j] = 0;
  }
}

/* Copies those of the entries `from` .. end-1 to `to` that are not selected; returns where they end. */
SCL_INLINE uint32_t scl_keep_entries(scl_entries_t e, const uint16_t *score, uint32_t from, uint32_t end, uint32_t to,
                                     scl_cut_t *cut) {
  for (; from < end; from++, score++) {
    if (*score > cut->threshold || !scl_selected(*score, SCL_LOWEST, cut)) {
      scl_copy_entry(e, to++, from);
    }
  }
  return to;
}

static inline uint32_t scl_keep_line(scl_at_t at, const uint16_t *score, uint32_t from, uint32_t end, uint32_t to,
                                     scl_cut_t *cut) {
  if (at.layer->block == 1 && !scl_sums_move(at)) {
    return scl_keep_entries(scl_entries_of(at, 1, 0), score, from, end, to, cut);
  }
  return scl_keep_entries(scl_entries_of(at, at.layer->block, scl_sums_move(at)), score, from, end, to, cut);
}

/*
 * Moves the entries begin .. end-1, of which the gradient mask ends at *split,
 * up to where they end at `to`, with `grown` new ones in the gradient mask.
 * From the last one down, as nothing moves down; returns where the line begins.
 */
SCL_INLINE uint32_t scl_move_entries(scl_entries_t e, uint32_t begin, scl_pos_t *split, uint32_t end, uint32_t to,
                                     uint32_t grown) {
  const uint16_t *place = scl_scratch.mask.line;
  const uint32_t masked = *split;
  while (end > masked) {
    scl_copy_entry(e, --to, --end);
  }
  *split = (scl_pos_t)to;
  for (; grown > 0; grown--) {
    while (end > begin && e.index[end - 1u] > place[grown - 1u]) {
      scl_copy_entry(e, --to, --end);
    }
    scl_new_entry(e, --to, place[grown - 1u]);
  }
  while (end > begin) {
    scl_copy_entry(e, --to, --end);
  }
  return to;
}

static inline uint32_t scl_move_line(scl_at_t at, uint32_t i, uint32_t begin, uint32_t end, uint32_t to,
                                     uint32_t grown) {
  scl_pos_t *split = &at.panel->split[i];
  if (at.layer->block == 1 && !scl_sums_move(at)) {
    return scl_move_entries(scl_entries_of(at, 1, 0), begin, split, end, to, grown);
  }
  return scl_move_entries(scl_entries_of(at, at.layer->block, scl_sums_move(at)), begin, split, end, to, grown);
}

/* Bit of a key that puts an entry behind those of the gradient mask; the low byte is its place. */
#define SCL_NOT_CHOSEN 256u

/* Writes the entries of one mask from `to` on, merged from the runs 0 .. g-1 and g .. n-1, each of which ascends. */
static inline uint32_t scl_merge(scl_at_t at, uint32_t mask, uint32_t g, uint32_t n, uint32_t to) {
  const uint16_t *key = scl_scratch.mask.line;
  const int16_t *weight = scl_scratch.mask.weight;
  const scl_entries_t e = scl_entries_of(at, at.layer->block, 0);
  uint32_t a = 0, b = g;
  for (;;) {
    while (a < g && (key[a] & SCL_NOT_CHOSEN) != mask) {
      a++;
    }
    while (b < n && (key[b] & SCL_NOT_CHOSEN) != mask) {
      b++;
    }
    if (a == g && b == n) {
      return to;
    }
    const uint32_t from = a < g && (b == n || key[a] < key[b]) ? a++ : b++;
    e.index[to] = (uint8_t)key[from];
    for (uint32_t j = 0; j < e.block; j++) {
      e.weight[to * e.block + j] = weight[from * e.block + j];
    }
    to++;
  }
}

/* Restores the storage order of the n entries of line i; gradient sums stay behind, as they are cleared next. */
static inline void scl_reorder(scl_at_t at, uint32_t i, uint32_t n) {
  const scl_panel_t *p = at.panel;
  const uint32_t begin = p->start[i];
  const uint32_t block = at.layer->block;
  const uint32_t g = p->split[i] - begin;
  for (uint32_t k = 0; k < n * block; k++) {
    scl_scratch.mask.weight[k] = p->weight[begin * block + k];
  }
  (void)scl_merge(at, SCL_NOT_CHOSEN, g, n, scl_merge(at, 0, g, n, begin));
}

/* Places of one line, a bit each. */
typedef struct {
  uint32_t bits[8];
} scl_places_t;

static inline void scl_mark(scl_places_t *places, uint32_t b) { places->bits[b >> 5] |= 1u << (b & 31u); }

static inline int scl_is_marked(const scl_places_t *places, uint32_t b) {
  return (int)(places->bits[b >> 5] >> (b & 31u) & 1u);
}

static inline scl_places_t scl_used_places(const scl_panel_t *p, uint32_t begin, uint32_t end) {
  scl_places_t used = {{0}};
  for (uint32_t k = begin; k < end; k++) {
    scl_mark(&used, p->index[k]);
  }
  return used;
}

#endif
