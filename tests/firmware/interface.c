/* SPDX-License-Identifier: Apache-2.0 */
/* sparcl.h as a program uses it: what it refuses leaves the learner as it was.  Prints nothing when all is right. */
#include <stdio.h>
#include <string.h>

#include "scl_board.h"
#include "scl_config.h"
#include "sparcl.h"

#define N_SAMPLES 6u
#define EXPECT(what, wanted)                                              \
  do {                                                                    \
    const long found = (long)(what);                                      \
    if (found != (long)(wanted)) {                                        \
      printf("%d: %s is %ld, not %s\n", __LINE__, #what, found, #wanted); \
      wrong = 1;                                                          \
    }                                                                     \
  } while (0)

static int wrong;
static int works = 1; /* the flash */
static int checks, refuses = -1; /* the event at which the program's check finds a flipped bit */
static uint8_t flash[SCL_FLASH_SIZE];
static int8_t samples[N_SAMPLES][SCL_N_IN];

static int32_t flash_read(void *context, uint32_t at, void *data, uint32_t size) {
  memcpy(data, (uint8_t *)context + at, size);
  return 0;
}

static int32_t flash_program(void *context, uint32_t at, const void *data, uint32_t size) {
  memcpy((uint8_t *)context + at, data, size);
  return works ? 0 : -1;
}

static int32_t flash_erase(void *context, uint32_t at) {
  memset((uint8_t *)context + at, (int)SCL_FLASH_ERASED, SCL_FLASH_SECTOR);
  return works ? 0 : -1;
}

static int check(void *context, sparcl_event_t event) {
  (void)context;
  checks++;
  return (int)event == refuses ? SPARCL_ERR_DAMAGED : SPARCL_OK;
}

static void fill(void) {
  for (unsigned k = 0; k < N_SAMPLES; k++) {
    EXPECT(sparcl_add((uint8_t)(k % 2u), samples[k]), SPARCL_OK);
  }
}

int main(void) {
  static const uint8_t classes[] = {0, 1}, beyond[] = {0, 200};
  const sparcl_port_t port = {.context = flash, .read = flash_read, .program = flash_program, .erase = flash_erase};
  sparcl_port_t checked = port;
  sparcl_progress_t progress = {0};
  int16_t logits[SCL_N_CLASSES];
  checked.check = check;
  memset(flash, (int)SCL_FLASH_ERASED, sizeof flash);
  for (unsigned k = 0; k < N_SAMPLES; k++) {
    memset(samples[k], (int)(20u * k), SCL_N_IN);
  }

  EXPECT(sparcl_start(&port), 0);
  const uint32_t initial = sparcl_digest();
  EXPECT(sparcl_add(0, samples[0]), SPARCL_ERR_STATE);
  EXPECT(sparcl_train(1, &progress), SPARCL_ERR_STATE);
  EXPECT(sparcl_end_task(), SPARCL_ERR_STATE);
  EXPECT(sparcl_begin_task(beyond, 2, N_SAMPLES), SPARCL_ERR_LABEL);
  EXPECT(sparcl_begin_task(classes, 2, SCL_TABLE + 1u), SPARCL_ERR_TOO_MANY);
  EXPECT(sparcl_digest(), initial);

  EXPECT(sparcl_begin_task(classes, 2, N_SAMPLES), SPARCL_OK);
  EXPECT(sparcl_begin_task(classes, 2, N_SAMPLES), SPARCL_ERR_STATE);
  EXPECT(sparcl_add(2, samples[0]), SPARCL_ERR_LABEL);
  EXPECT(sparcl_train(1, &progress), SPARCL_ERR_STATE);
  fill();
  EXPECT(sparcl_add(0, samples[0]), SPARCL_ERR_TOO_MANY);
  EXPECT(sparcl_train(2, &progress), SPARCL_OK);
  EXPECT(progress.step, 2);
  EXPECT(progress.left, N_SAMPLES - 2u);
  EXPECT(sparcl_train(1000, &progress), SPARCL_OK); /* to the end of the epoch */
  EXPECT(progress.step, N_SAMPLES);
  EXPECT(progress.epoch, 1);
  EXPECT(sparcl_save(), SPARCL_OK);
  const uint32_t saved = sparcl_digest();

  EXPECT(sparcl_start(&port), 1); /* power fails */
  EXPECT(sparcl_digest(), saved);
  while (!progress.done) {
    EXPECT(sparcl_train(4, &progress), SPARCL_OK);
  }
  const int predicted = sparcl_predict(samples[1], logits);
  for (int k = 0; k < SCL_N_CLASSES; k++) {
    EXPECT(logits[k] <= logits[predicted], 1);
  }
  EXPECT(sparcl_predict(samples[1], NULL), predicted);
  works = 0;
  EXPECT(sparcl_end_task() < 0, 1);
  works = 1;
  EXPECT(sparcl_end_task(), SPARCL_OK);

  EXPECT(sparcl_start(&checked), 1);
  EXPECT(sparcl_begin_task(classes, 2, N_SAMPLES), SPARCL_OK);
  fill();
  refuses = SPARCL_BEFORE_SAVE;
  EXPECT(sparcl_save(), SPARCL_ERR_DAMAGED);
  refuses = SPARCL_EACH_STEP;
  EXPECT(sparcl_train(1, NULL), SPARCL_ERR_DAMAGED);
  EXPECT(checks > 2, 1);
  refuses = -1;

  EXPECT(sparcl_forget(), SPARCL_OK);
  EXPECT(sparcl_digest(), initial);
  EXPECT(sparcl_start(&port), 0);
  EXPECT(sparcl_digest(), initial);
  return wrong;
}
