/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A board whose power is cut at any flash operation, in memory: the port functions and the host that asks, around the
 * real firmware (scl_app_main).  powercut.py builds it for a flash geometry and writes the scenario.
 *
 *   powercut SCENARIO record                        the uninterrupted run: what it took, compared with the reference
 *   powercut SCENARIO sweep FIRST STEP TORN SECOND  cuts at operations FIRST, FIRST + STEP, ...; TORN torn ways of each,
 *                                                   SECOND cuts more after it, while the board recovers
 *   powercut SCENARIO replay CUT                    one cut, told step by step: c12-before, c12-torn-r3, c12-torn-r3+c4-after
 *
 * This process never runs the engine.  Each life of the board, from power-on to the next cut or to the end of the
 * scenario, is a child of it, so all of the engine's memory begins as at power-on.  Only the flash outlives a child: it
 * lies in shared memory.  The flash as it is before an operation is made from the operations of the uninterrupted run.
 *
 * What has to be in flash is known from the calls of the journal: a commit is under way from
 * scl_journal_snapshot_begin, or scl_journal_format, until that is over (--wrap).
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scl_app.h"
#include "scl_bytes.h"
#include "scl_frame.h"
#include "scl_journal.h"
#include "scl_port.h"
#include "scl_seal.h"
#include "scl_state.h"

scl_status_t __real_scl_journal_snapshot_begin(uint32_t size, const scl_tail_t *tail);
scl_status_t __wrap_scl_journal_snapshot_begin(uint32_t size, const scl_tail_t *tail);
scl_status_t __real_scl_journal_snapshot_end(void);
scl_status_t __wrap_scl_journal_snapshot_end(void);
scl_status_t __real_scl_journal_format(void);
scl_status_t __wrap_scl_journal_format(void);

enum {
  MOST_OPERATIONS = 1 << 17,
  MOST_DATA = 1 << 25,
  MOST_REQUESTS = 1 << 17,
  HANG_SECONDS = 20,
  HELLO = 0x01,
  RESET = 0x0E
};
#define SECTORS (SCL_FLASH_SIZE / SCL_FLASH_SECTOR)
#define ERASED ((uint8_t)SCL_FLASH_ERASED)
#define NEVER 0xFFFFFFFFu

typedef enum { ENDED, CUT, LOST, DIFFERS, BROKEN, STUCK } outcome_t;
static const char *const outcomes[] = {"ended",
                                       "cut again",
                                       "LOST: the state is none that was saved",
                                       "LOST: learning does not end as it does uninterrupted",
                                       "LOST: the flash was used against its contract",
                                       "LOST: the board crashed or hangs"};

/* ---- what is given -------------------------------------------------------- */

typedef struct {
  const uint8_t *frame, *reply; /* the reply's payload, as the reference gives it */
  uint32_t frame_size, reply_size, unknown; /* bytes at the beginning of the reply that the reference does not know */
  uint32_t digest;              /* of the state after it */
} request_t;

/* How a sector is worn. */
typedef enum { SOUND, NO_ERASE, NO_HEADER, NO_END, NO_PROGRAM, STUCK_BITS } worn_t;

static struct {
  uint32_t initial; /* digest of the initial state */
  uint32_t count, endurance;
  request_t request[MOST_REQUESTS];
  const uint8_t *hello, *ask; /* the frame that begins a conversation, and the one that asks for the digest */
  uint32_t hello_size, ask_size;
  uint8_t worn[SECTORS];
} given;

/* ---- what outlives a child ------------------------------------------------ */

/* A state in flash, and the request with which the host continues from it. */
typedef struct {
  uint32_t digest, next;
} saved_t;

typedef struct {
  saved_t done;    /* of the last commit */
  saved_t started; /* of the one under way */
  int under_way;
} commits_t;

typedef struct {
  uint32_t address, size, data; /* size 0: an erase */
  commits_t before;
} operation_t;

