/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_journal.h"

#include <string.h>

#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_host.h"

#define MAGIC 0x4A4C4353u
#define VERSION 4u
#define KIND_DATA 1u
#define KIND_STATE 2u
#define HEADER_BYTES 48u
/* of sectors and snapshots: no flash lives to see it, but a forged header can have it */
#define LARGEST_NUMBER 0x7FFFFFFFu
#define ATTEMPTS 16u /* times a record that did not read back is written again, each time in another sector */
#define CHUNK_BYTES 64u /* read at a time, to compare or to copy */
#define STAGE_BYTES (SCL_FLASH_PROGRAM_UNIT > CHUNK_BYTES ? SCL_FLASH_PROGRAM_UNIT : CHUNK_BYTES)

_Static_assert(SCL_FLASH_SIZE % SCL_FLASH_SECTOR == 0, "whole sectors");
_Static_assert(SCL_FLASH_SECTOR % SCL_GRANULE == 0 && SCL_GRANULE % SCL_FLASH_PROGRAM_UNIT == 0, "granule");
_Static_assert(SCL_FLASH_SIZE / SCL_GRANULE <= 65535u, "addresses have 16 bits, of which 0xFFFF means none");
_Static_assert(SCL_SECTOR_ROOM >= SCL_GRANULE, "room for records");
_Static_assert(CHUNK_BYTES % SCL_FLASH_PROGRAM_UNIT == 0 || SCL_FLASH_PROGRAM_UNIT % CHUNK_BYTES == 0, "staging");

scl_journal_t scl_journal;

typedef struct {
  uint32_t sequence, erase_count, snapshot, size, crc, tail_sequence;
  uint16_t part, parts, tail_sector;
  uint8_t kind;
  uint8_t ours; /* of this model */
} header_t;

/*
 * Bytes on their way to the flash: programs whole units, reads back what it wrote.  It joins what is small; what is
 * large goes from where it lies.
 */
typedef struct {
  uint32_t address, fill;
  uint8_t bytes[STAGE_BYTES];
} stage_t;

static stage_t stage;

/* The snapshot being written or read. */
static struct {
  uint32_t crc, size, number;
  uint32_t covered; /* bytes of the part that is read, all of which its checksum covers */
  uint32_t skip; /* bytes that are in the parts before, when it is written again from a part on */
  uint32_t erase_count;
  uint16_t part, parts, sector, failed;
  scl_tail_t tail;
  uint8_t own_tail; /* nothing before it is needed */
  scl_journal_t before;
} snap;

static const uint8_t model_hash[8] = SCL_MODEL_HASH;

static scl_status_t flash_read(uint32_t address, void *data, uint32_t size) {
  return scl_host_read(address, data, size) < 0 ? SCL_ERR_STORE : SCL_OK;
}

static scl_status_t verify(uint32_t address, const uint8_t *data, uint32_t size) {
  _Alignas(4) uint8_t back[CHUNK_BYTES]; /* compared by words where `data` is aligned, too */
  for (uint32_t done = 0; done < size; done += sizeof back) {
    const uint32_t n = size - done < sizeof back ? size - done : (uint32_t)sizeof back;
    if (flash_read(address + done, back, n) != SCL_OK || memcmp(back, data + done, n) != 0) {
      return SCL_ERR_STORE;
    }
  }
  return SCL_OK;
}

static scl_status_t program(uint32_t address, const uint8_t *data, uint32_t size) {
  scl_host_feed_watchdog();
  scl_journal.counts.programs++;
  scl_journal.counts.bytes_written += size;
  if (scl_host_program(address, data, size) < 0) {
    return SCL_ERR_STORE;
  }
  return verify(address, data, size);
}

static void stage_begin(uint32_t address) {
  stage.address = address;
  stage.fill = 0;
}

