/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal's mount on any flash: one that boards wrote, changed by the input,
 * with checksums made right again where the input wants that; then requests.
 *
 * Input: which flash, how many changes, the changes, operations (ops.c).
 */
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "restored.h"
#include "scl_learner.h"
#include "scl_records.h"
#include "target.h"

enum { BLANK, FILLING, TRAINING, STREAMED, TRAINED, WORN, FLASHES };

static uint8_t *flashes[FLASHES];

static void keep(uint32_t which) {
  flashes[which] = malloc(SCL_FLASH_SIZE);
  FUZZ_CHECK(flashes[which] != NULL, "no memory");
  memcpy(flashes[which], fuzz_flash(), SCL_FLASH_SIZE);
}

/* The flash of a board that saved in the middle of its second task, after so many requests. */
static void interrupt(uint32_t which, uint8_t mode, uint32_t requests) {
  static const uint8_t save[] = {13};
  fuzz_input_t in = {save, sizeof save};
  memcpy(fuzz_flash(), flashes[TRAINED], SCL_FLASH_SIZE);
  fuzz_start();
  FUZZ_CHECK(!fuzz_learn(8, mode, requests), "no task to interrupt");
  fuzz_operate(&in, 1);
  keep(which);
}

int LLVMFuzzerInitialize(int *count, char ***arguments) {
  (void)count;
  (void)arguments;
  fuzz_remember();
  memset(fuzz_flash(), 0xFF, SCL_FLASH_SIZE);
  keep(BLANK);
  fuzz_start();
  fuzz_learn_all(8, 0);
  keep(TRAINED);
  interrupt(FILLING, 0, 4);
  FUZZ_CHECK(scl_learner.phase == SCL_PHASE_FILLING, "not filling");
  interrupt(TRAINING, 0, 12);
  FUZZ_CHECK(scl_learner.phase == SCL_PHASE_TRAINING && scl_learner.pos > 0, "not in the middle of an epoch");
  interrupt(STREAMED, 1, 4);
  FUZZ_CHECK(scl_learner.mode == SCL_MODE_STREAMED && scl_learner.pos > 0, "not in the middle of an epoch");
  for (uint32_t k = 0; k < 12u; k++) {
    fuzz_learn_all((uint8_t)(k * 5u), k & 1u);
  }
  keep(WORN);
  return 0;
}

/* ---- changes ------------------------------------------------------------------------ */

static void put(uint8_t *p, uint32_t v, uint32_t size) {
  for (uint32_t k = 0; k < size; k++) {
    p[k] = (uint8_t)(v >> (8u * k));
  }
}

/* The input's n-th sector with a piece of a snapshot, the newest first. */
static uint32_t state_sector(uint32_t n) {
  uint32_t best = 0, below = 0xFFFFFFFFu;
  for (uint32_t rank = 0; rank <= n % 8u; rank++) {
    uint32_t found = 0;
    int any = 0;
    for (uint32_t s = 0; s < SCL_SECTORS; s++) {
      const fuzz_header_t h = fuzz_header(s);
      if (h.valid && h.kind == FUZZ_STATE && h.sequence < below && (!any || h.sequence > found)) {
        found = h.sequence;
        best = s;
        any = 1;
      }
    }
    below = any ? found : 0xFFFFFFFFu;
  }
  return best;
}

static void forge_header(uint32_t sector) {
  uint8_t *raw = fuzz_flash() + sector * SCL_FLASH_SECTOR;
  put(raw + 44, fuzz_crc(raw, 44), 4);
}

static void forge_payload(uint32_t sector) {
  uint8_t *raw = fuzz_flash() + sector * SCL_FLASH_SECTOR;
  const uint32_t size = fuzz_header(sector).size;
  if (size <= SCL_SECTOR_ROOM) {
    put(raw + 28, fuzz_crc(raw + SCL_SECTOR_HEADER, size), 4);
    fuzz_any_digest = 1;
  }
}

/* Any bytes anywhere. */
static void scribble(fuzz_input_t *in) {
  uint32_t at = fuzz_u32(in) % SCL_FLASH_SIZE;
  for (uint32_t n = fuzz_u8(in) % 64u + 1u; n > 0; n--) {
    fuzz_flash()[at] = fuzz_u8(in);
    at = (at + 1u) % SCL_FLASH_SIZE;
  }
}