typedef struct {
  uint32_t operation; /* counted from 1 */
  enum { BEFORE, TORN, UNSTABLE, AFTER } way;
  uint32_t variant;
} cut_t;
static const char *const ways[] = {"before", "torn", "unstable", "after"};

static struct {
  uint8_t *flash;
  uint8_t unstable[SCL_FLASH_SIZE]; /* bits that read as they like */
  uint32_t erases[SECTORS];
  commits_t commits;
  uint32_t relocated, checkpoints, retired;
  char why[256];
  /* of the uninterrupted run */
  uint32_t count, used;
  operation_t operation[MOST_OPERATIONS];
  uint8_t data[MOST_DATA];
} *shared;

/* ---- this child ----------------------------------------------------------- */

static struct {
  int recording, loud, checked;
  int encodes; /* what the engine writes is the host's */
  cut_t cut; /* operation 0: none */
  uint32_t operations, at;
  uint64_t random;
  uint8_t in[65536];
  uint32_t in_size, in_used, silence;
  scl_frame_t got;
  uint32_t ticks;
} life;

static void say(const char *format, ...) {
  if (life.loud) {
    va_list arguments;
    va_start(arguments, format);
    (void)vprintf(format, arguments);
    va_end(arguments);
    (void)fflush(stdout);
  }
}

