/* SPDX-License-Identifier: Apache-2.0 */
/* The task's samples: order of the epoch, scores, dynamic data removal (DDR).  docs/spec/algorithm.md. */
#ifndef SCL_TASK_H
#define SCL_TASK_H

#include "scl_types.h"

/* Shuffles the table for this epoch unless it is shuffled already. */
void scl_task_shuffle(void);

/* Scores how hard the sample at the current position was; error: 1 - p of its class, 14 fractional bits. */
void scl_task_score(int wrong, uint32_t error);

/* End of an epoch: removes the easiest samples. */
void scl_task_remove_easy(void);

#endif
