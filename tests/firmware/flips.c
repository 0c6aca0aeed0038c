/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flips every bit of the state, one at a time, and asks the engine's checks.
 * Linked with --wrap=scl_app_main: the native port prepares the process.
 * Prints, per line: name of the range, bits flipped, bits found before a
 * request, most slices until the background pass found one (one bit a byte),
 * and for masks most training steps.
 */
#include <stdio.h>
#include <string.h>

#include "scl_app.h"
#include "scl_integrity.h"
#include "scl_learner.h"
#include "scl_net.h"
#include "scl_port.h"
#include "scl_state.h"
#include "scl_records.h"
#include "scl_train.h"

#define MOST_SLICES 10000u
#define N_SAMPLES 8u /* no mask update follows the first step of an epoch */

int __wrap_scl_app_main(void);

static unsigned until_found(scl_status_t (*slice)(void)) {
  unsigned n = 1;
  while (slice() == SCL_OK && n < MOST_SLICES) {
    n++;
  }
  return n;
}

static unsigned most(unsigned a, unsigned b) { return a > b ? a : b; }

static void sweep(const char *name, void *data, uint32_t size) {
  uint8_t *bytes = data;
  const int mask = strcmp(name, "mask") == 0;
  unsigned flipped = 0, found = 0, slices = 0, steps = 0;
  for (uint32_t k = 0; k < 8u * size; k++) {
    bytes[k / 8u] ^= (uint8_t)(1u << k % 8u);
    flipped++;
    found += scl_integrity_begin(SCL_PARTS_STATE) == SCL_ERR_DAMAGED;
    if (k % 8u == k / 8u % 8u) {
      slices = most(slices, until_found(scl_integrity_idle));
      steps = mask ? most(steps, until_found(scl_integrity_step)) : 0u;
    }
    bytes[k / 8u] ^= (uint8_t)(1u << k % 8u);
    if (scl_integrity_begin(SCL_PARTS_STATE) == SCL_OK) { /* what is as it was is not complained of */
      scl_integrity_end(SCL_PARTS_STATE);
    } else {
      found = 0;
      break;
    }
  }
  (void)printf("%s %u %u %u %u\n", name, flipped, found, slices, steps);
}

/* A flipped place of a mask, within the panel's, while the board trains the first step of an epoch again and again. */
static void train_damaged(void) {
  for (uint32_t r = 0; r < SCL_N_REGIONS; r++) {
    if (scl_regions[r].mask && scl_regions[r].entries != NULL) {
      scl_progress_t progress = {0, 0};
      unsigned steps = 1;
      ((uint8_t *)scl_regions[r].data)[0] ^= 1u;
      scl_learner.pos = 0;
      scl_status_t status;
      while ((status = scl_train_step(&progress)) == SCL_OK && steps < MOST_SLICES) {
        scl_learner.pos = 0;
        steps++;
      }
      (void)printf("training 1 %u 0 %u\n", status == SCL_ERR_DAMAGED, steps);
      return;
    }
  }
}

int __wrap_scl_app_main(void) {
  static const uint8_t classes[] = {0, 1};
  static const scl_input_t x[SCL_N_IN] = {1, 2, 3};
  (void)sparcl_start(&scl_app_port);
  if (scl_train_begin(SCL_MODE_RESIDENT, N_SAMPLES, classes, 2) != SCL_OK) {
    return 2;
  }
  scl_integrity_start();
  scl_progress_t progress = {0, 0};
  for (uint32_t id = 0; id < N_SAMPLES; id++) {
    (void)scl_integrity_begin(SCL_PARTS_BOOKS | SCL_PARTS_TABLES);
    if (scl_train_fill(id, id % 2u, x) != SCL_OK) {
      return 3;
    }
    scl_integrity_end(SCL_PARTS_BOOKS | SCL_PARTS_TABLES);
  }
  if (scl_integrity_begin(SCL_PARTS_STEP) != SCL_OK || scl_train_step(&progress) != SCL_OK) {
    return 4;
  }
  scl_integrity_end(SCL_PARTS_STEP);
  if (scl_integrity_begin(SCL_PARTS_STATE) != SCL_OK) {
    return 5;
  }
  scl_integrity_end(SCL_PARTS_STATE);
  sweep("learner", &scl_learner, sizeof scl_learner);
  sweep("journal", &scl_journal, sizeof scl_journal);
  sweep("table", &scl_table, sizeof scl_table);
  sweep("slots", &scl_slots, sizeof scl_slots);
  for (uint32_t r = 0; r < SCL_N_REGIONS; r++) {
    sweep(scl_regions[r].mask ? "mask" : "learnt", scl_regions[r].data, scl_region_size(&scl_regions[r]));
  }
  for (uint32_t r = 0; r < SCL_N_TRANSIENT; r++) {
    sweep("captured", scl_transient_regions[r].data, scl_region_size(&scl_transient_regions[r]));
  }
  train_damaged();
  return 0;
}