static scl_status_t stage_write(const void *data, uint32_t size) {
  const uint8_t *from = data;
  while (size > 0) {
    if (stage.fill == 0 && size >= STAGE_BYTES) {
      const uint32_t whole = size / SCL_FLASH_PROGRAM_UNIT * SCL_FLASH_PROGRAM_UNIT;
      const scl_status_t status = program(stage.address, from, whole);
      if (status != SCL_OK) {
        return status;
      }
      stage.address += whole;
      from += whole;
      size -= whole;
      continue;
    }
    const uint32_t room = STAGE_BYTES - stage.fill;
    const uint32_t n = size < room ? size : room;
    memcpy(&stage.bytes[stage.fill], from, n);
    stage.fill += n;
    from += n;
    size -= n;
    if (stage.fill == STAGE_BYTES) {
      const scl_status_t status = program(stage.address, stage.bytes, STAGE_BYTES);
      if (status != SCL_OK) {
        return status;
      }
      stage.address += STAGE_BYTES;
      stage.fill = 0;
    }
  }
  return SCL_OK;
}

static scl_status_t stage_end(void) {
  const uint32_t size = SCL_ROUND_UP(stage.fill, SCL_FLASH_PROGRAM_UNIT);
  if (size == 0) {
    return SCL_OK;
  }
  memset(&stage.bytes[stage.fill], (int)SCL_FLASH_ERASED, size - stage.fill);
  stage.fill = 0;
  return program(stage.address, stage.bytes, size);
}

/* Returns 1 and fills `h` if the sector has a valid header. */
static int read_header(uint32_t sector, header_t *h) {
  uint8_t raw[HEADER_BYTES];
  if (flash_read(sector * SCL_FLASH_SECTOR, raw, HEADER_BYTES) != SCL_OK || scl_get_u32(raw) != MAGIC ||
      raw[4] != VERSION || scl_get_u32(raw + 44) != scl_crc32(0, raw, 44)) {
    return 0;
  }
  h->kind = raw[5];
  h->tail_sector = scl_get_u16(raw + 6);
  h->sequence = scl_get_u32(raw + 8);
  h->erase_count = scl_get_u32(raw + 12);
  h->snapshot = scl_get_u32(raw + 16);
  h->part = scl_get_u16(raw + 20);
  h->parts = scl_get_u16(raw + 22);
  h->size = scl_get_u32(raw + 24);
  h->crc = scl_get_u32(raw + 28);
  h->tail_sequence = scl_get_u32(raw + 40);
  h->ours = memcmp(raw + 32, model_hash, sizeof model_hash) == 0;
  return h->sequence <= LARGEST_NUMBER && h->snapshot < LARGEST_NUMBER;
}

static scl_status_t write_header(uint32_t sector, const header_t *h) {
  uint8_t raw[HEADER_BYTES] = {0};
  scl_put_u32(raw, MAGIC);
  raw[4] = VERSION;
  raw[5] = h->kind;
  scl_put_u16(raw + 6, h->tail_sector);
  scl_put_u32(raw + 8, h->sequence);
  scl_put_u32(raw + 12, h->erase_count);
  scl_put_u32(raw + 16, h->snapshot);
  scl_put_u16(raw + 20, h->part);
  scl_put_u16(raw + 22, h->parts);
  scl_put_u32(raw + 24, h->size);
  scl_put_u32(raw + 28, h->crc);
  memcpy(raw + 32, model_hash, sizeof model_hash);
  scl_put_u32(raw + 40, h->tail_sequence);
  scl_put_u32(raw + 44, scl_crc32(0, raw, 44));
  stage_begin(sector * SCL_FLASH_SECTOR);
  const scl_status_t status = stage_write(raw, HEADER_BYTES);
  return status != SCL_OK ? status : stage_end();
}

/* Sectors from the tail to this one. */
static uint16_t span_to(uint32_t sector) {
  return (uint16_t)((sector + SCL_SECTORS - scl_journal.tail) % SCL_SECTORS + 1u);
}

static int out_of_numbers(void) {
  return scl_journal.sequence == LARGEST_NUMBER || scl_journal.next_snapshot > LARGEST_NUMBER;
}

static uint16_t next_sector(uint32_t sector) { return (uint16_t)(sector + 1u < SCL_SECTORS ? sector + 1u : 0u); }

/* Returns sectors taken by a failed write.  If every sector fails, the fault is not wear. */
static void give_back(const scl_journal_t *before) {
  const scl_journal_t now = scl_journal;
  scl_journal = *before;
  scl_journal.sequence = now.sequence;
  scl_journal.next_snapshot = now.next_snapshot;
  scl_journal.counts = now.counts;
}