static _Noreturn void end(outcome_t outcome, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  (void)vsnprintf(shared->why, sizeof shared->why, format, arguments);
  va_end(arguments);
  shared->relocated = scl_journal.counts.relocated;
  shared->checkpoints = scl_journal.counts.checkpoints;
  shared->retired = scl_journal.counts.retired;
  say("  %s: %s\n", outcomes[outcome], shared->why);
  _exit((int)outcome);
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t draw(uint64_t *state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static uint32_t below(uint64_t *state, uint32_t limit) { return (uint32_t)(draw(state) % limit); }

/* ---- a torn operation ------------------------------------------------------ */

/* Each bit with probability `eighths` / 8. */
static uint8_t some_bits(uint64_t *random, uint32_t eighths) {
  uint8_t bits = 0;
  for (uint32_t k = 0; k < 8u; k++) {
    bits = (uint8_t)(bits | (below(random, 8) < eighths ? 1u << k : 0u));
  }
  return bits;
}

/* Moves a share of the bits of some bytes to where they were going; those may read as they like from now on. */
static void drift(uint32_t address, const uint8_t *goal, uint32_t size, uint32_t eighths, int unstable,
                  uint64_t *random) {
  for (uint32_t k = 0; k < size; k++) {
    uint8_t *cell = &shared->flash[address + k];
    const uint8_t moving = (uint8_t)(*cell ^ goal[k]);
    const uint8_t moved = (uint8_t)(moving & some_bits(random, eighths));
    *cell = (uint8_t)(*cell ^ moved);
    if (unstable) {
      shared->unstable[address + k] = (uint8_t)(moving & some_bits(random, 4));
    }
  }
}

/*
 * Whole units, then a unit in which a share of the bits is programmed: none, few, most, all but one.  A part that
 * programs a page at once has some bits of all units instead.
 */
static void tear_program(uint32_t address, const uint8_t *data, uint32_t size, const cut_t *cut, uint64_t *random) {
  static const uint32_t shares[] = {0, 1, 4, 7};
  const uint32_t units = size / SCL_FLASH_PROGRAM_UNIT;
  uint32_t whole = below(random, units), torn = SCL_FLASH_PROGRAM_UNIT, share = shares[below(random, 4)];
  if (cut->variant == 0) { /* the most that is not all */
    whole = units - 1u;
    share = 8;
  } else if (below(random, 4) == 0) {
    whole = 0;
    torn = size;
  }
  memcpy(&shared->flash[address], data, whole * SCL_FLASH_PROGRAM_UNIT);
  const uint32_t at = whole * SCL_FLASH_PROGRAM_UNIT;
  drift(address + at, data + at, torn, share, cut->way == UNSTABLE, random);
  if (cut->variant == 0) { /* all but one bit */
    for (uint32_t k = 0; k < size; k++) {
      if (data[size - 1u - k] != ERASED) {
        const uint8_t bits = (uint8_t)(data[size - 1u - k] ^ ERASED);
        shared->flash[address + size - 1u - k] ^= (uint8_t)(bits & (0u - bits));
        break;
      }
    }
  }
}

/*
 * A part programs all cells of a sector before it erases them, and then moves them all at once: a share of the bits of
 * either.  Or it works its way through the sector.
 */
static void tear_erase(uint32_t address, const cut_t *cut, uint64_t *random) {
  static const uint32_t shares[] = {0, 1, 4, 7};
  uint8_t goal[SCL_FLASH_SECTOR];
  memset(goal, ERASED, sizeof goal);
  switch (below(random, 4)) {
    case 0: { /* in order */
      const uint32_t done = below(random, SCL_FLASH_SECTOR);
      memset(&shared->flash[address], ERASED, done);
      drift(address + done, goal, SCL_FLASH_SECTOR - done < 64u ? SCL_FLASH_SECTOR - done : 64u, 4,
            cut->way == UNSTABLE, random);
      break;
    }
    case 1: /* programmed first */
      memset(goal, (uint8_t)~ERASED, sizeof goal);
      drift(address, goal, SCL_FLASH_SECTOR, shares[below(random, 4)], cut->way == UNSTABLE, random);
      break;
    default: /* moved at once */
      drift(address, goal, SCL_FLASH_SECTOR, cut->variant == 0 ? 1u : shares[below(random, 4)], cut->way == UNSTABLE,
            random);
      if (cut->variant == 1) { /* two bits of the sector are left */
        memset(&shared->flash[address], ERASED, SCL_FLASH_SECTOR);
        for (uint32_t k = 0; k < 2u; k++) {
          shared->flash[address + below(random, SCL_FLASH_SECTOR)] ^= (uint8_t)(1u << below(random, 8));
        }
      }
      break;
  }
}

static uint8_t worn(uint32_t address) { return given.worn[address / SCL_FLASH_SECTOR]; }

static int32_t do_program(uint32_t address, const uint8_t *data, uint32_t size) {
  const uint32_t offset = address % SCL_FLASH_SECTOR;
  const uint8_t how = worn(address);
  if (how == NO_PROGRAM) {
    return -1;
  }
  if ((how == NO_HEADER && offset == 0) || (how == NO_END && offset + size > SCL_FLASH_SECTOR / 4u * 3u)) {
    return 0;
  }
  for (uint32_t k = 0; k < size; k++) {
    shared->flash[address + k] =
        ERASED != 0 ? (uint8_t)(shared->flash[address + k] & data[k]) : (uint8_t)(shared->flash[address + k] | data[k]);
  }
  return 0;
}

static int32_t do_erase(uint32_t address) {
  uint32_t *erases = &shared->erases[address / SCL_FLASH_SECTOR];
  if (worn(address) == NO_ERASE || (given.endurance != 0 && *erases >= given.endurance)) {
    return -1;
  }
  ++*erases;
  memset(&shared->flash[address], ERASED, SCL_FLASH_SECTOR);
  memset(&shared->unstable[address], 0, SCL_FLASH_SECTOR);
  if (worn(address) == STUCK_BITS) {
    shared->flash[address + SCL_FLASH_SECTOR / 3u] ^= 0x10u;
  }
  return 0;
}

/* size 0: an erase */
static int32_t perform(uint32_t address, const uint8_t *data, uint32_t size) {
  return size > 0 ? do_program(address, data, size) : do_erase(address);
}

static uint64_t seed_of(const cut_t *cut) {
  return ((uint64_t)cut->operation << 20) ^ ((uint64_t)cut->variant << 8) ^ (uint64_t)cut->way;
}

/* What the flash holds when the power failed at an operation. */
static void apply_cut(const cut_t *cut, uint32_t address, const uint8_t *data, uint32_t size) {
  uint64_t random = seed_of(cut);
  if (cut->way == AFTER) {
    (void)perform(address, data, size);
  } else if (cut->way != BEFORE && size > 0) {
    tear_program(address, data, size, cut, &random);
  } else if (cut->way != BEFORE) {
    tear_erase(address, cut, &random);
  }
}

/* ---- the port: flash -------------------------------------------------------- */

/* Counts an operation; the power may fail at it. */
static int32_t operation(uint32_t address, const uint8_t *data, uint32_t size) {
  life.operations++;
  if (life.recording) {
    if (shared->count == MOST_OPERATIONS || shared->used + size > MOST_DATA) {
      end(BROKEN, "the scenario is too long to be recorded");
    }
    shared->operation[shared->count++] = (operation_t){address, size, shared->used, shared->commits};
    memcpy(&shared->data[shared->used], data, size);
    shared->used += size;
  }
  if (life.operations == life.cut.operation) {
    apply_cut(&life.cut, address, data, size);
    end(CUT, "power fails at operation %u: %s of %u bytes at 0x%x, %s", life.operations, size ? "program" : "erase",
        size, address, ways[life.cut.way]);
  }
  return perform(address, data, size);
}

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  if (address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address) {
    end(BROKEN, "reads %u bytes at 0x%x", size, address);
  }
  for (uint32_t k = 0; k < size; k++) {
    const uint8_t unsure = shared->unstable[address + k];
    data[k] = (uint8_t)(shared->flash[address + k] ^ (unsure ? unsure & draw(&life.random) : 0u));
  }
  return 0;
}

int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  if (size == 0 || address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address ||
      (address | size) % SCL_FLASH_PROGRAM_UNIT != 0) {
    end(BROKEN, "programs %u bytes at 0x%x", size, address);
  }
  for (uint32_t k = 0; k < size; k++) {
    if ((shared->flash[address + k] != ERASED || shared->unstable[address + k] != 0) && worn(address) == SOUND) {
      end(BROKEN, "programs byte 0x%x, which is not erased", address + k);
    }
  }
  return operation(address, data, size);
}

