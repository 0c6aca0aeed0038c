/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds flipped bits in RAM: the learned state, the bookkeeping and the
 * constants carry sums that are taken where they change and compared before
 * they are used, and in the background.  docs/evidence/reliability.md "Integrity while running".
 *
 * RAM: 5 bytes for each part.  A changed word always changes the sum of its
 * part.
 */
#ifndef SCL_INTEGRITY_H
#define SCL_INTEGRITY_H

#include "scl_types.h"

#define SCL_HEALTH_SELF_TEST 1u /* the golden sample came out differently: the board does not learn */
#define SCL_HEALTH_RESTORED 2u  /* it started again because of a flipped bit */
#define SCL_HEALTH_LOST_SAVE \
  4u /* of hello alone: a save could not be used, an older one or the initial model is there */

/* `faults`: flipped bits found since power-on. */
typedef struct {
  uint16_t faults;
  uint8_t health;
} scl_health_t;

extern scl_health_t scl_health;

/* How often a part changes, hence when its sum is taken. */
typedef enum {
  SCL_PARTS_BOOKS = 1,  /* learner, journal: change in each request that changes anything */
  SCL_PARTS_TABLES = 2, /* the task's samples, the replay buffer */
  SCL_PARTS_LEARNT = 4, /* weights, biases, what is captured: change in each training step */
  SCL_PARTS_MASKS = 8,  /* change in mask updates */
  SCL_PARTS_IMAGE = 16, /* constants, code: never change */
  SCL_PARTS_STEP = SCL_PARTS_BOOKS | SCL_PARTS_TABLES | SCL_PARTS_LEARNT,
  SCL_PARTS_STATE = SCL_PARTS_STEP | SCL_PARTS_MASKS,
  SCL_PARTS_ALL = SCL_PARTS_STATE | SCL_PARTS_IMAGE
} scl_parts_t;

/* At start: notes why the board started, and takes all sums. */
void scl_integrity_start(void);

/*
 * Around a request that may change `parts` (a set of scl_parts_t; 0: it only reads).  begin returns SCL_ERR_DAMAGED when
 * a bit has flipped; the request is then not executed.  end takes the sums of what has changed.
 */
scl_status_t scl_integrity_begin(uint32_t parts);
void scl_integrity_end(uint32_t parts);

/* In each training step: compares a few words that the step does not change. */
scl_status_t scl_integrity_step(void);

/* Before a snapshot: compares what the request under way does not change. */
scl_status_t scl_integrity_check_state(void);

/* Around a mask update: compares before it, takes the sums after it. */
scl_status_t scl_integrity_check_masks(void);
void scl_integrity_masks_changed(void);

/* While no byte comes: continues comparing, a bounded amount of work at a time. */
scl_status_t scl_integrity_idle(void);

/* Starts the board again with its last good state; does not return. */
void scl_integrity_restart(void);

#endif
