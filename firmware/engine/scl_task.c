/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_task.h"

#include <string.h>

#include "scl_fixed.h"
#include "scl_learner.h"
#include "scl_prng.h"
#include "scl_records.h"

static void move(uint32_t to, uint32_t from) {
  scl_table.address[to] = scl_table.address[from];
  scl_table.id[to] = scl_table.id[from];
  scl_table.score[to] = scl_table.score[from];
}

static void swap(uint32_t a, uint32_t b) {
  const scl_address_t address = scl_table.address[a];
  const uint16_t id = scl_table.id[a];
  const uint8_t score = scl_table.score[a];
  move(a, b);
  scl_table.address[b] = address;
  scl_table.id[b] = id;
  scl_table.score[b] = score;
}

void scl_task_shuffle(void) {
  if (scl_learner.shuffled) {
    return;
  }
  for (uint32_t i = scl_learner.n; i-- > 1u;) {
    swap(i, scl_prng_below(&scl_learner.choices, i + 1u));
  }
  scl_learner.shuffled = 1;
}

void scl_task_score(int wrong, uint32_t error) {
  if (!SCL_DDR) {
    return;
  }
  uint8_t *score = &scl_table.score[scl_learner.pos];
#if SCL_DDR_BY_LOSS
  (void)wrong;
  *score = (uint8_t)scl_log_bin(error); /* told apart finely where it is small: that is what is removed */
#else
  (void)error;
  *score = (uint8_t)scl_min_u32(255u, *score + (wrong ? 1u : 0u));
#endif
}

/* Removes the `count` samples with the lowest scores, the earlier of equals first. */
static void remove_lowest(uint32_t count) {
  uint16_t histogram[256] = {0};
  for (uint32_t i = 0; i < scl_learner.n; i++) {
    histogram[scl_table.score[i]]++;
  }
  uint32_t threshold = 0;
  uint32_t ties = count;
  while (ties > histogram[threshold]) {
    ties -= histogram[threshold++];
  }
  uint32_t kept = 0;
  for (uint32_t i = 0; i < scl_learner.n; i++) {
    const uint32_t score = scl_table.score[i];
    if (score < threshold) {
      continue;
    }
    if (score == threshold && ties > 0) {
      ties--;
      continue;
    }
    move(kept++, i);
  }
  scl_learner.n = (uint16_t)kept;
}

void scl_task_remove_easy(void) {
  if (!SCL_DDR || scl_learner.epoch >= SCL_DDR_UNTIL) {
    return;
  }
  const uint32_t target =
      (uint32_t)((uint64_t)SCL_RHO_PERMILLE * scl_learner.n_start * (scl_learner.epoch + 1u) / (1000u * SCL_DDR_UNTIL));
  const uint32_t removed = (uint32_t)scl_learner.n_start - scl_learner.n;
  if (target > removed) {
    remove_lowest(scl_min_u32(target - removed, scl_learner.n - 1u));
  }
  if (!SCL_DDR_BY_LOSS) {
    memset(scl_table.score, 0, scl_learner.n);
  }
}
