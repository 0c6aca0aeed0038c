/* SPDX-License-Identifier: Apache-2.0 */
/* The learner's state as bytes: digest, snapshot, dump.  docs/algorithm.md "State digest". */
#ifndef SCL_STATE_H
#define SCL_STATE_H

#include "scl_types.h"

/* Initial model, empty task and replay buffer. */
void scl_state_reset(void);

scl_status_t scl_state_digest(uint32_t *digest);

/* Bytes a snapshot takes now; save writes exactly these, load reads them. */
uint32_t scl_state_size(void);
scl_status_t scl_state_save(void);
scl_status_t scl_state_load(void);

/* Bytes of a dump region; copies `size` of them from `offset` on. */
scl_status_t scl_state_dump(uint32_t region, uint32_t offset, uint8_t *data, uint32_t size);

#endif
