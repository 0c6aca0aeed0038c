/* SPDX-License-Identifier: Apache-2.0 */
/* The replay buffer: reservoir sampling over slots that point into the journal.  docs/spec/algorithm.md step 7. */
#ifndef SCL_REPLAY_H
#define SCL_REPLAY_H

#include "scl_records.h"

/* Slots in all.  0 for finetune, which comparisons with the constant itself would be warned about. */
static inline uint32_t scl_replay_capacity(void) { return SCL_CAPACITY; }

/* A uniformly drawn slot; the buffer is not empty. */
uint32_t scl_replay_draw(void);

/*
 * Offers a sample to the reservoir.  `address` is where it lies in the journal,
 * or SCL_ADDRESS_NONE if it does not lie there yet (streamed training): then it
 * is written only when it is kept.
 */
scl_status_t scl_replay_offer(const scl_sample_t *sample, scl_address_t address, const int16_t *logits);

/* Puts a sample into the next empty slot. */
scl_status_t scl_replay_add(const scl_sample_t *sample, const int16_t *logits);

/* Replaces the logits of a slot's sample. */
scl_status_t scl_replay_refresh(uint32_t slot, const scl_sample_t *sample, const int16_t *logits);

#endif
