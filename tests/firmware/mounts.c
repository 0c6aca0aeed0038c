/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A board in memory without a line: learns what it is told, and mounts any flash.  test_damage.py tells it on standard
 * input, with a letter and arguments in front of each order, and reads what it answers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scl_app.h"
#include "scl_integrity.h"
#include "scl_learner.h"
#include "scl_port.h"
#include "scl_state.h"
#include "scl_checkpoint.h"
#include "scl_records.h"
#include "scl_train.h"

scl_status_t __wrap_scl_journal_snapshot_write(const void *data, uint32_t size);
scl_status_t __real_scl_journal_snapshot_write(const void *data, uint32_t size);

static uint8_t flash[SCL_FLASH_SIZE];
static int listening; /* a snapshot goes to standard output, not to the flash */

/* ---- the port ---------------------------------------------------------------- */

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  if (address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address) {
    return -1;
  }
  memcpy(data, flash + address, size);
  return 0;
}

int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  for (uint32_t k = 0; k < size; k++) {
    flash[address + k] &= data[k];
  }
  return 0;
}

int32_t scl_port_flash_erase(uint32_t address) {
  memset(flash + address, (int)SCL_FLASH_ERASED, SCL_FLASH_SECTOR);
  return 0;
}

void scl_port_init(void) {}
void scl_port_restart(void) { exit(3); }
void scl_port_watchdog_feed(void) {}
void scl_port_write(const uint8_t *data, uint32_t size) { (void)data, (void)size; }
int32_t scl_port_read_byte(void) { return -1; }
uint32_t scl_port_ticks(void) { return 0; }
uint32_t scl_port_stack_used(void) { return 0; }
uint32_t scl_port_kept(void) { return 0; }
void scl_port_keep(uint32_t word) { (void)word; }
scl_reset_reason_t scl_port_reset_reason(void) { return SCL_RESET_POWER_ON; }
uint32_t scl_port_image(uint32_t range, const void **begin) {
  (void)range;
  *begin = NULL;
  return 0;
}

/* ---- orders ------------------------------------------------------------------- */

static void take(void *data, size_t size) {
  if (fread(data, 1, size, stdin) != size) {
    exit(2);
  }
}

static void give(const void *data, uint32_t size) { fwrite(data, 1, size, stdout); }

static void give_sized(const void *data, uint32_t size) {
  give(&size, sizeof size);
  give(data, size);
}

scl_status_t __wrap_scl_journal_snapshot_write(const void *data, uint32_t size) {
  if (!listening) {
    return __real_scl_journal_snapshot_write(data, size);
  }
  give(data, size);
  return SCL_OK;
}

/* The state as a snapshot holds it, without what that ends with. */
static void give_state(void) {
  const scl_state_end_t nothing = {{0}};
  const uint32_t size = scl_state_size();
  give(&size, sizeof size);
  listening = 1;
  (void)scl_state_save(&nothing);
  listening = 0;
}

/* Empty: lost. */
static void give_record(scl_status_t status, const scl_sample_t *sample) {
  uint8_t bytes[8u + SCL_N_STORED] = {0};
  if (status == SCL_OK) {
    memcpy(bytes, &sample->crc, 4);
    memcpy(bytes + 4, &sample->id, 2);
    bytes[6] = sample->task;
    bytes[7] = sample->label;
    memcpy(bytes + 8, sample->x, SCL_N_STORED);
  }
  give_sized(bytes, status == SCL_OK ? (uint32_t)sizeof bytes : 0u);
}

static void give_records(void) {
  const uint32_t resident = scl_record_resident(), filled = scl_learner.filled;
  const uint32_t numbers[] = {resident, filled};
  give(numbers, sizeof numbers);
  for (uint32_t k = 0; k < resident; k++) {
    scl_sample_t sample;
    const scl_status_t status = scl_record_get_sample(k, &sample);
    give_record(status, &sample);
  }
  for (uint32_t k = 0; k < filled; k++) {
    scl_sample_t sample;
    int16_t logits[SCL_N_CLASSES];
    const scl_status_t status = scl_record_get_replay(k, &sample, SCL_METHOD == SCL_METHOD_DERPP ? logits : NULL);
    give_record(status, &sample);
    give_sized(logits, status == SCL_OK && SCL_METHOD == SCL_METHOD_DERPP ? (uint32_t)sizeof logits : 0u);
  }
}

/* Power on with this flash. */
static void mount(void) {
  take(flash, sizeof flash);
  memset(&scl_journal, 0, sizeof scl_journal);
  const uint32_t found[] = {(uint32_t)scl_checkpoint_recover(), scl_journal.snapshot, scl_journal.counts.lost_saves};
  scl_integrity_end(SCL_PARTS_STATE);
  give(found, sizeof found);
  give_state();
  give_records();
}

static scl_status_t fill(void) {
  struct {
    uint16_t id;
    uint8_t label;
    uint8_t x[SCL_N_IN];
  } s;
  take(&s.id, sizeof s.id);
  take(&s.label, sizeof s.label);
  take(s.x, sizeof s.x);
  return scl_train_fill(s.id, s.label, (const scl_input_t *)s.x);
}

static scl_status_t begin(void) {
  uint8_t head[2], classes[SCL_N_CLASSES]; /* samples, classes */
  take(head, sizeof head);
  take(classes, head[1]);
  return scl_train_begin(SCL_MODE_RESIDENT, head[0], classes, head[1]);
}

static scl_status_t train(void) {
  uint8_t steps;
  scl_progress_t progress = {0, 0};
  take(&steps, sizeof steps);
  scl_status_t status = scl_train_reserve(steps);
  for (uint32_t k = 0; k < steps && status == SCL_OK && scl_learner.phase == SCL_PHASE_TRAINING; k++) {
    status = scl_train_step(&progress);
  }
  return status;
}

static void obey(char order) {
  int32_t status;
  switch (order) {
    case 'm':
      mount();
      break;
    case 'g':
      give(flash, sizeof flash);
      break;
    default: /* as the protocol executes a request */
      (void)scl_integrity_begin(SCL_PARTS_STATE);
      status = order == 'b'   ? begin()
               : order == 'f' ? fill()
               : order == 't' ? train()
               : order == 'e' ? scl_train_end()
                              : scl_checkpoint_save(SCL_NO_RECORDS);
      scl_integrity_end(SCL_PARTS_STATE);
      give(&status, sizeof status);
      break;
  }
}

int main(void) {
  char order;
  memset(flash, (int)SCL_FLASH_ERASED, sizeof flash);
  (void)sparcl_start(&scl_app_port);
  while (fread(&order, 1, 1, stdin) == 1) {
    obey(order);
    fflush(stdout);
  }
  return 0;
}