static void retire(void) {
  scl_journal.counts.retired++;
  scl_journal.worn++;
}

/* The count of a lap that began before the board started is incomplete. */
static void begin_lap(void) {
  if (scl_journal.lapped || scl_journal.worn > scl_journal.worn_before) {
    scl_journal.worn_before = scl_journal.worn;
  }
  scl_journal.worn = 0;
  scl_journal.lapped = 1;
}

uint32_t scl_journal_worn_ahead(void) {
  const uint32_t worn = scl_journal_worn();
  uint32_t ahead = 0;
  for (uint32_t k = scl_journal.used; k < SCL_SECTORS && ahead < worn; k++) {
    header_t h;
    ahead += !read_header((scl_journal.tail + k) % SCL_SECTORS, &h);
  }
  return ahead;
}

static int32_t erase(uint32_t sector) {
  scl_journal.counts.erases++;
  scl_host_feed_watchdog();
  return scl_host_erase(sector * SCL_FLASH_SECTOR);
}

/* Erases the next sector of the ring that works; its erase count goes to *erase_count. */
static scl_status_t take_sector(uint32_t *erase_count) {
  while (scl_journal.used < SCL_SECTORS && !out_of_numbers()) {
    header_t old;
    const uint16_t sector = scl_journal.used == 0 ? scl_journal.tail : next_sector(scl_journal.head);
    /* Without a valid header (never used, or cut in the middle of an erase) the ring's age tells the count. */
    const uint32_t count = read_header(sector, &old) ? old.erase_count : scl_journal.sequence / SCL_SECTORS;
    if (sector == 0) {
      begin_lap();
    }
    scl_journal.head = sector;
    scl_journal.used++;
    *erase_count = count + 1u;
    if (erase(sector) >= 0) {
      scl_journal.sequence++;
      scl_journal.offset = SCL_SECTOR_HEADER;
      return SCL_OK;
    }
    retire();
  }
  scl_journal.offset = SCL_FLASH_SECTOR;
  return SCL_ERR_STORE_FULL;
}

/* A sector whose header does not hold is passed over: to a mount only its place would tell that records are there. */
static scl_status_t take_data_sector(void) {
  header_t h = {.kind = KIND_DATA};
  scl_status_t status = take_sector(&h.erase_count);
  if (status == SCL_OK) {
    h.sequence = scl_journal.sequence;
    status = write_header(scl_journal.head, &h);
  }
  if (status == SCL_OK && scl_journal.tail_sequence == 0) {
    /* The first sector of an empty ring; sectors that failed before it do not count. */
    scl_journal.tail = scl_journal.head;
    scl_journal.tail_sequence = scl_journal.sequence;
    scl_journal.used = 1;
  }
  return status;
}

static scl_status_t make_room(uint32_t size) {
  const uint32_t padded = SCL_ROUND_UP(size, SCL_GRANULE);
  if (scl_journal.used > 0 && scl_journal.offset + padded <= SCL_FLASH_SECTOR) {
    return SCL_OK;
  }
  return padded > SCL_SECTOR_ROOM ? SCL_ERR_STORE_FULL : take_data_sector();
}

/* The address of the next record; its place counts as used even if the write fails. */
static scl_address_t place(uint32_t size) {
  const uint32_t at = (uint32_t)scl_journal.head * SCL_FLASH_SECTOR + scl_journal.offset;
  scl_journal.offset += SCL_ROUND_UP(size, SCL_GRANULE);
  stage_begin(at);
  return (scl_address_t)(at / SCL_GRANULE);
}

/*
 * Whether a record that was not written is to be tried again.  Nothing more goes into its sector; what is in it stays.
 * `before`: the ring when the record was begun.
 */
static int try_next_sector(scl_status_t status, uint32_t attempt, const scl_journal_t *before) {
  const int again = status == SCL_ERR_STORE && attempt < ATTEMPTS;
  if (again) {
    retire();
  } else {
    give_back(before);
  }
  scl_journal.offset = SCL_FLASH_SECTOR;
  return again;
}

