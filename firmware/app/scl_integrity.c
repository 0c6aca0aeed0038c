/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_integrity.h"

#include "scl_board.h"
#include "scl_learner.h"
#include "scl_net.h"
#include "scl_port.h"
#include "scl_records.h"
#include "scl_train.h"

#define N_FIXED 4u
#define N_IMAGE SCL_PORT_IMAGES
#define N_PARTS (N_FIXED + SCL_N_REGIONS + SCL_N_TRANSIENT + N_IMAGE)
#define KEPT_DAMAGED 0x10000u
#define STEP_WORDS 64u        /* compared in a training step */
#define BACKGROUND_WORDS 256u /* while no byte comes, and in a request that only reads */

/* A range of constants also holds what a sanitizer put between them, and allows nobody to read. */
#ifdef __SANITIZE_ADDRESS__
#define READS_ANYTHING __attribute__((no_sanitize_address))
#else
#define READS_ANYTHING
#endif

scl_health_t scl_health;

typedef struct {
  const uint8_t *data;
  uint32_t size;
  uint32_t kind; /* scl_parts_t */
} part_t;

static part_t image[N_IMAGE];
static uint32_t seals[N_PARTS];
static uint8_t closed[N_PARTS]; /* the seal holds */

/* Where the background pass is: bytes done of a part, and their sum. */
static struct {
  uint32_t part, done, sum;
} cursor;

/* The capacity of a list, not its present size: that is in RAM too, and may itself be damaged. */
static part_t region_part(const scl_region_t *r, uint32_t kind) {
  return (part_t){r->data, r->entries == NULL ? r->size : r->most * r->size, kind};
}

static part_t part_at(uint32_t k) {
  const uint32_t n_transient =
      SCL_N_TRANSIENT; /* 0, which comparisons with the constant itself would be warned about */
  const part_t fixed[N_FIXED] = {{(const uint8_t *)&scl_learner, sizeof scl_learner, SCL_PARTS_BOOKS},
                                 {(const uint8_t *)&scl_journal, sizeof scl_journal, SCL_PARTS_BOOKS},
                                 {(const uint8_t *)&scl_table, sizeof scl_table, SCL_PARTS_TABLES},
                                 {(const uint8_t *)&scl_slots, sizeof scl_slots, SCL_PARTS_TABLES}};
  if (k < N_FIXED) {
    return fixed[k];
  }
  k -= N_FIXED;
  if (k < SCL_N_REGIONS) {
    return region_part(&scl_regions[k], scl_regions[k].mask ? SCL_PARTS_MASKS : SCL_PARTS_LEARNT);
  }
  k -= SCL_N_REGIONS;
  if (k < n_transient) {
    return region_part(&scl_transient_regions[k], SCL_PARTS_LEARNT);
  }
  return image[k - n_transient];
}

static inline uint32_t add(uint32_t sum, uint32_t value) { return (sum >> 1 | sum << 31) + value; }

/*
 * For a given value, add() maps sums to sums one to one, and for a given sum values to sums: when one word has changed,
 * whatever bits of it, the sum behind it differs, and so does every sum after that.
 */
READS_ANYTHING static uint32_t sum_bytes(uint32_t sum, const uint8_t *byte, uint32_t size) {
  typedef uint32_t word_t __attribute__((may_alias)); /* whatever lies there */
  for (; size > 0 && (uintptr_t)byte % 4u != 0; size--) {
    sum = add(sum, *byte++);
  }
  const word_t *word = (const word_t *)(const void *)byte;
  for (; size >= 32u; size -= 32u, word += 8) {
    SCL_UNROLL_ALL
    for (uint32_t k = 0; k < 8u; k++) {
      sum = add(sum, word[k]);
    }
  }
  for (; size >= 4u; size -= 4u) {
    sum = add(sum, *word++);
  }
  byte = (const uint8_t *)word;
  for (; size > 0; size--) {
    sum = add(sum, *byte++);
  }
  return sum;
}

/* Discards what the background pass has summed of these parts; in others it continues. */
static void begin_part_again(uint32_t parts) {
  if ((part_at(cursor.part).kind & parts) != 0) {
    cursor.done = cursor.sum = 0;
  }
}

static void seal(uint32_t parts) {
  for (uint32_t k = 0; k < N_PARTS; k++) {
    const part_t p = part_at(k);
    if ((p.kind & parts) != 0) {
      seals[k] = sum_bytes(0, p.data, p.size);
      closed[k] = 1;
    }
  }
  begin_part_again(parts);
}

static void open(uint32_t parts) {
  for (uint32_t k = 0; k < N_PARTS; k++) {
    if ((part_at(k).kind & parts) != 0) {
      closed[k] = 0;
    }
  }
  begin_part_again(parts);
}

static int is_closed(uint32_t parts) {
  for (uint32_t k = 0; k < N_PARTS; k++) {
    if ((part_at(k).kind & parts) != 0 && !closed[k]) {
      return 0;
    }
  }
  return 1;
}

