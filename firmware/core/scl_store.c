/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_store.h"

#include <string.h>

#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_integrity.h"
#include "scl_learner.h"
#include "scl_state.h"

_Static_assert(SCL_SAMPLE_BYTES <= SCL_SECTOR_ROOM && SCL_LOGITS_BYTES <= SCL_SECTOR_ROOM, "records do not cross sectors");

scl_table_t scl_table;
scl_slots_t scl_slots;

#if SCL_FLASH_MAPPED
#define SAMPLE_MEMORY NULL
#else
static _Alignas(4) uint8_t sample_bytes[SCL_SAMPLE_BYTES];
#define SAMPLE_MEMORY sample_bytes
#endif

#define EXTRA_ROUNDS 2u /* where sectors fail */
#define KEPT_LOGITS (SCL_METHOD == SCL_METHOD_DERPP ? SCL_CAPACITY : 0u) /* only DER++ keeps any */
#define LIVE_SECTORS(task) SCL_SECTORS_FOR((task) + SCL_CAPACITY, KEPT_LOGITS)
#define SNAPSHOT_SECTORS SCL_CEIL(SCL_SNAPSHOT_BYTES, SCL_SECTOR_ROOM)

/*
 * Sectors kept free for checkpoints, so that in SCL_ROUNDS of them all live records can be moved should they lie packed
 * at the tail: each moves what fits in beside its snapshot, whose sectors the next one lacks.  docs/flash-format.md, "Room".
 */
#define FREE_SECTORS(live) \
  (SCL_CEIL((live) + SCL_ROUNDS + SNAPSHOT_SECTORS * SCL_ROUNDS * (SCL_ROUNDS + 1u) / 2u, SCL_ROUNDS) + SCL_SPARE)

/* The partition was planned by the same numbers (generator/journal.py). */
_Static_assert(SCL_SECTOR_ROOM == SCL_PLAN_SECTOR_ROOM, "header of a sector");
_Static_assert(SCL_SAMPLE_ROOM == SCL_ROUND_UP(SCL_SAMPLE_BYTES, SCL_GRANULE), "record of a sample");
_Static_assert(SCL_LOGITS_ROOM == SCL_ROUND_UP(SCL_LOGITS_BYTES, SCL_GRANULE), "record of logits");
_Static_assert(LIVE_SECTORS(SCL_PLAN_SAMPLES) == SCL_PLAN_LIVE, "sectors of live records");
_Static_assert(FREE_SECTORS(SCL_PLAN_LIVE) == SCL_PLAN_FREE, "sectors kept free");

static uint32_t spare(uint32_t worn) { return worn > SCL_SPARE ? worn : SCL_SPARE; }

/* Whether `need` can be appended, with the samples of a task that are still to come, and what is kept free is left. */
static int enough(uint32_t used, scl_records_t need) {
  const scl_learner_t *l = &scl_learner;
  uint32_t task = need.samples; /* of the one that begins, else of the present one */
  if (l->phase != SCL_PHASE_IDLE) {
    task = l->mode == SCL_MODE_RESIDENT ? l->n : 0u;
  }
  if (l->phase == SCL_PHASE_FILLING) {
    need.samples += (uint32_t)l->n - l->received;
  }
  const uint32_t left = FREE_SECTORS(LIVE_SECTORS(task)) - SCL_SPARE + spare(scl_journal_worn());
  return used + SCL_SECTORS_FOR(need.samples, need.logits) + left <= SCL_SECTORS;
}

typedef struct {
  scl_address_t *list;
  uint32_t count, record_bytes;
} live_t;

#define LIVE_LISTS 3u

uint32_t scl_store_resident(void) {
  const uint32_t stored = scl_learner.phase == SCL_PHASE_FILLING ? scl_learner.received : scl_learner.n;
  return scl_learner.mode == SCL_MODE_RESIDENT ? stored : 0u;
}

static void live_lists(live_t lists[LIVE_LISTS]) {
  lists[0] = (live_t){scl_table.address, scl_store_resident(), SCL_SAMPLE_BYTES};
  lists[1] = (live_t){scl_slots.sample, scl_learner.filled, SCL_SAMPLE_BYTES};
  lists[2] = (live_t){scl_slots.logits, SCL_METHOD == SCL_METHOD_DERPP ? scl_learner.filled : 0u, SCL_LOGITS_BYTES};
}