int32_t scl_port_flash_erase(uint32_t address) {
  if (address >= SCL_FLASH_SIZE || address % SCL_FLASH_SECTOR != 0) {
    end(BROKEN, "erases at 0x%x", address);
  }
  return operation(address, NULL, 0);
}

/* ---- commits ---------------------------------------------------------------- */

static uint32_t digest_before(uint32_t request) {
  return request == 0 ? given.initial : given.request[request - 1u].digest;
}

static void commit_starts(uint32_t digest, uint32_t next) {
  shared->commits.started = (saved_t){digest, next};
  shared->commits.under_way = 1;
  say("  request %u: commit of state %08x begins before operation %u\n", life.at, digest, life.operations + 1u);
}

static void commit_ends(scl_status_t status) {
  if (status == SCL_OK) {
    shared->commits.done = shared->commits.started;
    shared->commits.under_way = 0;
    say("  request %u: commit is done after operation %u\n", life.at, life.operations);
  }
}

scl_status_t __wrap_scl_journal_snapshot_begin(uint32_t size, const scl_tail_t *tail) {
  uint32_t digest;
  if (scl_state_digest(&digest) != SCL_OK) {
    end(DIFFERS, "request %u: a record of the state cannot be read", life.at);
  }
  const int early = digest == digest_before(life.at);
  if (!early && digest != given.request[life.at].digest) {
    end(DIFFERS, "request %u: commits %08x, which is the state neither before nor after it", life.at, digest);
  }
  commit_starts(digest, early ? life.at : life.at + 1u);
  return __real_scl_journal_snapshot_begin(size, tail);
}