/* One number of a header; the checksum fits. */
static void change_header(fuzz_input_t *in) {
  static const struct {
    uint8_t at, size;
  } fields[] = {{4, 1},  {5, 1},  {8, 4},  {12, 4}, {16, 4}, {20, 2}, {22, 2},
                {24, 4}, {28, 4}, {32, 1}, {40, 4}, {8, 1},  {16, 1}, {24, 2}};
  const uint8_t which = fuzz_u8(in);
  const uint32_t sector = which & 1u ? state_sector(which >> 1) : (uint32_t)(which >> 1) % SCL_SECTORS;
  const uint8_t field = fuzz_u8(in) % (sizeof fields / sizeof fields[0]);
  put(fuzz_flash() + sector * SCL_FLASH_SECTOR + fields[field].at, fuzz_u32(in), fields[field].size);
  forge_header(sector);
}

/* Bytes of a snapshot; the checksums fit. */
static void change_state(fuzz_input_t *in) {
  const uint32_t sector = state_sector(fuzz_u8(in));
  const uint32_t room = fuzz_header(sector).size;
  const uint32_t at = fuzz_u16(in);
  const uint8_t size = fuzz_u8(in) % 16u + 1u;
  for (uint32_t k = 0; k < size; k++) {
    const uint8_t byte = fuzz_u8(in);
    if (room > 0 && room <= SCL_SECTOR_ROOM) {
      fuzz_flash()[sector * SCL_FLASH_SECTOR + SCL_SECTOR_HEADER + (at + k) % room] = byte;
    }
  }
  forge_payload(sector);
  forge_header(sector);
}

/* A record of any numbers at the place the learner's tables name, or anywhere; its checksum fits. */
static void change_record(fuzz_input_t *in) {
  const uint32_t at = fuzz_u16(in) * SCL_GRANULE;
  const uint32_t size = fuzz_u8(in) & 1u ? SCL_LOGITS_BYTES : SCL_SAMPLE_BYTES;
  const uint8_t task = fuzz_u8(in), last = fuzz_u8(in);
  if (at + size <= SCL_FLASH_SIZE) {
    uint8_t *raw = fuzz_flash() + at;
    raw[6] = task;
    raw[7] = last;
    put(raw, fuzz_crc(raw + 4, size - 4u), 4);
    fuzz_any_digest = 1;
  }
}

/* All records of samples, wherever they are, get this label. */
static void change_labels(fuzz_input_t *in) {
  const uint8_t label = fuzz_u8(in);
  for (uint32_t at = 0; at + SCL_SAMPLE_BYTES <= SCL_FLASH_SIZE; at += SCL_GRANULE) {
    uint8_t *raw = fuzz_flash() + at;
    uint8_t checksum[4];
    put(checksum, fuzz_crc(raw + 4, SCL_SAMPLE_BYTES - 4u), 4);
    if (memcmp(checksum, raw, 4) == 0) {
      raw[7] = label;
      put(raw, fuzz_crc(raw + 4, SCL_SAMPLE_BYTES - 4u), 4);
      fuzz_any_digest = 1;
    }
  }
}

static void copy_sector(fuzz_input_t *in) {
  const uint8_t from = fuzz_u8(in), to = fuzz_u8(in);
  const uint32_t source = from & 1u ? state_sector(from >> 1) : (uint32_t)(from >> 1) % SCL_SECTORS;
  memmove(fuzz_flash() + to % SCL_SECTORS * SCL_FLASH_SECTOR, fuzz_flash() + source * SCL_FLASH_SECTOR,
          SCL_FLASH_SECTOR);
}

static void fill_sector(fuzz_input_t *in) {
  const uint8_t which = fuzz_u8(in);
  const uint32_t sector = which & 1u ? state_sector(which >> 1) : (uint32_t)(which >> 1) % SCL_SECTORS;
  memset(fuzz_flash() + sector * SCL_FLASH_SECTOR, fuzz_u8(in), SCL_FLASH_SECTOR);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static void (*const changes[])(fuzz_input_t *in) = {scribble,      change_header, change_state, change_state,
                                                      change_record, change_labels, copy_sector,  fill_sector};
  fuzz_input_t in = {data, (uint32_t)size};
  fuzz_any_digest = 0;
  memcpy(fuzz_flash(), flashes[fuzz_u8(&in) % FLASHES], SCL_FLASH_SIZE);
  for (uint32_t n = fuzz_u8(&in) % 8u; n > 0; n--) {
    changes[fuzz_u8(&in) % (sizeof changes / sizeof changes[0])](&in);
  }
  memset(&fuzz_faults, 0, sizeof fuzz_faults);
  fuzz_start();
  fuzz_operate(&in, 32);
  fuzz_recover();
  return 0;
}
