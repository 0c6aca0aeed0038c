/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The learner's saves: when room is made for records, when the state goes to the journal, and how it comes back.
 * docs/spec/flash-format.md "Checkpoint", "Room", "Mount".
 */
#ifndef SCL_CHECKPOINT_H
#define SCL_CHECKPOINT_H

#include "scl_types.h"

/*
 * Brings the learner to its last save, at start-up and after an error that left it half changed.  Returns 1; 0 when there
 * is no save: it is the initial one then.
 */
int scl_checkpoint_recover(void);

/* Records to be appended. */
typedef struct {
  uint32_t samples, logits;
} scl_records_t;

#define SCL_NO_RECORDS ((scl_records_t){0, 0})

/* Saves the learner; makes room for records that follow. */
scl_status_t scl_checkpoint_save(scl_records_t need);

/* Makes sure that these can be appended, with a checkpoint if need be. */
scl_status_t scl_checkpoint_reserve(scl_records_t need);

#endif
