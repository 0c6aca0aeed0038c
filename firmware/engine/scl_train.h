/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks and training steps, docs/spec/algorithm.md. */
#ifndef SCL_TRAIN_H
#define SCL_TRAIN_H

#include "scl_records.h"

/* Where the time of training goes, in ticks of the board. */
typedef enum {
  SCL_TICKS_FORWARD,
  SCL_TICKS_BACKWARD,
  SCL_TICKS_REPLAY,
  SCL_TICKS_MASK,
  SCL_TICKS_JOURNAL,
  SCL_TICKS_DIGEST,
  SCL_TICKS_STEP,
  SCL_TICKS_COUNT
} scl_ticks_t;

/* Counters since the board started. */
typedef struct {
  uint64_t ticks[SCL_TICKS_COUNT];
  uint32_t steps, passes;
} scl_meter_t;

extern scl_meter_t scl_meter;

typedef struct {
  uint32_t loss; /* sum, 8 fractional bits */
  uint16_t wrong;
} scl_progress_t;

scl_status_t scl_train_begin(uint32_t mode, uint32_t n_samples, const uint8_t *classes, uint32_t n_classes);

/* Whether a label belongs to a class of the current task. */
scl_status_t scl_train_check_label(uint32_t label);

/* Adds the next sample of a resident task; number and label have been checked. */
scl_status_t scl_train_fill(uint32_t id, uint32_t label, const scl_input_t *x);

/* Reserves room in the journal for the records of `steps` training steps. */
scl_status_t scl_train_reserve(uint32_t steps);

/* One step on the next sample of the table (resident). */
scl_status_t scl_train_step(scl_progress_t *progress);

/* One step on a sample the host sent: the next of the table, with a label of this task (streamed). */
scl_status_t scl_train_step_streamed(uint32_t id, uint32_t label, const scl_input_t *x, scl_progress_t *progress);

/* Adds a record of a class the model knew before its first task; sample: all but the x of the record. */
scl_status_t scl_train_replay(uint32_t seen, scl_sample_t sample, const scl_input_t *x);

scl_status_t scl_train_end(void);

/*
 * Self-test: what a forward and a backward pass for each term of the loss make of the initial model and the golden
 * sample, as a state digest.  It has to be scl_golden_digest, which the generator got from the NumPy reference
 * (reference/golden.py).  Leaves the state changed.
 */
uint32_t scl_train_golden(void);

extern const scl_input_t scl_golden_x[SCL_N_IN];
extern const uint32_t scl_golden_digest;

/* Logits of a sample are in scl_logits afterwards; changes no state.  Returns the class. */
uint32_t scl_train_predict(const scl_input_t *x);

#endif