static scl_status_t append_once(const void *head, uint32_t head_size, const void *body, uint32_t body_size,
                                scl_address_t *address) {
  *address = place(head_size + body_size);
  scl_status_t status = stage_write(head, head_size);
  if (status == SCL_OK) {
    status = stage_write(body, body_size);
  }
  return status != SCL_OK ? status : stage_end();
}

scl_status_t scl_journal_append(const void *head, uint32_t head_size, const void *body, uint32_t body_size,
                                scl_address_t *address) {
  const scl_journal_t before = scl_journal;
  for (uint32_t attempt = 0;; attempt++) {
    scl_status_t status = make_room(head_size + body_size);
    if (status == SCL_OK) {
      status = append_once(head, head_size, body, body_size, address);
    }
    if (status == SCL_OK || !try_next_sector(status, attempt, &before)) {
      return status;
    }
  }
}

scl_status_t scl_journal_read(scl_address_t address, void *data, uint32_t size) {
  return flash_read((uint32_t)address * SCL_GRANULE, data, size);
}

static scl_status_t copy_once(scl_address_t from, uint32_t size, scl_address_t *to) {
  scl_status_t status = SCL_OK;
  *to = place(size);
  for (uint32_t done = 0; done < size && status == SCL_OK;) {
    _Alignas(4) uint8_t chunk[CHUNK_BYTES];
    const uint32_t n = size - done < sizeof chunk ? size - done : (uint32_t)sizeof chunk;
    status = flash_read((uint32_t)from * SCL_GRANULE + done, chunk, n);
    if (status == SCL_OK) {
      status = stage_write(chunk, n);
    }
    done += n;
  }
  return status != SCL_OK ? status : stage_end();
}

scl_status_t scl_journal_copy(scl_address_t from, uint32_t size, scl_address_t *to) {
  scl_journal.counts.relocated++;
  const scl_journal_t before = scl_journal;
  for (uint32_t attempt = 0;; attempt++) {
    scl_status_t status = make_room(size);
    if (status == SCL_OK) {
      status = copy_once(from, size, to);
    }
    if (status == SCL_OK || !try_next_sector(status, attempt, &before)) {
      return status;
    }
  }
}

scl_tail_t scl_journal_tail(void) { return (scl_tail_t){scl_journal.tail, scl_journal.tail_sequence}; }

scl_tail_t scl_journal_after(scl_tail_t tail) {
  header_t h;
  tail.sector = next_sector(tail.sector);
  /* A sector whose header was damaged still holds its records: it is not passed over. */
  if (read_header(tail.sector, &h) && h.ours && h.sequence > tail.sequence) {
    tail.sequence = h.sequence;
  }
  return tail;
}

static scl_status_t snapshot_sector(void) {
  const scl_status_t status = take_sector(&snap.erase_count);
  if (status != SCL_OK) {
    return status;
  }
  if (snap.own_tail && snap.part == 0) {
    /* As it was taken: one that failed before it has no header to be found by. */
    snap.tail = (scl_tail_t){scl_journal.head, scl_journal.sequence};
  }
  snap.crc = 0;
  snap.size = 0;
  stage_begin((uint32_t)scl_journal.head * SCL_FLASH_SECTOR + SCL_SECTOR_HEADER);
  return SCL_OK;
}

/* The header goes last: a sector counts only when its payload is complete. */
static scl_status_t snapshot_close(void) {
  const header_t h = {.kind = KIND_STATE,
                      .sequence = scl_journal.sequence,
                      .erase_count = snap.erase_count,
                      .snapshot = snap.number,
                      .part = snap.part,
                      .parts = snap.parts,
                      .size = snap.size,
                      .crc = snap.crc,
                      .tail_sequence = snap.tail.sequence,
                      .tail_sector = snap.tail.sector};
  scl_status_t status = stage_end();
  if (status == SCL_OK) {
    status = write_header(scl_journal.head, &h);
  }
  if (status == SCL_OK) {
    snap.part++;
  }
  return status;
}

