/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring of flash sectors, docs/spec/flash-format.md: takes sectors in turn,
 * appends records, writes and finds snapshots.  It knows nothing of what a
 * record or a snapshot means; scl_records.c and scl_state.c do.
 *
 * RAM: one scl_journal_t and one staging buffer.  Time: append costs the bytes
 * written plus, now and then, one erase; mount reads one header per sector.
 * Power may fail inside any call: the newest complete snapshot and all it
 * refers to stay intact.
 */
#ifndef SCL_JOURNAL_H
#define SCL_JOURNAL_H

#include "scl_board.h"
#include "scl_types.h"

#define SCL_SECTORS (SCL_FLASH_SIZE / SCL_FLASH_SECTOR)
#define SCL_ROUND_UP(size, unit) (((size) + (unit) - 1u) / (unit) * (unit))
#define SCL_SECTOR_HEADER SCL_ROUND_UP(SCL_ROUND_UP(48u, SCL_FLASH_PROGRAM_UNIT), SCL_GRANULE)
#define SCL_SECTOR_ROOM (SCL_FLASH_SECTOR - SCL_SECTOR_HEADER)

typedef struct {
  uint32_t programs, erases, relocated, checkpoints;
  uint64_t bytes_written;
  uint16_t retired;
  uint16_t lost_records; /* found incomplete or not the ones meant when they were needed */
  uint16_t lost_saves;   /* newer than the restored one and once complete, but unusable now */
} scl_journal_counts_t;

typedef struct {
  uint32_t sequence;      /* of the newest sector */
  uint32_t tail_sequence; /* of the oldest sector still needed */
  uint32_t snapshot;      /* newest complete one, 0: none */
  uint32_t next_snapshot; /* never used before */
  uint32_t offset;        /* next free byte in the head sector */
  uint16_t head, tail;    /* physical sectors */
  uint16_t used;          /* sectors from tail to head, both included; 0: empty ring */
  uint16_t worn, worn_before; /* sectors that failed since sector 0 was taken, and in the lap before */
  uint8_t lapped;         /* sector 0 was taken since the board started */
  scl_journal_counts_t counts;
} scl_journal_t;

extern scl_journal_t scl_journal;

#define SCL_ANY_SNAPSHOT 0xFFFFFFFFu

/* Finds the newest complete snapshot with a number below `limit`; scl_journal.snapshot is 0 if there is none. */
scl_status_t scl_journal_mount(uint32_t limit);

/*
 * After mount: appends behind the newest sector, if that leaves `keep` and a third of all sectors free, rather than
 * behind the snapshot.  What was written after it is forgotten, but its sectors have been erased once more: wear stays
 * even though power often fails.
 */
void scl_journal_pass_over(uint32_t keep);

/* Forgets everything by writing a snapshot without content.  Mount afterwards, also when it fails. */
scl_status_t scl_journal_format(void);

static inline uint32_t scl_journal_free(void) { return SCL_SECTORS - scl_journal.used; }

/* Sectors that fail in one lap of the ring, as far as is known; a third of all at most, else there is no room to work. */
static inline uint32_t scl_journal_worn(void) {
  const uint32_t worn = scl_journal.worn > scl_journal.worn_before ? scl_journal.worn : scl_journal.worn_before;
  return worn < SCL_SECTORS / 3u ? worn : SCL_SECTORS / 3u;
}

/*
 * How many of them may be among the free sectors, by their headers: where many failed in a row and were just passed,
 * they are in use, and holding back room for them again would leave none to work.
 */
uint32_t scl_journal_worn_ahead(void);

/* Appends a record made of two parts, takes a sector if need be, and reads it back. */
scl_status_t scl_journal_append(const void *head, uint32_t head_size, const void *body, uint32_t body_size,
                                scl_address_t *address);

/* Reads the first `size` bytes of a record. */
scl_status_t scl_journal_read(scl_address_t address, void *data, uint32_t size);

#if SCL_FLASH_MAPPED
/* Address at which a record can be read in place. */
static inline const uint8_t *scl_journal_map(scl_address_t address) {
  return (const uint8_t *)(uintptr_t)(SCL_FLASH_MAPPED_BASE + (uint32_t)address * SCL_GRANULE);
}
#endif

/* Copies a record of `size` bytes to the newest sector. */
scl_status_t scl_journal_copy(scl_address_t from, uint32_t size, scl_address_t *to);

/* Sector and sequence number that follow `tail` in age, for a checkpoint that walks over the oldest sectors. */
typedef struct {
  uint16_t sector;
  uint32_t sequence;
} scl_tail_t;

scl_tail_t scl_journal_tail(void);
scl_tail_t scl_journal_after(scl_tail_t tail);

/*
 * A snapshot: begin, any number of writes that add up to `size`, end.  When end returns SCL_OK it counts.  tail: the
 * oldest sector still needed; NULL if none is but the snapshot's own.
 *
 * When one of them returns SCL_ERR_STORE, a sector did not read back: after again, write the same from the beginning,
 * then end.  What is already in sound sectors is skipped.  When one returns another error, or again does, abandon
 * gives the sectors back that the snapshot took; the one before it still counts.
 */
scl_status_t scl_journal_snapshot_begin(uint32_t size, const scl_tail_t *tail);
scl_status_t scl_journal_snapshot_write(const void *data, uint32_t size);
scl_status_t scl_journal_snapshot_end(void);
scl_status_t scl_journal_snapshot_again(void);
void scl_journal_snapshot_abandon(void);

static inline uint32_t scl_journal_snapshot_sectors(uint32_t size) {
  return (size + SCL_SECTOR_ROOM - 1u) / SCL_SECTOR_ROOM;
}

/* Starts reading the newest snapshot from its beginning. */
scl_status_t scl_journal_restore_begin(void);
scl_status_t scl_journal_restore_read(void *data, uint32_t size);

/* Whether the whole snapshot was read. */
scl_status_t scl_journal_restore_end(void);

/* Smallest and largest erase count of all sectors ever taken. */
void scl_journal_wear(uint32_t *low, uint32_t *high);

#endif
