/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network: implemented by the generated scl_model.c, one line per layer
 * and pass with that layer's constants.  A new kind of layer adds a header
 * with its kernels and a branch in the template; nothing else changes.
 */
#ifndef SCL_NET_H
#define SCL_NET_H

#include "scl_conv.h"
#include "scl_learner.h"

typedef enum { SCL_TERM_CURRENT = 0, SCL_TERM_DISTIL = 1, SCL_TERM_REPLAY = 2 } scl_term_t;

/* Written by forward; read by backward together with scl_logit_error, which the loss writes. */
extern int16_t scl_logits[SCL_LOGITS_PAD];
extern int16_t scl_logit_error[SCL_LOGITS_PAD];

#define SCL_NO_CAPTURE (-1)

/* Weights, masks and biases of the model in the firmware. */
void scl_net_reset(void);

#if SCL_PREFIX
/* The frozen layers: a sample to the SCL_N_LATENT values that the network that learns begins with. */
void scl_net_prefix(const scl_input_t *x, scl_latent_t *latent);
#endif

/* x is what records hold; where these are samples, the frozen layers run first. */
void scl_net_forward(const scl_stored_t *x, scl_counts_t *counts);

/*
 * Updates the parameters (batch 1) or adds to the gradients (batch > 1), for the x of the last forward pass; capture:
 * which step (0 .. SCL_CAPTURE-1 for D, SCL_CAPTURE .. 2*SCL_CAPTURE-1 for M) or SCL_NO_CAPTURE.
 */
void scl_net_backward(const scl_stored_t *x, scl_term_t term, int32_t capture);

/* Only carries the error to the layers, for capture. */
void scl_net_error(const scl_stored_t *x, int32_t capture);

/* Batch > 1: applies and clears the gradients. */
void scl_net_apply(void);

/* Work space: sums and errors during a pass; between passes free for mask updates (scl_mask.c). */
typedef union {
  struct {
    int32_t sums[SCL_MAX_SUMS];
    int32_t active[SCL_ACTIVE]; /* lists of errors, scl_conv.h */
  };
#if SCL_N_MASKED > 0
  struct {
    uint16_t line[SCL_MASK_PLACES]; /* of one line: scores, places that grow, or the order its entries get */
#if SCL_GROWTH_GRADIENT
    uint8_t reach[SCL_MASK_PLACES]; /* of each place: whether a gradient can matter there */
#endif
    union {
      scl_pos_t histogram[256];
      uint16_t grow[SCL_MASK_LINES];      /* entries to grow on each line */
      int16_t weight[SCL_MASK_WEIGHTS];   /* of one line, while its order changes */
    };
  } mask;
#endif
} scl_scratch_t;

extern scl_scratch_t scl_scratch;

/* A masked layer as mask updates see it. */
typedef struct {
  const scl_panel_t *panels;
  const void *factor_x; /* dense: 2 * SCL_CAPTURE rows of n_in inputs; convolutions have their sums in the panels */
  const int16_t *factor_e; /* dense: 2 * SCL_CAPTURE rows of n_pad errors */
  scl_kind_t kind;
  uint16_t n_panels, lines, n_in, n_pad;
  uint8_t conv, by_output, block, block_log2;
  int8_t unit_shift; /* fx + 6 - fw + log2(SCL_CAPTURE) */
} scl_masked_t;

extern const scl_masked_t scl_masked[SCL_N_MASKED + 1]; /* the last is empty: C has no empty arrays */

/*
 * The parameters as ranges of memory, in the order of the state digest.  size
 * bytes, or *entries * size, at most `most` entries, where entries is not NULL
 * (lists of a panel).
 */
typedef struct {
  void *data;
  const scl_pos_t *entries;
  uint32_t size, most;
  uint8_t mask; /* changes in mask updates only */
} scl_region_t;

extern const scl_region_t scl_regions[SCL_N_REGIONS];

SCL_INLINE uint32_t scl_region_size(const scl_region_t *region) {
  return region->entries == NULL ? region->size : (uint32_t)*region->entries * region->size;
}

/* Further memory that a snapshot in the middle of a task needs: captured factors, gradient sums; the last has no data. */
extern const scl_region_t scl_transient_regions[SCL_N_TRANSIENT + 1];

/* Weights that stand at the limit of their format. */
uint32_t scl_net_clamped(void);

#endif
