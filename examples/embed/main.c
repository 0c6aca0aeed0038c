/* SPDX-License-Identifier: Apache-2.0 */
/* An application on sparcl.h alone: no serial line, no board.  Its flash is an array, its samples are in tasks.h. */
#include <stdio.h>
#include <string.h>

#include "scl_board.h"
#include "sparcl.h"
#include "tasks.h"

static uint8_t flash[SCL_FLASH_SIZE];

static int32_t flash_read(void *context, uint32_t at, void *data, uint32_t size) {
  memcpy(data, (uint8_t *)context + at, size);
  return 0;
}

static int32_t flash_program(void *context, uint32_t at, const void *data, uint32_t size) {
  memcpy((uint8_t *)context + at, data, size);
  return 0;
}

static int32_t flash_erase(void *context, uint32_t at) {
  memset((uint8_t *)context + at, (int)SCL_FLASH_ERASED, SCL_FLASH_SECTOR);
  return 0;
}

static unsigned right(const task_t *t) {
  unsigned n = 0;
  for (unsigned k = 0; k < t->n_test; k++) {
    n += sparcl_predict(t->x_test + k * N_IN, NULL) == t->y_test[k];
  }
  return n;
}

static int learn(const task_t *t) {
  sparcl_progress_t progress = {0};
  int status = sparcl_begin_task(t->classes, t->n_classes, t->n);
  for (unsigned k = 0; k < t->n && status >= 0; k++) {
    status = sparcl_add(t->y[k], t->x + k * N_IN);
  }
  while (status >= 0 && !progress.done) {
    status = sparcl_train(40, &progress);
  }
  return status < 0 ? status : sparcl_end_task();
}

int main(void) {
  const sparcl_port_t port = {.context = flash, .read = flash_read, .program = flash_program, .erase = flash_erase};
  int status = sparcl_start(&port);
  for (unsigned t = 0; t < TASKS && status >= 0; t++) {
    status = learn(&task[t]);
    printf("task %u: %u of %u right\n", t, right(&task[t]), task[t].n_test);
  }
  if (status < 0) {
    printf("error %d\n", status);
    return 1;
  }
  const uint32_t digest = sparcl_digest();
  const int restored = sparcl_start(&port); /* as after a power cut */
  printf("digest %08x, %s\n", (unsigned)digest, restored == 1 && sparcl_digest() == digest ? "restored" : "lost");
  return 0;
}
