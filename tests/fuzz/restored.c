/* SPDX-License-Identifier: Apache-2.0 */
#include "restored.h"

#include <string.h>

#include "board.h"
#include "scl_learner.h"
#include "scl_net.h"
#include "scl_state.h"
#include "scl_store.h"

#define SCALARS (52u + SCL_N_CLASSES)
#define FIRST_REGION 16u
#define RESTORED_AT 77u /* in the reply to hello */

static uint32_t get(const uint8_t *p, uint32_t size) {
  uint32_t v = 0;
  for (uint32_t k = size; k-- > 0;) {
    v = v << 8 | p[k];
  }
  return v;
}

fuzz_header_t fuzz_header(uint32_t sector) {
  static const uint8_t hash[8] = SCL_MODEL_HASH;
  const uint8_t *raw = fuzz_flash() + sector * SCL_FLASH_SECTOR;
  return (fuzz_header_t){.valid = get(raw, 4) == 0x4A4C4353u && get(raw + 44, 4) == fuzz_crc(raw, 44),
                         .kind = raw[5],
                         .sequence = get(raw + 8, 4),
                         .snapshot = get(raw + 16, 4),
                         .part = (uint16_t)get(raw + 20, 2),
                         .parts = (uint16_t)get(raw + 22, 2),
                         .size = get(raw + 24, 4),
                         .crc = get(raw + 28, 4),
                         .ours = memcmp(raw + 32, hash, sizeof hash) == 0};
}

/* ---- snapshots ------------------------------------------------------------------ */

/* The engine's state in the order of a snapshot. */
static struct {
  uint8_t bytes[SCL_FLASH_SIZE];
  uint32_t size;
} state;

static void add(const void *data, uint32_t size) {
  FUZZ_CHECK(size <= sizeof state.bytes - state.size, "a state larger than the flash");
  memcpy(state.bytes + state.size, data, size);
  state.size += size;
}

static void add_region(uint32_t region, uint32_t size) {
  FUZZ_CHECK(size <= sizeof state.bytes - state.size, "a state larger than the flash");
  FUZZ_CHECK(scl_state_dump(region, 0, state.bytes + state.size, size) == SCL_OK, "a region that cannot be dumped");
  state.size += size;
}

static void serialise(void) {
  const uint32_t n = scl_learner.n, filled = scl_learner.filled;
  state.size = 0;
  add_region(0, SCALARS);
  add_region(1, 2u * n);
  add_region(2, n);
  add(scl_table.address, 2u * n);
  add(scl_slots.sample, 2u * filled);
  add(scl_slots.logits, 2u * filled);
  for (uint32_t r = 0; r < SCL_N_REGIONS; r++) {
    add_region(FIRST_REGION + r, scl_region_size(&scl_regions[r]));
  }
  for (const scl_region_t *r = scl_transient_regions; r->data != NULL; r++) {
    add(r->data, r->size);
  }
}

/* A sector that holds this part of the state, with right checksums. */
static int part_is_there(uint32_t part, uint32_t parts) {
  const uint32_t from = part * SCL_SECTOR_ROOM;
  const uint32_t size = state.size - from < SCL_SECTOR_ROOM ? state.size - from : SCL_SECTOR_ROOM;
  for (uint32_t s = 0; s < SCL_SECTORS; s++) {
    const fuzz_header_t h = fuzz_header(s);
    const uint8_t *payload = fuzz_flash() + s * SCL_FLASH_SECTOR + SCL_SECTOR_HEADER;
    if (h.valid && h.ours && h.kind == FUZZ_STATE && h.snapshot == scl_journal.snapshot && h.part == part &&
        (h.parts == parts || part + 1u < parts) && h.size == size && fuzz_crc(payload, size) == h.crc &&
        memcmp(payload, state.bytes + from, size) == 0) {
      return 1;
    }
  }
  return 0;
}

void fuzz_check_restored(void) {
  const fuzz_reply_t *hello = fuzz_request(1, 0, 1, NULL, 0);
  FUZZ_CHECK(hello->status == 0 && hello->size > RESTORED_AT, "no hello");
  if (!hello->payload[RESTORED_AT]) {
    return;
  }
  serialise();
  const uint32_t parts = (state.size + SCL_SECTOR_ROOM - 1u) / SCL_SECTOR_ROOM;
  for (uint32_t part = 0; part < parts; part++) {
    FUZZ_CHECK(part_is_there(part, parts), "what was restored is in no snapshot with right checksums");
  }
}

/* ---- records ---------------------------------------------------------------------- */

/* Linked with --wrap: what the engine takes for a record is one. */
scl_status_t __real_scl_store_get_sample(scl_address_t address, scl_sample_t *sample);
scl_status_t __wrap_scl_store_get_sample(scl_address_t address, scl_sample_t *sample);
scl_status_t __real_scl_store_get_logits(scl_address_t address, int16_t *logits);
scl_status_t __wrap_scl_store_get_logits(scl_address_t address, int16_t *logits);

static const uint8_t *record(scl_address_t address, uint32_t size) {
  const uint32_t at = (uint32_t)address * SCL_GRANULE;
  FUZZ_CHECK(at <= SCL_FLASH_SIZE - size, "a record outside the partition");
  const uint8_t *raw = fuzz_flash() + at;
  FUZZ_CHECK(get(raw, 4) == fuzz_crc(raw + 4, size - 4u), "a record with a wrong checksum was used");
  return raw;
}

scl_status_t __wrap_scl_store_get_sample(scl_address_t address, scl_sample_t *sample) {
  const scl_status_t status = __real_scl_store_get_sample(address, sample);
  if (status == SCL_OK) {
    const uint8_t *raw = record(address, SCL_SAMPLE_BYTES);
    FUZZ_CHECK(memcmp(sample->x, raw + SCL_RECORD_HEAD, SCL_N_STORED) == 0, "a sample other than its record");
    FUZZ_CHECK(sample->label < SCL_N_CLASSES, "a sample of no class");
  }
  return status;
}

scl_status_t __wrap_scl_store_get_logits(scl_address_t address, int16_t *logits) {
  const scl_status_t status = __real_scl_store_get_logits(address, logits);
  if (status == SCL_OK) {
    const uint8_t *raw = record(address, SCL_LOGITS_BYTES);
    FUZZ_CHECK(memcmp(logits, raw + SCL_RECORD_HEAD, 2u * SCL_N_CLASSES) == 0, "logits other than their record");
  }
  return status;
}