scl_status_t scl_journal_snapshot_begin(uint32_t size, const scl_tail_t *tail) {
  const uint32_t parts = scl_journal_snapshot_sectors(size);
  snap.number = scl_journal.next_snapshot++;
  snap.part = 0;
  snap.parts = (uint16_t)(parts > 0 ? parts : 1u);
  snap.failed = 0;
  snap.skip = 0;
  snap.own_tail = tail == NULL;
  if (tail != NULL) {
    snap.tail = *tail;
  }
  snap.before = scl_journal;
  return snapshot_sector();
}

scl_status_t scl_journal_snapshot_again(void) {
  if (snap.failed++ == ATTEMPTS) {
    return SCL_ERR_STORE;
  }
  retire();
  snap.skip = snap.part * SCL_SECTOR_ROOM;
  return snapshot_sector();
}

void scl_journal_snapshot_abandon(void) { give_back(&snap.before); }

scl_status_t scl_journal_snapshot_write(const void *data, uint32_t size) {
  const uint32_t known = size < snap.skip ? size : snap.skip;
  const uint8_t *from = (const uint8_t *)data + known;
  snap.skip -= known;
  size -= known;
  while (size > 0) {
    scl_status_t status = SCL_OK;
    if (snap.size == SCL_SECTOR_ROOM) {
      status = snapshot_close();
      if (status == SCL_OK) {
        status = snapshot_sector();
      }
    }
    const uint32_t room = SCL_SECTOR_ROOM - snap.size;
    const uint32_t n = size < room ? size : room;
    if (status == SCL_OK) {
      status = stage_write(from, n);
    }
    if (status != SCL_OK) {
      return status;
    }
    snap.crc = scl_crc32(snap.crc, from, n);
    snap.size += n;
    from += n;
    size -= n;
  }
  return SCL_OK;
}

scl_status_t scl_journal_snapshot_end(void) {
  const scl_status_t status = snapshot_close();
  if (status != SCL_OK) {
    return status;
  }
  scl_journal.offset = SCL_FLASH_SECTOR; /* data does not share a sector with a snapshot */
  scl_journal.snapshot = snap.number;
  scl_journal.tail = snap.tail.sector;
  scl_journal.tail_sequence = snap.tail.sequence;
  scl_journal.used = span_to(scl_journal.head);
  scl_journal.counts.checkpoints++;
  return SCL_OK;
}

static uint32_t payload_crc(uint32_t sector, uint32_t size) {
  uint32_t crc = 0;
  for (uint32_t done = 0; done < size;) {
    _Alignas(4) uint8_t chunk[CHUNK_BYTES];
    const uint32_t n = size - done < sizeof chunk ? size - done : (uint32_t)sizeof chunk;
    if (flash_read(sector * SCL_FLASH_SECTOR + SCL_SECTOR_HEADER + done, chunk, n) != SCL_OK) {
      return ~crc;
    }
    crc = scl_crc32(crc, chunk, n);
    done += n;
  }
  return crc;
}

static int read_part_header(uint32_t sector, uint32_t number, header_t *h) {
  return read_header(sector, h) && h->ours && h->kind == KIND_STATE && h->snapshot == number;
}

/* The sector of a snapshot that was taken first. */
static uint16_t first_sector(uint32_t number) {
  uint32_t sequence = 0xFFFFFFFFu;
  uint16_t first = 0;
  scl_host_feed_watchdog();
  for (uint16_t s = 0; s < SCL_SECTORS; s++) {
    header_t h;
    if (read_part_header(s, number, &h) && h.sequence <= sequence) {
      sequence = h.sequence;
      first = s;
    }
  }
  return first;
}

/*
 * Finds a part at *sector or behind it in the ring, where its parts follow each other.  Of several the last: those before
 * it did not read back when they were written.
 */
static int find_part(uint32_t number, uint32_t part, uint16_t *sector, header_t *found) {
  int any = 0;
  uint16_t s = *sector;
  scl_host_feed_watchdog();
  for (uint32_t k = 0; k < SCL_SECTORS; k++, s = next_sector(s)) {
    header_t h;
    if (!read_part_header(s, number, &h)) {
      continue;
    }
    if (h.part > part) {
      break;
    }
    if (h.part == part) {
      any = 1;
      *sector = s;
      *found = h;
    }
  }
  return any;
}

