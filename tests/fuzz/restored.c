/* SPDX-License-Identifier: Apache-2.0 */
#include "restored.h"

#include <string.h>

#include "board.h"
#include "scl_learner.h"
#include "scl_net.h"
#include "scl_state.h"
#include "scl_records.h"

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

int fuzz_any_digest;

/* What the last snapshot that was loaded ends with. */
static struct {
  scl_state_end_t end;
  int fresh;
} loaded;

/* Linked with --wrap. */
scl_status_t __real_scl_state_load(scl_state_end_t *end);
scl_status_t __wrap_scl_state_load(scl_state_end_t *end);
scl_status_t __real_scl_state_end(uint32_t number, scl_state_end_t *end);
scl_status_t __wrap_scl_state_end(uint32_t number, scl_state_end_t *end);

scl_status_t __wrap_scl_state_load(scl_state_end_t *end) {
  const scl_status_t status = __real_scl_state_load(end);
  loaded.end = *end;
  loaded.fresh = status == SCL_OK;
  return status;
}

scl_status_t __wrap_scl_state_end(uint32_t number, scl_state_end_t *end) {
  const scl_status_t status = __real_scl_state_end(number, end);
  if (loaded.fresh && fuzz_any_digest) {
    *end = loaded.end;
  }
  loaded.fresh = 0;
  return status;
}

/* Parts of the engine's state, one after the other. */
typedef struct {
  uint8_t bytes[SCL_FLASH_SIZE];
  uint32_t size;
} bytes_t;

static bytes_t state;  /* in the order of a snapshot */
static bytes_t summed; /* in the order of its digest */

static void add(bytes_t *to, const void *data, uint32_t size) {
  FUZZ_CHECK(size <= sizeof to->bytes - to->size, "a state larger than the flash");
  memcpy(to->bytes + to->size, data, size);
  to->size += size;
}

static void add_region(bytes_t *to, uint32_t region, uint32_t size) {
  FUZZ_CHECK(size <= sizeof to->bytes - to->size, "a state larger than the flash");
  FUZZ_CHECK(scl_state_dump(region, 0, to->bytes + to->size, size) == SCL_OK, "a region that cannot be dumped");
  to->size += size;
}

static void add_tables(bytes_t *to) {
  const uint32_t n = scl_learner.n, filled = scl_learner.filled;
  add_region(to, 1, 2u * n);
  add_region(to, 2, n);
  add(to, scl_table.address, 2u * n);
  add(to, scl_slots.sample, 2u * filled);
  add(to, scl_slots.logits, 2u * filled);
}

static void add_network(bytes_t *to) {
  for (uint32_t r = 0; r < SCL_N_REGIONS; r++) {
    add_region(to, FIRST_REGION + r, scl_region_size(&scl_regions[r]));
  }
}

static void add_transient(bytes_t *to) {
  for (const scl_region_t *r = scl_transient_regions; r->data != NULL; r++) {
    add(to, r->data, r->size);
  }
}

/* The checksum that a record begins with. */
static void add_checksum(bytes_t *to, scl_address_t address) {
  const uint32_t at = (uint32_t)address * SCL_GRANULE;
  FUZZ_CHECK(at <= SCL_FLASH_SIZE - 4u, "a record outside the partition");
  add(to, fuzz_flash() + at, 4);
}

static uint32_t digest_of_all(void) {
  static const uint8_t none[4] = {0};
  const scl_learner_t *l = &scl_learner;
  const uint32_t stored = l->phase == SCL_PHASE_FILLING ? l->received : l->n;
  summed.size = 0;
  add_region(&summed, 0, SCALARS);
  add_network(&summed);
  add_region(&summed, 1, 2u * l->n);
  add_region(&summed, 2, l->n);
  for (uint32_t s = 0; s < l->filled; s++) {
    add_checksum(&summed, scl_slots.sample[s]);
    if (SCL_METHOD == SCL_METHOD_DERPP) {
      add_checksum(&summed, scl_slots.logits[s]);
    } else {
      add(&summed, none, sizeof none);
    }
  }
  add(&summed, l->class_task, SCL_N_CLASSES);
  add_tables(&summed);
  add_transient(&summed);
  for (uint32_t k = 0; k < stored && l->mode == SCL_MODE_RESIDENT; k++) {
    add_checksum(&summed, scl_table.address[k]);
  }
  return fuzz_crc(summed.bytes, summed.size);
}

static void serialise(void) {
  state.size = 0;
  add_region(&state, 0, SCALARS);
  add_tables(&state);
  add_network(&state);
  add_transient(&state);
  FUZZ_CHECK(fuzz_any_digest || get(loaded.end.bytes, 4) == digest_of_all(), "restored with another digest");
  add(&state, &loaded.end, sizeof loaded.end);
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
scl_status_t __real_scl_record_get_sample(uint32_t place, scl_sample_t *sample);
scl_status_t __wrap_scl_record_get_sample(uint32_t place, scl_sample_t *sample);
scl_status_t __real_scl_record_get_replay(uint32_t slot, scl_sample_t *sample, int16_t *logits);
scl_status_t __wrap_scl_record_get_replay(uint32_t slot, scl_sample_t *sample, int16_t *logits);

static const uint8_t *record(scl_address_t address, uint32_t size) {
  const uint32_t at = (uint32_t)address * SCL_GRANULE;
  FUZZ_CHECK(at <= SCL_FLASH_SIZE - size, "a record outside the partition");
  const uint8_t *raw = fuzz_flash() + at;
  FUZZ_CHECK(get(raw, 4) == fuzz_crc(raw + 4, size - 4u), "a record with a wrong checksum was used");
  return raw;
}

static void check_sample(scl_address_t address, const scl_sample_t *sample) {
  const uint8_t *raw = record(address, SCL_SAMPLE_BYTES);
  FUZZ_CHECK(memcmp(sample->x, raw + SCL_RECORD_HEAD, SCL_N_STORED) == 0, "a sample other than its record");
  FUZZ_CHECK(sample->label < SCL_N_CLASSES, "a sample of no class");
}

scl_status_t __wrap_scl_record_get_sample(uint32_t place, scl_sample_t *sample) {
  const scl_status_t status = __real_scl_record_get_sample(place, sample);
  if (status == SCL_OK) {
    check_sample(scl_table.address[place], sample);
    FUZZ_CHECK(sample->id == scl_table.id[place] && sample->task == scl_learner.task, "another sample than is meant");
  }
  return status;
}

scl_status_t __wrap_scl_record_get_replay(uint32_t slot, scl_sample_t *sample, int16_t *logits) {
  const scl_status_t status = __real_scl_record_get_replay(slot, sample, logits);
  if (status == SCL_OK) {
    check_sample(scl_slots.sample[slot], sample);
  }
  if (status == SCL_OK && logits != NULL) {
    const uint8_t *raw = record(scl_slots.logits[slot], SCL_LOGITS_BYTES);
    FUZZ_CHECK(memcmp(logits, raw + SCL_RECORD_HEAD, 2u * SCL_N_CLASSES) == 0, "logits other than their record");
    FUZZ_CHECK(get(raw + 4, 2) == sample->id && raw[6] == sample->task, "logits of another sample");
  }
  return status;
}