scl_status_t __wrap_scl_journal_snapshot_end(void) {
  const scl_status_t status = __real_scl_journal_snapshot_end();
  commit_ends(status);
  return status;
}

scl_status_t __wrap_scl_journal_format(void) {
  commit_starts(given.initial, life.at + 1u);
  const scl_status_t status = __real_scl_journal_format();
  commit_ends(status);
  return status;
}

/* ---- the port: the line, and the host at its other end ---------------------- */

static void send(const uint8_t *bytes, uint32_t size) {
  memcpy(life.in, bytes, size);
  life.in_size = size;
  life.in_used = 0;
}

/* A reset needs the nonce of this life: it is put into the frame, whose copy becomes what the line carries. */
static void put_nonce(void) {
  scl_frame_t frame = {0};
  for (uint32_t k = 0; k < life.in_size; k++) {
    (void)scl_frame_take(&frame, life.in[k]);
  }
  if (frame.bytes[2] == RESET) {
    scl_seal_nonce(frame.bytes + SCL_FRAME_HEAD + 1u);
    life.in_size = 0;
    life.encodes = 1;
    scl_frame_send(frame.bytes, frame.size);
    life.encodes = 0;
  }
}

static void send_next(void) {
  if (life.at < given.count) {
    send(given.request[life.at].frame, given.request[life.at].frame_size);
    put_nonce();
  } else {
    end(ENDED, "state %08x after %u operations", digest_before(given.count), life.operations);
  }
}

/* The first thing asked after a start: is the state one that was saved? */
static void take_digest(void) {
  const commits_t *c = &shared->commits;
  const uint32_t digest = scl_get_u32(life.got.bytes + SCL_FRAME_HEAD);
  if (c->under_way && digest == c->started.digest) {
    life.at = c->started.next;
  } else if (digest == c->done.digest) {
    life.at = c->done.next;
  } else {
    end(LOST, "state %08x; saved were %08x%s %08x", digest, c->done.digest, c->under_way ? " and" : ", before",
        c->started.digest);
  }
  say("  comes back with state %08x, continues with request %u\n", digest, life.at);
  /* From here on this is what is saved. */
  shared->commits = (commits_t){.done = {digest, life.at}};
  life.checked = 1;
}

static void take_reply(void) {
  const request_t *r = &given.request[life.at];
  const uint8_t *reply = life.got.bytes;
  const uint32_t size = life.got.size - SCL_FRAME_HEAD;
  uint32_t digest;
  if (reply[3] != 0) {
    end(DIFFERS, "request %u (command %u) is refused with status %u", life.at, reply[2], reply[3]);
  }
  if (size != r->reply_size ||
      memcmp(reply + SCL_FRAME_HEAD + r->unknown, r->reply + r->unknown, size - r->unknown) != 0) {
    end(DIFFERS, "request %u (command %u) is answered in another way", life.at, reply[2]);
  }
  if (scl_state_digest(&digest) != SCL_OK || digest != r->digest) {
    end(DIFFERS, "request %u (command %u) leads to state %08x, not %08x", life.at, reply[2], digest, r->digest);
  }
  life.at++;
}

void scl_port_write(const uint8_t *data, uint32_t size) {
  if (life.encodes) {
    memcpy(&life.in[life.in_size], data, size);
    life.in_size += size;
    return;
  }
  for (uint32_t k = 0; k < size; k++) {
    if (scl_frame_take(&life.got, data[k]) == SCL_FRAME_COMPLETE && life.got.bytes[0] == 0x81u) {
      if (life.got.bytes[2] == HELLO) {
        send(given.ask, given.ask_size);
        return;
      }
      if (life.checked) {
        take_reply();
      } else {
        take_digest();
      }
      send_next();
    }
  }
}