/* All parts of the snapshot are there and pass their checks; *last is its newest sector, *h that one's header. */
static int complete(uint32_t number, uint16_t *last, header_t *h) {
  uint32_t part = 0;
  *last = first_sector(number);
  do {
    if (!find_part(number, part, last, h) || h->size > SCL_SECTOR_ROOM || payload_crc(*last, h->size) != h->crc) {
      return 0;
    }
  } while (++part < h->parts);
  return part == h->parts;
}

/* Whether a snapshot was complete once: the header of its last part is written last. */
static int was_complete(uint32_t number) {
  for (uint32_t s = 0; s < SCL_SECTORS; s++) {
    header_t h;
    if (read_part_header(s, number, &h) && h.part + 1u == h.parts) {
      return 1;
    }
  }
  return 0;
}

/*
 * The largest snapshot number below `limit`, 0 if there is none; also learns the largest numbers in use, and how many
 * sectors were taken and have no header: worn ones, mostly.
 */
static uint32_t newest_below(uint32_t limit) {
  uint32_t newest = 0;
  uint16_t bare = 0;
  uint16_t bare_taken = 0; /* the ring begins at sector 0: those behind the last one may not be taken yet */
  scl_host_feed_watchdog(); /* a mount looks at all sectors for each snapshot */
  for (uint32_t s = 0; s < SCL_SECTORS; s++) {
    header_t h;
    if (!read_header(s, &h)) {
      bare++;
      continue;
    }
    bare_taken = bare;
    if (h.sequence > scl_journal.sequence) {
      scl_journal.sequence = h.sequence;
    }
    if (h.kind != KIND_STATE || !h.ours) {
      continue;
    }
    if (h.snapshot >= scl_journal.next_snapshot) {
      scl_journal.next_snapshot = h.snapshot + 1u;
    }
    if (h.snapshot < limit && h.snapshot > newest) {
      newest = h.snapshot;
    }
  }
  if (scl_journal.sequence >= SCL_SECTORS) {
    bare_taken = bare;
  }
  if (bare_taken > scl_journal.worn_before) {
    scl_journal.worn_before = bare_taken;
  }
  return newest;
}

static int find_sequence(uint32_t sequence, uint16_t *sector) {
  for (uint32_t s = 0; s < SCL_SECTORS; s++) {
    header_t h;
    if (read_header(s, &h) && h.ours && h.sequence == sequence) {
      *sector = (uint16_t)s;
      return 1;
    }
  }
  return 0;
}

/* Whether the oldest sector that a snapshot needs was not taken again since; one with a damaged header was not. */
static int tail_is_there(const header_t *h) {
  header_t tail;
  return h->tail_sector < SCL_SECTORS && (!read_header(h->tail_sector, &tail) || tail.sequence <= h->sequence);
}

/* An empty ring begins where the last one ended, for even wear. */
static void begin_anew(void) { scl_journal.tail = (uint16_t)(scl_journal.sequence % SCL_SECTORS); }

scl_status_t scl_journal_mount(uint32_t limit) {
  const scl_journal_counts_t counts = scl_journal.counts;
  memset(&scl_journal, 0, sizeof scl_journal);
  scl_journal.counts = counts;
  scl_journal.next_snapshot = 1;
  scl_journal.offset = SCL_FLASH_SECTOR;
  for (;;) {
    const uint32_t number = newest_below(limit);
    if (number == 0) {
      begin_anew();
      return SCL_OK;
    }
    uint16_t last = 0;
    header_t h;
    if (complete(number, &last, &h) && tail_is_there(&h)) {
      scl_journal.snapshot = h.parts == 1u && h.size == 0 ? 0u : number; /* an empty snapshot: the state was reset */
      scl_journal.head = last;
      scl_journal.tail = h.tail_sector;
      scl_journal.tail_sequence = h.tail_sequence;
      scl_journal.used = span_to(last);
      return SCL_OK;
    }
    if (was_complete(number)) { /* otherwise the power failed before it was complete */
      scl_journal.counts.lost_saves++;
    }
    limit = number;
  }
}