uint32_t scl_store_live(void) {
  live_t lists[LIVE_LISTS];
  uint32_t live = 0;
  live_lists(lists);
  for (uint32_t l = 0; l < LIVE_LISTS; l++) {
    live += lists[l].count;
  }
  return live;
}

static int in_sector(scl_address_t address, uint32_t sector) {
  return (uint32_t)address * SCL_GRANULE / SCL_FLASH_SECTOR == sector;
}

/* Whether the ring holds this sector. */
static int in_ring(uint32_t sector) {
  return sector < SCL_SECTORS && (sector + SCL_SECTORS - scl_journal.tail) % SCL_SECTORS < scl_journal.used;
}

int scl_store_holds(void) {
  live_t lists[LIVE_LISTS];
  live_lists(lists);
  for (uint32_t l = 0; l < LIVE_LISTS; l++) {
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

static int has_live(uint32_t sector) {
  live_t lists[LIVE_LISTS];
  live_lists(lists);
  for (uint32_t l = 0; l < LIVE_LISTS; l++) {
    for (uint32_t k = 0; k < lists[l].count; k++) {
      if (in_sector(lists[l].list[k], sector)) {
        return 1;
      }
    }
  }
  return 0;
}

static void readdress(const live_t lists[LIVE_LISTS], scl_address_t from, scl_address_t to) {
  for (uint32_t l = 0; l < LIVE_LISTS; l++) {
    for (uint32_t k = 0; k < lists[l].count; k++) {
      if (lists[l].list[k] == from) {
        lists[l].list[k] = to;
      }
    }
  }
}

/* Copies the live records of a sector to the newest one. */
static scl_status_t evacuate(uint32_t sector) {
  live_t lists[LIVE_LISTS];
  live_lists(lists);
  for (uint32_t l = 0; l < LIVE_LISTS; l++) {
    for (uint32_t k = 0; k < lists[l].count; k++) {
      const scl_address_t from = lists[l].list[k];
      if (!in_sector(from, sector)) {
        continue;
      }
      scl_address_t to;
      const scl_status_t status = scl_journal_copy(from, lists[l].record_bytes, &to);
      if (status != SCL_OK) {
        return status;
      }
      readdress(lists, from, to);
    }
  }
  return SCL_OK;
}

static uint32_t span(scl_tail_t tail) {
  return scl_journal.used == 0 ? 0u : (scl_journal.head + SCL_SECTORS - tail.sector) % SCL_SECTORS + 1u;
}

/* A part that does not read back is written again in the next sector. */
static scl_status_t write_snapshot(uint32_t size, const scl_tail_t *tail) {
  scl_state_end_t end;
  scl_status_t status = scl_state_end(scl_journal.next_snapshot, &end);
  if (status != SCL_OK) {
    return status;
  }
  status = scl_journal_snapshot_begin(size, tail);
  while (status == SCL_OK) {
    status = scl_state_save(&end);
    if (status == SCL_OK) {
      status = scl_journal_snapshot_end();
      if (status == SCL_OK) {
        return SCL_OK;
      }
    }
    if (status == SCL_ERR_STORE) {
      status = scl_journal_snapshot_again();
    }
  }
  scl_journal_snapshot_abandon();
  return status;
}

/* One checkpoint; moves the tail as far as `need` asks for and as the room at hand allows. */
static scl_status_t checkpoint_once(scl_records_t need) {
  const uint32_t size = scl_state_size();
  const uint32_t snapshot = scl_journal_snapshot_sectors(size);
  const uint32_t spared = spare(scl_journal_worn_ahead());
  const uint16_t newest = scl_journal.head;
  scl_tail_t tail = scl_journal_tail();
  while (scl_journal.used > 0 && tail.sector != newest) {
    if (has_live(tail.sector)) {
      if (enough(span(tail) + snapshot + scl_journal_worn(), need) || scl_journal_free() <= snapshot + spared) {
        break;
      }
      const scl_status_t status = evacuate(tail.sector);
      if (status != SCL_OK) {
        return status;
      }
    }
    tail = scl_journal_after(tail);
  }
  int needed = scl_journal.used > 0;
  if (needed && tail.sector == newest && !has_live(newest)) {
    needed = scl_journal.head != newest; /* records were moved to sectors behind it */
    tail = needed ? scl_journal_after(tail) : tail;
  }
  return write_snapshot(size, needed ? &tail : NULL);
}

scl_status_t scl_store_checkpoint(scl_records_t need) {
  scl_status_t status = scl_integrity_check_state(); /* a flipped bit would be a good state ever after */
  if (status != SCL_OK) {
    return status;
  }
  /* A checkpoint frees its room only when it is complete; the next one can use it to go further. */
  for (uint32_t round = 0; round < SCL_ROUNDS + EXTRA_ROUNDS; round++) {
    const uint32_t before = scl_journal.tail_sequence;
    status = checkpoint_once(need);
    if (status != SCL_OK) {
      return round > 0 ? SCL_OK : status; /* saved it is, without more room */
    }
    if (enough(scl_journal.used, need) || scl_journal.tail_sequence == before) {
      break;
    }
  }
  return status;
}

scl_status_t scl_store_reserve(scl_records_t need) {
  if (enough(scl_journal.used, need)) {
    return SCL_OK;
  }
  const scl_status_t status = scl_store_checkpoint(need);
  if (status != SCL_OK) {
    return status;
  }
  return enough(scl_journal.used, need) ? SCL_OK : SCL_ERR_STORE_FULL;
}

/* A state that ends otherwise than its snapshot says was never saved: its parts, or its records, are not one board's. */
static scl_status_t load(void) {
  scl_state_end_t saved, loaded;
  scl_status_t status = scl_state_load(&saved);
  if (status == SCL_OK) {
    status = scl_state_end(scl_journal.snapshot, &loaded);
  }
  return status != SCL_OK || scl_equal(saved.bytes, loaded.bytes, sizeof saved.bytes) ? status : SCL_ERR_STORE;
}

int scl_store_recover(void) {
  scl_journal.counts.lost_saves = 0;
  for (uint32_t limit = SCL_ANY_SNAPSHOT;; limit = scl_journal.snapshot) {
    scl_state_reset();
    if (scl_journal_mount(limit) != SCL_OK || scl_journal.snapshot == 0) {
      return 0;
    }
    if (load() == SCL_OK) {
      scl_journal_pass_over(FREE_SECTORS(SCL_PLAN_LIVE));
      return 1;
    }
    scl_journal.counts.lost_saves++;
  }
}

static void record_head(uint8_t head[SCL_RECORD_HEAD], const scl_sample_t *sample, scl_tag_kind_t kind, const void *body,
                        uint32_t size) {
  scl_put_u16(head + 4, sample->id);
  head[6] = sample->task;
  head[7] = kind == SCL_TAG_SAMPLE ? sample->label : 0u;
  scl_put_u32(head, scl_crc32(scl_crc32(0, head + 4, 4), body, size));
#if SCL_KEYED
  scl_tag_record(kind, head, body, size, head + 8);
#endif
}

scl_status_t scl_store_put_sample(const scl_sample_t *sample, scl_address_t *address) {
  uint8_t head[SCL_RECORD_HEAD];
  record_head(head, sample, SCL_TAG_SAMPLE, sample->x, SCL_N_STORED);
  return scl_journal_append(head, sizeof head, sample->x, SCL_N_STORED, address);
}

scl_status_t scl_store_put_logits(const scl_sample_t *sample, const int16_t *logits, scl_address_t *address) {
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
  return sample->label < SCL_N_CLASSES; /* a checksum can be right by intent */
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

scl_status_t scl_store_get_sample(uint32_t place, scl_sample_t *sample) {
  const scl_learner_t *l = &scl_learner;
  return lost_unless(read_sample(scl_table.address[place], sample) && sample->id == scl_table.id[place] &&
                     sample->task == l->task && l->class_task[sample->label] == l->task);
}

/* A slot does not say whose sample it holds; it is one of a task that there was, and its logits are its own. */
scl_status_t scl_store_get_replay(uint32_t slot, scl_sample_t *sample, int16_t *logits) {
  const scl_learner_t *l = &scl_learner;
  return lost_unless(read_sample(scl_slots.sample[slot], sample) && sample->task <= l->task &&
                     l->class_task[sample->label] != SCL_NO_TASK &&
                     (logits == NULL || read_logits(scl_slots.logits[slot], sample, logits)));
}

scl_status_t scl_store_head(scl_address_t address, uint8_t head[SCL_RECORD_HEAD]) {
  return scl_journal_read(address, head, SCL_RECORD_HEAD);
}