int32_t scl_port_read_byte(void) {
  if (life.in_used == life.in_size) {
    if (life.in_size == 0 && !life.checked) {
      send(given.hello, given.hello_size);
    } else if (++life.silence > 3u) {
      end(STUCK, "request %u is not answered", life.at);
    }
    return -1;
  }
  life.silence = 0;
  return life.in[life.in_used++];
}

void scl_port_init(void) {}
uint32_t scl_port_ticks(void) { return life.ticks++; }
scl_reset_reason_t scl_port_reset_reason(void) { return SCL_RESET_POWER_ON; }
uint32_t scl_port_stack_used(void) { return 0; }
void scl_port_restart(void) { end(BROKEN, "restarts"); }
uint32_t scl_port_kept(void) { return 0; }
void scl_port_watchdog_feed(void) {}

/* Only a board that found its memory damaged keeps anything, and nothing damages it here. */
void scl_port_keep(uint32_t word) {
  if (word != 0) {
    end(BROKEN, "takes its memory for damaged");
  }
}

uint32_t scl_port_image(uint32_t range, const void **begin) {
  (void)range;
  *begin = NULL;
  return 0;
}

/* ---- lives ------------------------------------------------------------------- */

/* Power on; the child's end. */
static outcome_t live(const cut_t *cut, int recording, int loud) {
  (void)fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    life.recording = recording;
    life.loud = loud;
    life.random = cut == NULL ? 1u : seed_of(cut);
    if (cut != NULL) {
      life.cut = *cut;
    }
    (void)alarm(HANG_SECONDS);
    _exit(scl_app_main());
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) {
    perror("powercut");
    exit(2);
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) > STUCK) {
    (void)snprintf(shared->why, sizeof shared->why, "ended with wait status 0x%x", (unsigned)status);
    return STUCK;
  }
  return (outcome_t)WEXITSTATUS(status);
}

static void erase_all(void) {
  memset(shared->flash, ERASED, SCL_FLASH_SIZE);
  memset(shared->unstable, 0, sizeof shared->unstable);
  memset(shared->erases, 0, sizeof shared->erases);
  shared->commits = (commits_t){.done = {given.initial, 0}};
}

static void record(void) {
  erase_all();
  shared->count = shared->used = 0;
  const outcome_t outcome = live(NULL, 1, 0);
  if (outcome != ENDED) {
    (void)printf("failed: the uninterrupted run does not end: %s\n", shared->why);
    exit(1);
  }
}

/* `flash`: as before operation `number` of the uninterrupted run. */
static void redo(uint8_t *flash, uint32_t number) {
  const operation_t *o = &shared->operation[number - 1u];
  uint8_t *kept = shared->flash;
  shared->flash = flash;
  (void)perform(o->address, &shared->data[o->data], o->size);
  shared->flash = kept;
}

/*
 * What may come back after a cut at an operation of the uninterrupted run: the state that a commit under way began
 * with may, only when the operation that completes it is torn.
 */
static commits_t allowed(const cut_t *cut) {
  const operation_t *o = &shared->operation[cut->operation - 1u];
  commits_t after = {.done = {digest_before(given.count), given.count}};
  if (cut->operation < shared->count) {
    after = o[1].before;
  }
  commits_t result = cut->way == AFTER ? after : o->before;
  const int completes = o->before.under_way && memcmp(&after.done, &o->before.started, sizeof after.done) == 0;
  result.under_way = o->before.under_way && completes && cut->way != BEFORE && cut->way != AFTER;
  return result;
}

/* A cut of the uninterrupted run, then perhaps another; `flash`: as before it. */
static outcome_t try_cut(const uint8_t *flash, const cut_t *first, const cut_t *second, int loud) {
  const operation_t *o = &shared->operation[first->operation - 1u];
  memcpy(shared->flash, flash, SCL_FLASH_SIZE);
  memset(shared->unstable, 0, sizeof shared->unstable);
  memset(shared->erases, 0, sizeof shared->erases);
  apply_cut(first, o->address, &shared->data[o->data], o->size);
  shared->commits = allowed(first);
  if (loud) {
    (void)printf("  power fails at operation %u of %u: %s of %u bytes at 0x%x, %s\n", first->operation, shared->count,
                 o->size ? "program" : "erase", o->size, o->address, ways[first->way]);
  }
  outcome_t outcome = live(second, 0, loud);
  if (outcome == CUT) {
    outcome = live(NULL, 0, loud);
  }
  return outcome;
}