void scl_journal_pass_over(uint32_t keep) {
  uint16_t newest;
  if (find_sequence(scl_journal.sequence, &newest) && span_to(newest) > scl_journal.used &&
      span_to(newest) + keep + SCL_SECTORS / 3u <= SCL_SECTORS) {
    scl_journal.head = newest;
    scl_journal.used = span_to(newest);
  }
}

/*
 * Whether about as many sectors have headers as were taken by their numbers.  A forged number makes the others seem worn,
 * and worn ones are made up for with room.
 */
static int plausible(void) {
  uint32_t headers = 0;
  for (uint32_t s = 0; s < SCL_SECTORS; s++) {
    header_t h;
    headers += (uint32_t)read_header(s, &h);
  }
  const uint32_t taken = scl_journal.sequence < SCL_SECTORS ? scl_journal.sequence : SCL_SECTORS;
  return headers + SCL_SECTORS / 4u >= taken;
}

/* The newest sector goes last, and stays where another cannot be erased: as long as it is there, what it says counts. */
static void erase_all(void) {
  const uint32_t newest = scl_journal.head;
  uint32_t left = 0;
  for (uint32_t k = 1; k < SCL_SECTORS; k++) {
    const uint32_t sector = (newest + k) % SCL_SECTORS;
    header_t h;
    (void)erase(sector);
    left += (uint32_t)read_header(sector, &h);
  }
  if (left == 0) {
    (void)erase(newest);
  }
  (void)scl_journal_mount(SCL_ANY_SNAPSHOT);
}

/* Takes a sector as any snapshot does: nothing is forgotten until it is complete, and wear stays even. */
scl_status_t scl_journal_format(void) {
  if (out_of_numbers() || scl_journal.next_snapshot == LARGEST_NUMBER) {
    erase_all(); /* no board comes to these numbers: someone wrote them */
  }
  if (scl_journal_free() == 0) {
    scl_journal.used = 1; /* what is oldest goes with what is forgotten */
  }
  scl_status_t status = scl_journal_snapshot_begin(0, NULL);
  if (status == SCL_OK) {
    status = scl_journal_snapshot_end();
  }
  while (status == SCL_ERR_STORE && (status = scl_journal_snapshot_again()) == SCL_OK) {
    status = scl_journal_snapshot_end();
  }
  if (status == SCL_OK && !plausible()) {
    erase_all();
  }
  return status;
}

/* Finds the sector of the part to be read next. */
static scl_status_t restore_part(void) {
  header_t h;
  snap.size = 0;
  if (!find_part(scl_journal.snapshot, snap.part, &snap.sector, &h)) {
    return SCL_ERR_STORE;
  }
  snap.parts = h.parts;
  snap.covered = h.size;
  return SCL_OK;
}

scl_status_t scl_journal_restore_begin(void) {
  snap.part = 0;
  snap.sector = first_sector(scl_journal.snapshot);
  return restore_part();
}

scl_status_t scl_journal_restore_read(void *data, uint32_t size) {
  uint8_t *to = data;
  while (size > 0) {
    if (snap.size == SCL_SECTOR_ROOM) {
      snap.part++;
      const scl_status_t status = restore_part();
      if (status != SCL_OK) {
        return status;
      }
    }
    const uint32_t room = snap.covered - snap.size;
    const uint32_t n = size < room ? size : room;
    const uint32_t at = (uint32_t)snap.sector * SCL_FLASH_SECTOR + SCL_SECTOR_HEADER + snap.size;
    if (n == 0 || flash_read(at, to, n) != SCL_OK) {
      return SCL_ERR_STORE;
    }
    snap.size += n;
    to += n;
    size -= n;
  }
  return SCL_OK;
}

scl_status_t scl_journal_restore_end(void) {
  return snap.part + 1u == snap.parts && snap.size == snap.covered ? SCL_OK : SCL_ERR_STORE;
}

void scl_journal_wear(uint32_t *low, uint32_t *high) {
  *low = 0xFFFFFFFFu;
  *high = 0;
  for (uint32_t s = 0; s < SCL_SECTORS; s++) {
    header_t h;
    const uint32_t count = read_header(s, &h) ? h.erase_count : 0u;
    *low = count < *low ? count : *low;
    *high = count > *high ? count : *high;
  }
}
