/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_records.h"

#include <string.h>

#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_learner.h"

/* The partition was planned by the same numbers (generator/journal.py). */
_Static_assert(SCL_SAMPLE_ROOM == SCL_ROUND_UP(SCL_SAMPLE_BYTES, SCL_GRANULE), "record of a sample");
_Static_assert(SCL_LOGITS_ROOM == SCL_ROUND_UP(SCL_LOGITS_BYTES, SCL_GRANULE), "record of logits");
_Static_assert(SCL_SAMPLE_BYTES <= SCL_SECTOR_ROOM && SCL_LOGITS_BYTES <= SCL_SECTOR_ROOM,
               "records do not cross sectors");

scl_table_t scl_table;
scl_slots_t scl_slots;

#if SCL_FLASH_MAPPED
#define SAMPLE_MEMORY NULL
#else
static _Alignas(4) uint8_t sample_bytes[SCL_SAMPLE_BYTES];
#define SAMPLE_MEMORY sample_bytes
#endif

uint32_t scl_record_resident(void) {
  const uint32_t stored = scl_learner.phase == SCL_PHASE_FILLING ? scl_learner.received : scl_learner.n;
  return scl_learner.mode == SCL_MODE_RESIDENT ? stored : 0u;
}

void scl_record_lists(scl_live_t lists[SCL_LIVE_LISTS]) {
  lists[0] = (scl_live_t){scl_table.address, scl_record_resident(), SCL_SAMPLE_BYTES};
  lists[1] = (scl_live_t){scl_slots.sample, scl_learner.filled, SCL_SAMPLE_BYTES};
  lists[2] = (scl_live_t){scl_slots.logits, SCL_METHOD == SCL_METHOD_DERPP ? scl_learner.filled : 0u, SCL_LOGITS_BYTES};
}

uint32_t scl_record_live(void) {
  scl_live_t lists[SCL_LIVE_LISTS];
  uint32_t live = 0;
  scl_record_lists(lists);
  for (uint32_t l = 0; l < SCL_LIVE_LISTS; l++) {
    live += lists[l].count;
  }
  return live;
}

/* Whether the ring holds this sector. */
static int in_ring(uint32_t sector) {
  return sector < SCL_SECTORS && (sector + SCL_SECTORS - scl_journal.tail) % SCL_SECTORS < scl_journal.used;
}

int scl_record_holds(void) {
  scl_live_t lists[SCL_LIVE_LISTS];
  scl_record_lists(lists);
  for (uint32_t l = 0; l < SCL_LIVE_LISTS; l++) {
    for (uint32_t k = 0; k < lists[l].count; k++) {
      const uint32_t at = (uint32_t)lists[l].list[k] * SCL_GRANULE;
      const uint32_t sector = at / SCL_FLASH_SECTOR;
      if (!in_ring(sector) || at % SCL_FLASH_SECTOR < SCL_SECTOR_HEADER ||
          at % SCL_FLASH_SECTOR + lists[l].record_bytes > SCL_FLASH_SECTOR) {
        return 0;
      }
    }
  }
  return 1;
}

static void record_head(uint8_t head[SCL_RECORD_HEAD], const scl_sample_t *sample, scl_tag_kind_t kind,
                        const void *body, uint32_t size) {
  scl_put_u16(head + 4, sample->id);
  head[6] = sample->task;
  head[7] = kind == SCL_TAG_SAMPLE ? sample->label : 0u;
  scl_put_u32(head, scl_crc32(scl_crc32(0, head + 4, 4), body, size));
#if SCL_KEYED
  scl_tag_record(kind, head, body, size, head + 8);
#endif
}

scl_status_t scl_record_put_sample(const scl_sample_t *sample, scl_address_t *address) {
  uint8_t head[SCL_RECORD_HEAD];
  record_head(head, sample, SCL_TAG_SAMPLE, sample->x, SCL_N_STORED);
  return scl_journal_append(head, sizeof head, sample->x, SCL_N_STORED, address);
}