static struct {
  uint32_t tried[4], second, lost;
} totals;

static void name(char *text, size_t size, const cut_t *cut) {
  const int torn = cut->way == TORN || cut->way == UNSTABLE;
  (void)snprintf(text, size, torn ? "c%u-%s-r%u" : "c%u-%s", cut->operation, ways[cut->way], cut->variant);
}

static void count_cut(const uint8_t *flash, const cut_t *first, const cut_t *second) {
  const outcome_t outcome = try_cut(flash, first, second, 0);
  if (second == NULL) {
    totals.tried[first->way]++;
  } else {
    totals.second++;
  }
  if (outcome != ENDED) {
    char one[64], two[64] = "";
    name(one, sizeof one, first);
    if (second != NULL) {
      name(two, sizeof two, second);
    }
    totals.lost++;
    (void)printf("lost %s%s%s %s: %s\n", one, second != NULL ? "+" : "", two, outcomes[outcome], shared->why);
  }
}

static void sweep(uint32_t first, uint32_t step, uint32_t torn, uint32_t second) {
  static uint8_t flash[SCL_FLASH_SIZE];
  memset(flash, ERASED, sizeof flash);
  for (uint32_t number = 1; number <= shared->count; redo(flash, number++)) {
    if (number < first || (number - first) % step != 0) {
      continue;
    }
    uint64_t random = number;
    cut_t cut = {number, BEFORE, 0};
    count_cut(flash, &cut, NULL);
    for (cut.way = TORN; cut.way <= UNSTABLE; cut.way++) {
      /* Memory-mapped flash is read without this program. */
      for (cut.variant = 0; cut.variant < torn && !(cut.way == UNSTABLE && SCL_FLASH_MAPPED); cut.variant++) {
        count_cut(flash, &cut, NULL);
      }
    }
    cut = (cut_t){number, AFTER, 0};
    count_cut(flash, &cut, NULL);
    for (uint32_t k = 0; k < second; k++) {
      /* Soon after the start, or anywhere in what is left. */
      const uint32_t reach = k % 2u == 0 || number == shared->count ? 12u : shared->count - number;
      const int unsure = SCL_FLASH_MAPPED ? TORN : UNSTABLE;
      const int firsts[] = {TORN, unsure, AFTER}, seconds[] = {BEFORE, TORN, unsure};
      cut = (cut_t){number, firsts[below(&random, 3)], below(&random, 8)};
      const cut_t again = {1u + below(&random, reach), seconds[below(&random, 3)], below(&random, 8)};
      count_cut(flash, &cut, &again);
    }
    if ((number - first) / step % 16u == 0) {
      (void)printf("at %u of %u\n", number, shared->count);
    }
  }
  (void)printf("done before %u torn %u unstable %u after %u second %u lost %u\n", totals.tried[BEFORE],
               totals.tried[TORN], totals.tried[UNSTABLE], totals.tried[AFTER], totals.second, totals.lost);
}

static const char *parse(const char *text, cut_t *cut) {
  char way[16];
  int used = 0;
  *cut = (cut_t){0, BEFORE, 0};
  if (sscanf(text, "c%u-%15[a-z]%n", &cut->operation, way, &used) != 2) {
    return NULL;
  }
  while (cut->way < AFTER && strcmp(way, ways[cut->way]) != 0) {
    cut->way++;
  }
  text += used;
  if (sscanf(text, "-r%u%n", &cut->variant, &used) == 1) {
    text += used;
  }
  return text;
}

