/* SPDX-License-Identifier: Apache-2.0 */
/* The public interface over the engine's modules; tasks are resident: their samples lie in the flash. */
#include "sparcl.h"

#include <string.h>

#include "scl_board.h"
#include "scl_checkpoint.h"
#include "scl_host.h"
#include "scl_learner.h"
#include "scl_net.h"
#include "scl_records.h"
#include "scl_state.h"
#include "scl_train.h"

_Static_assert((int)SPARCL_ERR_STATE == SCL_ERR_BAD_STATE && (int)SPARCL_ERR_RANGE == SCL_ERR_RANGE &&
                   (int)SPARCL_ERR_LABEL == SCL_ERR_BAD_LABEL && (int)SPARCL_ERR_FULL == SCL_ERR_STORE_FULL &&
                   (int)SPARCL_ERR_FLASH == SCL_ERR_STORE && (int)SPARCL_ERR_TOO_MANY == SCL_ERR_TOO_MANY &&
                   (int)SPARCL_ERR_SELF_TEST == SCL_ERR_SELF_TEST && (int)SPARCL_ERR_DAMAGED == SCL_ERR_DAMAGED,
               "the errors of the interface are the engine's");

#ifdef SCL_BENCH_EVERY_INPUT
/* Benchmarks of kernels that draw other random numbers on purpose. */
static int kernels_are_right(void) { return 1; }
#else
static int kernels_are_right(void) { return scl_train_golden() == scl_golden_digest; }
#endif

int sparcl_start(const sparcl_port_t *port) {
  scl_host_connect(port);
  scl_state_reset();
  const int right = kernels_are_right();
  const int restored = scl_checkpoint_recover();
  return right ? restored : SPARCL_ERR_SELF_TEST;
}

int sparcl_begin_task(const uint8_t *classes, uint32_t n_classes, uint32_t n_samples) {
  return scl_train_begin(SCL_MODE_RESIDENT, n_samples, classes, n_classes);
}

int sparcl_add(uint8_t label, const void *sample) {
  const scl_learner_t *l = &scl_learner;
  if (l->phase != SCL_PHASE_FILLING) {
    return l->phase == SCL_PHASE_TRAINING ? SPARCL_ERR_TOO_MANY : SPARCL_ERR_STATE;
  }
  const scl_status_t status = scl_train_check_label(label);
  return status != SCL_OK ? (int)status : (int)scl_train_fill(l->received, label, sample);
}

/* A call that the flash cut short is half done: return to the last save. */
static int settled(scl_status_t status) {
  if (status != SCL_OK) {
    (void)scl_checkpoint_recover();
    (void)scl_host_check(SPARCL_MASKS_CHANGED);
  }
  return status;
}

int sparcl_train(uint32_t steps, sparcl_progress_t *progress) {
  const scl_learner_t *l = &scl_learner;
  const uint32_t epoch = l->epoch;
  scl_progress_t seen = {0, 0};
  scl_status_t status = l->phase == SCL_PHASE_TRAINING ? SCL_OK : SCL_ERR_BAD_STATE;
  if (status != SCL_OK) {
    return status;
  }
  for (uint32_t done = 0; done < steps && l->phase == SCL_PHASE_TRAINING && l->epoch == epoch; done++) {
    if (done % SCL_STEPS_PER_REQUEST == 0) {
      const uint32_t left = steps - done;
      status = scl_train_reserve(left < SCL_STEPS_PER_REQUEST ? left : SCL_STEPS_PER_REQUEST);
      if (status != SCL_OK) {
        return status;
      }
    }
    status = scl_train_step(&seen);
    if (status != SCL_OK) {
      return settled(status);
    }
  }
  if (progress != NULL) {
    *progress = (sparcl_progress_t){.step = l->step,
                                    .epoch = l->epoch,
                                    .left = (uint16_t)(l->n - l->pos),
                                    .wrong = seen.wrong,
                                    .task = l->task,
                                    .done = l->phase == SCL_PHASE_TRAINED};
  }
  return SPARCL_OK;
}

int sparcl_end_task(void) { return scl_train_end(); }

int sparcl_predict(const void *sample, int16_t *logits) {
  const uint32_t predicted = scl_train_predict(sample);
  if (logits != NULL) {
    memcpy(logits, scl_logits, 2u * SCL_N_CLASSES);
  }
  return (int)predicted;
}

int sparcl_save(void) { return scl_checkpoint_save(SCL_NO_RECORDS); }

int sparcl_forget(void) {
  const scl_status_t status = scl_journal_format();
  (void)scl_checkpoint_recover(); /* of a journal that could not be written, its last save */
  (void)scl_host_check(SPARCL_MASKS_CHANGED);
  return status;
}

uint32_t sparcl_digest(void) {
  uint32_t digest = 0;
  (void)scl_state_digest(&digest);
  return digest;
}