scl_status_t scl_record_put_logits(const scl_sample_t *sample, const int16_t *logits, scl_address_t *address) {
  uint8_t head[SCL_RECORD_HEAD];
  record_head(head, sample, SCL_TAG_LOGITS, logits, 2u * SCL_N_CLASSES);
  return scl_journal_append(head, sizeof head, logits, 2u * SCL_N_CLASSES, address);
}

/* With a key the tag, which covers the checksum, else the checksum. */
static int is_whole(const uint8_t *raw, scl_tag_kind_t kind, uint32_t size) {
#if SCL_KEYED
  return scl_tag_is_of_record(kind, raw, raw + SCL_RECORD_HEAD, size - SCL_RECORD_HEAD, raw + 8);
#else
  (void)kind;
  return scl_crc32(0, raw + 4, size - 4u) == scl_get_u32(raw);
#endif
}

/* A record that is whole: in place where flash is memory-mapped, else read into `memory`.  NULL: damaged. */
static const uint8_t *read_record(scl_address_t address, scl_tag_kind_t kind, uint8_t *memory, uint32_t size) {
#if SCL_FLASH_MAPPED
  (void)memory;
  const uint8_t *raw = scl_journal_map(address);
#else
  const uint8_t *raw = memory;
  if (scl_journal_read(address, memory, size) != SCL_OK) {
    return NULL;
  }
#endif
  return is_whole(raw, kind, size) ? raw : NULL;
}

static int read_sample(scl_address_t address, scl_sample_t *sample) {
  const uint8_t *raw = read_record(address, SCL_TAG_SAMPLE, SAMPLE_MEMORY, SCL_SAMPLE_BYTES);
  if (raw == NULL) {
    return 0;
  }
  sample->crc = scl_get_u32(raw);
  sample->id = scl_get_u16(raw + 4);
  sample->task = raw[6];
  sample->label = raw[7];
  sample->x = (const scl_stored_t *)(raw + SCL_RECORD_HEAD);
  return sample->label < SCL_N_CLASSES; /* a forged record can have a valid checksum */
}

static int read_logits(scl_address_t address, const scl_sample_t *sample, int16_t *logits) {
  _Alignas(4) uint8_t memory[SCL_LOGITS_BYTES];
  const uint8_t *raw = read_record(address, SCL_TAG_LOGITS, memory, SCL_LOGITS_BYTES);
  if (raw == NULL || scl_get_u16(raw + 4) != sample->id || raw[6] != sample->task) {
    return 0;
  }
  memcpy(logits, raw + SCL_RECORD_HEAD, 2u * SCL_N_CLASSES);
  return 1;
}

static scl_status_t lost_unless(int found) {
  if (!found) {
    scl_journal.counts.lost_records++;
  }
  return found ? SCL_OK : SCL_ERR_STORE;
}

scl_status_t scl_record_get_sample(uint32_t place, scl_sample_t *sample) {
  const scl_learner_t *l = &scl_learner;
  return lost_unless(read_sample(scl_table.address[place], sample) && sample->id == scl_table.id[place] &&
                     sample->task == l->task && l->class_task[sample->label] == l->task);
}

/* A slot does not say whose sample it holds; it is one of a task that there was, and its logits are its own. */
scl_status_t scl_record_get_replay(uint32_t slot, scl_sample_t *sample, int16_t *logits) {
  const scl_learner_t *l = &scl_learner;
  return lost_unless(read_sample(scl_slots.sample[slot], sample) && sample->task <= l->task &&
                     l->class_task[sample->label] != SCL_NO_TASK &&
                     (logits == NULL || read_logits(scl_slots.logits[slot], sample, logits)));
}

scl_status_t scl_record_head(scl_address_t address, uint8_t head[SCL_RECORD_HEAD]) {
  return scl_journal_read(address, head, SCL_RECORD_HEAD);
}