static int replay(const char *text) {
  static uint8_t flash[SCL_FLASH_SIZE];
  cut_t first, second;
  const char *rest = parse(text, &first);
  if (rest == NULL || first.operation == 0 || first.operation > shared->count ||
      (*rest == '+' && parse(rest + 1, &second) == NULL) || (*rest != '+' && *rest != '\0')) {
    (void)fprintf(stderr, "powercut: no such cut: %s\n", text);
    return 2;
  }
  memset(flash, ERASED, sizeof flash);
  for (uint32_t number = 1; number < first.operation; number++) {
    redo(flash, number);
  }
  const outcome_t outcome = try_cut(flash, &first, *rest == '+' ? &second : NULL, 1);
  if (outcome != ENDED) {
    (void)printf("  %s: %s\n", outcomes[outcome], shared->why);
  }
  return outcome != ENDED;
}

/* ---- the scenario ------------------------------------------------------------ */

static uint32_t take_u32(const uint8_t **at) {
  const uint32_t value = scl_get_u32(*at);
  *at += 4;
  return value;
}

static const uint8_t *take_bytes(const uint8_t **at, uint32_t *size) {
  *size = take_u32(at);
  const uint8_t *bytes = *at;
  *at += *size;
  return bytes;
}

/* initial u32, endurance u32, worn u8 x sectors, frame, count u32, count x (frame, reply, unknown u32, digest u32) */
static void load(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
    perror(path);
    exit(2);
  }
  const long size = ftell(file);
  uint8_t *bytes = malloc((size_t)size);
  rewind(file);
  if (bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
    perror(path);
    exit(2);
  }
  (void)fclose(file);
  const uint8_t *at = bytes;
  given.initial = take_u32(&at);
  given.endurance = take_u32(&at);
  memcpy(given.worn, at, SECTORS);
  at += SECTORS;
  given.hello = take_bytes(&at, &given.hello_size);
  given.ask = take_bytes(&at, &given.ask_size);
  given.count = take_u32(&at);
  for (uint32_t k = 0; k < given.count; k++) {
    request_t *r = &given.request[k];
    r->frame = take_bytes(&at, &r->frame_size);
    r->reply = take_bytes(&at, &r->reply_size);
    r->unknown = take_u32(&at);
    r->digest = take_u32(&at);
  }
}

static void *share(uintptr_t address, size_t size) {
  const int fixed = address != 0 ? MAP_FIXED_NOREPLACE : 0;
  void *memory =
      mmap((void *)address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  if (memory == MAP_FAILED) {
    perror("powercut: mmap");
    exit(2);
  }
  return memory;
}

static void print_record(void) {
  uint32_t low = NEVER, high = 0;
  for (uint32_t s = 0; s < SECTORS; s++) {
    low = shared->erases[s] < low ? shared->erases[s] : low;
    high = shared->erases[s] > high ? shared->erases[s] : high;
  }
  (void)printf(
      "recorded requests %u operations %u sectors %u erased_min %u erased_max %u relocated %u checkpoints %u "
      "retired %u\n",
      given.count, shared->count, SECTORS, low, high, shared->relocated, shared->checkpoints, shared->retired);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    (void)fprintf(stderr, "usage: powercut SCENARIO record | sweep FIRST STEP TORN SECOND | replay CUT\n");
    return 2;
  }
  (void)setvbuf(stdout, NULL, _IOLBF, 0);
  load(argv[1]);
  shared = share(0, sizeof *shared);
  shared->flash = share(SCL_FLASH_MAPPED_BASE, SCL_FLASH_SIZE);
  record();
  print_record();
  if (strcmp(argv[2], "replay") == 0 && argc == 4) {
    return replay(argv[3]);
  }
  if (strcmp(argv[2], "sweep") == 0 && argc == 7) {
    sweep((uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4]), (uint32_t)atoi(argv[5]), (uint32_t)atoi(argv[6]));
    return totals.lost != 0;
  }
  return 0;
}
