/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `fill SEED REQUESTS STREAMED`: a host that fills its tasks and its buffer to the brim, saves when it likes to, and is never
 * to hear that the store is full.  The board is that of tests/fuzz; test_partition.py holds the other side.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "scl_bytes.h"
#include "scl_learner.h"
#include "scl_replay.h"
#include "scl_seal.h"
#include "scl_state.h"
#include "scl_records.h"

enum { REQUEST = 1 };
enum { HELLO = 1, TASK_BEGIN, SAMPLES, TRAIN, STEP, REPLAY = 8, TASK_END, SAVE = 13, RESET };
enum { RESTART = 0, FACTORY = 1 };

static uint32_t state; /* of the random numbers */
static uint32_t requests, tasks;

static struct {
  uint32_t save, restart, forget, small, streamed; /* of 256 */
} habits;

static uint32_t draw(void) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

static uint32_t below(uint32_t n) { return draw() % n; }

static int happens(uint32_t chance) { return below(256u) < chance; }

static void ask(uint8_t command, const uint8_t *payload, uint32_t size) {
  const fuzz_reply_t *reply = fuzz_request(REQUEST, (uint8_t)requests++, command, payload, size);
  if (reply->restarted) {
    return;
  }
  if (reply->status != 0) {
    (void)printf("request %u, command %u, phase %u, task %u: status %u; %u of %u sectors used\n", requests, command,
                 scl_learner.phase, tasks, reply->status, scl_journal.used, SCL_SECTORS);
    exit(1);
  }
  FUZZ_CHECK(scl_state_size() <= SCL_SNAPSHOT_BYTES, "a snapshot larger than planned");
}

static uint8_t label(void) {
  for (uint32_t c = below(SCL_N_CLASSES);; c = (c + 1u) % SCL_N_CLASSES) {
    if (scl_learner.class_task[c] == scl_learner.task) {
      return (uint8_t)c;
    }
  }
}

static uint8_t *put_x(uint8_t *at) {
  for (uint32_t k = 0; k < SCL_N_IN; k++) {
    *at++ = (uint8_t)draw();
  }
  return at;
}

static uint8_t payload[SCL_MAX_PAYLOAD];

static uint32_t most(uint32_t count, uint32_t head, uint32_t each) {
  const uint32_t fitting = (SCL_MAX_PAYLOAD - head) / each;
  count = happens(habits.small) ? 1u + below(count) : count;
  return count < fitting ? count : fitting;
}

static void upload(void) {
  scl_put_u32(payload, scl_learner.seen + 1u);
  scl_put_u16(payload + 4, 0);
  payload[6] = 0;
  payload[7] = (uint8_t)below(SCL_N_CLASSES);
  ask(REPLAY, payload, (uint32_t)(put_x(payload + 8) - payload));
}

static void begin(void) {
  const uint32_t count = happens(habits.small) ? 1u + below(SCL_TABLE) : SCL_TABLE;
  payload[0] = (uint8_t)happens(habits.streamed);
  scl_put_u16(payload + 1, (uint16_t)count);
  payload[3] = 2;
  payload[4] = (uint8_t)below(SCL_N_CLASSES);
  payload[5] = (uint8_t)below(SCL_N_CLASSES);
  tasks++;
  ask(TASK_BEGIN, payload, 6);
}

static void send_samples(void) {
  const uint32_t each = 1u + SCL_N_IN, left = (uint32_t)scl_learner.n - scl_learner.received;
  const uint32_t count = most(left < 255u ? left : 255u, 3u, each);
  uint8_t *at = payload + 3;
  scl_put_u16(payload, scl_learner.received);
  payload[2] = (uint8_t)count;
  for (uint32_t k = 0; k < count; k++) {
    *at++ = label();
    at = put_x(at);
  }
  ask(SAMPLES, payload, (uint32_t)(at - payload));
}

static void train(void) {
  scl_put_u16(payload, 0);
  payload[2] = 0;
  if (scl_learner.mode == SCL_MODE_RESIDENT) {
    scl_put_u16(payload, (uint16_t)most(SCL_STEPS_PER_REQUEST, 0, 1));
    ask(TRAIN, payload, 3);
    return;
  }
  if (!scl_learner.shuffled) {
    ask(TRAIN, payload, 3);
  }
  uint32_t left = (uint32_t)scl_learner.n - scl_learner.pos;
  left = left < SCL_STEPS_PER_REQUEST ? left : SCL_STEPS_PER_REQUEST;
  const uint32_t count = most(left < 255u ? left : 255u, 2u, 3u + SCL_N_IN);
  uint8_t *at = payload;
  *at++ = (uint8_t)count;
  for (uint32_t k = 0; k < count; k++, at = put_x(at + 3)) {
    scl_put_u16(at, scl_table.id[scl_learner.pos + k]);
    at[2] = label();
  }
  *at++ = 0;
  ask(STEP, payload, (uint32_t)(at - payload));
}

static void reset(uint8_t kind) {
  payload[0] = kind;
  scl_seal_nonce(payload + 1);
  ask(RESET, payload, 1u + SCL_NONCE_BYTES);
  ask(HELLO, NULL, 0);
}

static void next(void) {
  if (happens(habits.save)) {
    ask(SAVE, NULL, 0);
  }
  if (scl_learner.task == SCL_NO_TASK - 1u || happens(habits.restart)) {
    reset(scl_learner.task == SCL_NO_TASK - 1u || happens(habits.forget) ? FACTORY : RESTART);
  }
  switch (scl_learner.phase) {
    case SCL_PHASE_IDLE:
      if (scl_learner.filled < scl_replay_capacity() && happens(128)) {
        upload();
      } else {
        begin();
      }
      break;
    case SCL_PHASE_FILLING:
      send_samples();
      break;
    case SCL_PHASE_TRAINING:
      train();
      break;
    default:
      ask(TASK_END, NULL, 0);
  }
}

int main(int argc, char **argv) {
  if (argc != 4) {
    return 2;
  }
  state = (uint32_t)atoi(argv[1]);
  const uint32_t chances[] = {0, 8, 64, 200};
  habits.save = chances[below(4)];
  habits.small = chances[below(4)];
  habits.restart = below(3) == 0 ? 6u : 0u;
  habits.forget = 40;
  habits.streamed = atoi(argv[3]) ? 256u : below(2) * 60u; /* of streamed tasks no samples are kept */
  memset(fuzz_flash(), (int)SCL_FLASH_ERASED, SCL_FLASH_SIZE);
  fuzz_boot();
  ask(HELLO, NULL, 0);
  while (requests < (uint32_t)atoi(argv[2])) {
    next();
  }
  uint32_t low, high;
  scl_journal_wear(&low, &high);
  (void)printf("%u requests, %u tasks, %u erases of each sector\n", requests, tasks, low);
  return 0;
}