static scl_status_t check(uint32_t parts) {
  for (uint32_t k = 0; k < N_PARTS; k++) {
    const part_t p = part_at(k);
    if ((p.kind & parts) != 0 && closed[k] && sum_bytes(0, p.data, p.size) != seals[k]) {
      return SCL_ERR_DAMAGED;
    }
  }
  return SCL_OK;
}

static void next_part(void) {
  cursor.part = cursor.part + 1u < N_PARTS ? cursor.part + 1u : 0u;
  cursor.done = cursor.sum = 0;
}

/* The sum of the cursor's part is complete. */
static scl_status_t conclude(void) {
  const uint32_t k = cursor.part;
  const uint32_t sum = cursor.sum;
  next_part();
  if (closed[k] && seals[k] != sum) {
    return SCL_ERR_DAMAGED;
  }
  seals[k] = sum;
  closed[k] = 1;
  return SCL_OK;
}

static scl_status_t slice(uint32_t parts, uint32_t words) {
  part_t p = part_at(cursor.part);
  for (uint32_t k = 0; (p.kind & parts) == 0 || p.size == 0; k++) {
    if (k == N_PARTS) {
      return SCL_OK; /* an empty part, such as the masks of a dense network */
    }
    next_part();
    p = part_at(cursor.part);
  }
  /* Ends where a word ends, so that the sum is the same however the part is cut. */
  const uint8_t *from = p.data + cursor.done;
  const uint32_t most = 4u * words - (uint32_t)((uintptr_t)from % 4u);
  const uint32_t left = p.size - cursor.done;
  const uint32_t n = left < most ? left : most;
  cursor.sum = sum_bytes(cursor.sum, from, n);
  cursor.done += n;
  return n == left ? conclude() : SCL_OK;
}

/* What is open is closed first. */
static scl_status_t background(void) {
  return slice(is_closed(SCL_PARTS_STATE) ? SCL_PARTS_ALL : SCL_PARTS_STATE, BACKGROUND_WORDS);
}

/*
 * Taking the sums of all that a step changes costs about as much as a tenth of a step.  So it is done once in as many
 * steps as a request can ask for, at the end of an epoch, and when the board has time; what is open is not compared.
 */
static uint32_t steps_at_seal;
static uint8_t idled; /* no byte came for a while: time enough to compare everything before the next request */

scl_status_t scl_integrity_begin(uint32_t parts) {
  const int stepping = parts == SCL_PARTS_STEP;
  uint32_t before = SCL_PARTS_BOOKS | (stepping ? 0u : parts);
  if (idled || (parts & SCL_PARTS_MASKS) != 0 || (stepping && is_closed(parts))) {
    before = SCL_PARTS_STATE;
  }
  scl_status_t status = check(before);
  if (status == SCL_OK && parts == 0 && !idled) {
    status = background();
  }
  if (status == SCL_OK && parts != 0) {
    open(parts & SCL_PARTS_STEP);
  }
  idled = 0;
  return status;
}

void scl_integrity_end(uint32_t parts) {
  if (parts == 0) {
    return;
  }
  const int due = scl_meter.steps - steps_at_seal >= SCL_STEPS_PER_REQUEST || scl_learner.pos == 0;
  if (parts != SCL_PARTS_STEP || due) {
    seal(parts);
    steps_at_seal = scl_meter.steps;
  } else {
    seal(SCL_PARTS_BOOKS);
  }
}

scl_status_t scl_integrity_step(void) { return slice(SCL_PARTS_MASKS | SCL_PARTS_IMAGE, STEP_WORDS); }

scl_status_t scl_integrity_check_state(void) { return check(SCL_PARTS_STATE); }

scl_status_t scl_integrity_check_masks(void) { return check(SCL_PARTS_MASKS); }

void scl_integrity_masks_changed(void) { seal(SCL_PARTS_MASKS); }

scl_status_t scl_integrity_idle(void) {
  idled = 1;
  return background();
}

void scl_integrity_start(void) {
  const uint32_t kept = scl_port_kept();
  scl_health.faults = (uint16_t)kept;
  if ((kept & KEPT_DAMAGED) != 0) {
    scl_health.health |= SCL_HEALTH_RESTORED;
  }
  scl_port_keep(scl_health.faults);
  for (uint32_t k = 0; k < N_IMAGE; k++) {
    const void *begin = NULL;
    const uint32_t size = scl_port_image(k, &begin);
    image[k] = (part_t){begin, size, SCL_PARTS_IMAGE};
  }
  seal(SCL_PARTS_ALL);
}

void scl_integrity_restart(void) {
  const uint32_t faults = scl_health.faults;
  scl_port_keep(KEPT_DAMAGED | (faults < 0xFFFFu ? faults + 1u : faults));
  scl_port_restart();
}
