/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_checkpoint.h"

#include "scl_bytes.h"
#include "scl_host.h"
#include "scl_learner.h"
#include "scl_records.h"
#include "scl_state.h"

#define EXTRA_ROUNDS 2u /* where sectors fail */
#define KEPT_LOGITS (SCL_METHOD == SCL_METHOD_DERPP ? SCL_CAPACITY : 0u) /* only DER++ keeps any */
#define LIVE_SECTORS(task) SCL_SECTORS_FOR((task) + SCL_CAPACITY, KEPT_LOGITS)
#define SNAPSHOT_SECTORS SCL_CEIL(SCL_SNAPSHOT_BYTES, SCL_SECTOR_ROOM)

/*
 * Sectors kept free for checkpoints, so that in SCL_ROUNDS of them all live records can be moved should they lie packed
 * at the tail: each moves what fits in beside its snapshot, whose sectors the next one lacks.  docs/spec/flash-format.md, "Room".
 */
#define FREE_SECTORS(live) \
  (SCL_CEIL((live) + SCL_ROUNDS + SNAPSHOT_SECTORS * SCL_ROUNDS * (SCL_ROUNDS + 1u) / 2u, SCL_ROUNDS) + SCL_SPARE)

/* The partition was planned by the same numbers (generator/journal.py). */
_Static_assert(SCL_SECTOR_ROOM == SCL_PLAN_SECTOR_ROOM, "header of a sector");
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

static int in_sector(scl_address_t address, uint32_t sector) {
  return (uint32_t)address * SCL_GRANULE / SCL_FLASH_SECTOR == sector;
}

static int has_live(uint32_t sector) {
  scl_live_t lists[SCL_LIVE_LISTS];
  scl_record_lists(lists);
  for (uint32_t l = 0; l < SCL_LIVE_LISTS; l++) {
    for (uint32_t k = 0; k < lists[l].count; k++) {
      if (in_sector(lists[l].list[k], sector)) {
        return 1;
      }
    }
  }
  return 0;
}

static void readdress(const scl_live_t lists[SCL_LIVE_LISTS], scl_address_t from, scl_address_t to) {
  for (uint32_t l = 0; l < SCL_LIVE_LISTS; l++) {
    for (uint32_t k = 0; k < lists[l].count; k++) {
      if (lists[l].list[k] == from) {
        lists[l].list[k] = to;
      }
    }
  }
}

/* Copies the live records of a sector to the newest one. */
static scl_status_t evacuate(uint32_t sector) {
  scl_live_t lists[SCL_LIVE_LISTS];
  scl_record_lists(lists);
  for (uint32_t l = 0; l < SCL_LIVE_LISTS; l++) {
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

/* Makes one checkpoint; moves the tail as far as `need` asks for and the present room allows. */
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

scl_status_t scl_checkpoint_save(scl_records_t need) {
  scl_status_t status = scl_host_check(SPARCL_BEFORE_SAVE); /* a flipped bit would be a good state ever after */
  if (status != SCL_OK) {
    return status;
  }
  /* A checkpoint frees its room only when it is complete; the next one can use it to go further. */
  for (uint32_t round = 0; round < SCL_ROUNDS + EXTRA_ROUNDS; round++) {
    const uint32_t before = scl_journal.tail_sequence;
    status = checkpoint_once(need);
    if (status != SCL_OK) {
      return round > 0 ? SCL_OK : status; /* the state is saved, but no more room was made */
    }
    if (enough(scl_journal.used, need) || scl_journal.tail_sequence == before) {
      break;
    }
  }
  return status;
}

scl_status_t scl_checkpoint_reserve(scl_records_t need) {
  if (enough(scl_journal.used, need)) {
    return SCL_OK;
  }
  const scl_status_t status = scl_checkpoint_save(need);
  if (status != SCL_OK) {
    return status;
  }
  return enough(scl_journal.used, need) ? SCL_OK : SCL_ERR_STORE_FULL;
}

/* A state whose end differs from its snapshot's was never saved: its parts or records come from different states. */
static scl_status_t load(void) {
  scl_state_end_t saved, loaded;
  scl_status_t status = scl_state_load(&saved);
  if (status == SCL_OK) {
    status = scl_state_end(scl_journal.snapshot, &loaded);
  }
  return status != SCL_OK || scl_equal(saved.bytes, loaded.bytes, sizeof saved.bytes) ? status : SCL_ERR_STORE;
}

int scl_checkpoint_recover(void) {
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
