/* SPDX-License-Identifier: Apache-2.0 */
/* Task-aware dynamic masks (TDM) and dynamic gradient masks (DGM), docs/spec/algorithm.md. */
#ifndef SCL_MASK_H
#define SCL_MASK_H

#include "scl_types.h"

/* Whether a mask update follows the step that leaves `pos` samples behind in this epoch. */
int scl_mask_due(uint32_t pos);

/* Whether the step on `pos` lies in a capture window. */
int scl_mask_capturing(uint32_t pos);

/* Grows unused weights at the start of every task but the first. */
void scl_mask_begin_task(void);

void scl_mask_update(void);

/* Forgets what was captured for scores: after a mask update and at the start of a task. */
void scl_mask_clear_captured(void);

#endif
