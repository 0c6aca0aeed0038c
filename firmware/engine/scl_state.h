/* SPDX-License-Identifier: Apache-2.0 */
/* The learner's state as bytes: digest, snapshot, dump.  docs/spec/algorithm.md "State digest". */
#ifndef SCL_STATE_H
#define SCL_STATE_H

#include "scl_tag.h"
#include "scl_types.h"

/* Initial model, empty task and replay buffer. */
void scl_state_reset(void);

scl_status_t scl_state_digest(uint32_t *digest);

/*
 * What a snapshot ends with: the state digest, continued over what it leaves out; with a shared key a tag of its number
 * and all its bytes, too.  docs/spec/flash-format.md "Snapshot".
 */
typedef struct {
  uint8_t bytes[4u + SCL_TAG_BYTES];
} scl_state_end_t;

/* Computes what the present state ends with in the snapshot of this number.  Reads the heads of all records. */
scl_status_t scl_state_end(uint32_t number, scl_state_end_t *end);

/*
 * Bytes a snapshot takes now; save writes exactly these, load reads them.  What load returns is safe to work with, but
 * only a state that ends as *end says is the one that was saved.
 */
uint32_t scl_state_size(void);
scl_status_t scl_state_save(const scl_state_end_t *end);
scl_status_t scl_state_load(scl_state_end_t *end);

/* Bytes of a dump region; copies `size` of them from `offset` on. */
scl_status_t scl_state_dump(uint32_t region, uint32_t offset, uint8_t *data, uint32_t size);

#endif
