/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Samples and logits in the journal: what their records hold, and which of
 * them are live.  docs/spec/flash-format.md.
 */
#ifndef SCL_RECORDS_H
#define SCL_RECORDS_H

#include "scl_journal.h"
#include "scl_tag.h"

#define SCL_RECORD_HEAD (8u + SCL_TAG_BYTES)
#define SCL_SAMPLE_BYTES (SCL_RECORD_HEAD + SCL_N_STORED)
#define SCL_LOGITS_BYTES (SCL_RECORD_HEAD + 2u * SCL_N_CLASSES)

/*
 * Sectors that records appended one after another take, in any order.  They do not cross sectors: of one kind a sector
 * holds a whole number, of both kinds SCL_MIXED_ROOM bytes on average (generator/journal.py).
 */
#define SCL_CEIL(value, by) (((value) + (by) - 1u) / (by))
#define SCL_SECTORS_FOR(samples, logits)                                     \
  ((logits) == 0    ? SCL_CEIL((samples), SCL_SECTOR_ROOM / SCL_SAMPLE_ROOM) \
   : (samples) == 0 ? SCL_CEIL((logits), SCL_SECTOR_ROOM / SCL_LOGITS_ROOM)  \
                    : SCL_CEIL((samples) * SCL_SAMPLE_ROOM + (logits) * SCL_LOGITS_ROOM, SCL_MIXED_ROOM))

/* Samples still in the task, in the order of the epoch. */
typedef struct {
  scl_address_t address[SCL_TABLE];
  uint16_t id[SCL_TABLE];
  uint8_t score[SCL_TABLE];
} scl_table_t;

/* The replay buffer: where sample and logits of each slot lie. */
typedef struct {
  scl_address_t sample[SCL_CAPACITY + 1];
  scl_address_t logits[SCL_CAPACITY + 1];
} scl_slots_t;

extern scl_table_t scl_table;
extern scl_slots_t scl_slots;

typedef struct {
  const scl_stored_t *x; /* in place where flash is memory-mapped, else valid until the next get_sample */
  uint32_t crc;
  uint16_t id;
  uint8_t task, label;
} scl_sample_t;

/* Records of one kind that are needed: where they lie, how many, and their bytes. */
typedef struct {
  scl_address_t *list;
  uint32_t count, record_bytes;
} scl_live_t;

#define SCL_LIVE_LISTS 3u /* samples of the task, samples and logits of the replay buffer */
void scl_record_lists(scl_live_t lists[SCL_LIVE_LISTS]);

scl_status_t scl_record_put_sample(const scl_sample_t *sample, scl_address_t *address);
scl_status_t scl_record_put_logits(const scl_sample_t *sample, const int16_t *logits, scl_address_t *address);

/*
 * The sample at a place of the task's table; that of a replay slot, with its logits unless NULL.  A record that is
 * damaged, or not the one that is meant, is lost: SCL_ERR_STORE, and counted.
 */
scl_status_t scl_record_get_sample(uint32_t place, scl_sample_t *sample);
scl_status_t scl_record_get_replay(uint32_t slot, scl_sample_t *sample, int16_t *logits);

/* What a record begins with: checksum, id, task, label, tag. */
scl_status_t scl_record_head(scl_address_t address, uint8_t head[SCL_RECORD_HEAD]);

uint32_t scl_record_live(void);

/* Number of the task's samples that lie in the journal: the first places of the table. */
uint32_t scl_record_resident(void);

/* Whether each record that the learner's tables name lies in a sector of the ring, as a whole. */
int scl_record_holds(void);

#endif
