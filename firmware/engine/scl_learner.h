/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of learning besides the weights, docs/spec/algorithm.md "State".  One
 * learner exists; it is saved to and restored from the journal by scl_state.c.
 */
#ifndef SCL_LEARNER_H
#define SCL_LEARNER_H

#include "scl_types.h"

#define SCL_NO_TASK 255u

/* Values that left their format in training; shown in the report so that a too tight format is seen. */
typedef struct {
  uint32_t saturated_activations;
  uint32_t saturated_errors;
  uint32_t guard_shifts;
} scl_counts_t;

typedef struct {
  /* Two generators: which samples come next does not depend on how many weights were rounded before. */
  uint32_t choices, rounding;
  uint32_t step, seen, rolling;
  uint8_t task, phase, mode, grown;
  uint16_t epoch, pos, n_start, n, filled, received;
  uint8_t captured_d, captured_m, shuffled;
  scl_counts_t counts;
  uint8_t class_task[SCL_N_CLASSES];
} scl_learner_t;

extern scl_learner_t scl_learner;

#endif
