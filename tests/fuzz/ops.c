/* SPDX-License-Identifier: Apache-2.0 */
#include "ops.h"

#include <string.h>

#include "restored.h"
#include "scl_learner.h"
#include "scl_seal.h"
#include "scl_records.h"

/* docs/spec/protocol.md */
enum { REQUEST = 1, NEXT = 2 };
enum {
  HELLO = 1,
  TASK_BEGIN,
  SAMPLES,
  TRAIN,
  STEP,
  EVALUATE,
  PREDICT,
  REPLAY,
  TASK_END,
  DIGEST,
  DUMP,
  STATISTICS,
  SAVE,
  RESET
};
enum { OK = 0, BAD_FRAME = 1, OUT_OF_TURN = 11 };

static struct {
  uint8_t bytes[SCL_MAX_PAYLOAD + 8u];
  uint32_t size;
  uint8_t command, kind, sequence;
} sent; /* the last request */

static uint8_t next_kind;  /* of the next request */
static int8_t turn;        /* added to its number */

uint8_t fuzz_u8(fuzz_input_t *in) {
  if (in->left == 0) {
    return 0;
  }
  in->left--;
  return *in->at++;
}

uint16_t fuzz_u16(fuzz_input_t *in) {
  const uint32_t low = fuzz_u8(in);
  return (uint16_t)(low | (uint32_t)fuzz_u8(in) << 8);
}

uint32_t fuzz_u32(fuzz_input_t *in) {
  const uint32_t low = fuzz_u16(in);
  return low | (uint32_t)fuzz_u16(in) << 16;
}

/* ---- requests ---------------------------------------------------------------- */

static void begin(uint8_t command) {
  sent.command = command;
  sent.size = 0;
}

static void put(uint32_t byte) {
  if (sent.size < sizeof sent.bytes) {
    sent.bytes[sent.size++] = (uint8_t)byte;
  }
}

static void put_u16(uint32_t v) {
  put(v);
  put(v >> 8);
}

/* A sample that the seed gives, about a third zeros. */
static void put_x(uint32_t seed) {
  uint32_t random = seed * 2654435761u + 1u;
  for (uint32_t k = 0; k < SCL_N_IN; k++) {
    random = random * 1664525u + 1013904223u;
    put(random >> 30 ? random >> 16 : 0u);
  }
}

void fuzz_start(void) {
  fuzz_boot();
  fuzz_check_restored(); /* asks hello: before that the board refuses all but this and a reset */
}

static const fuzz_reply_t *again(void) {
  static fuzz_reply_t reply; /* asking hello overwrites what fuzz_request returns */
  reply = *fuzz_request(sent.kind, sent.sequence, sent.command, sent.bytes, sent.size);
  if (reply.restarted) {
    fuzz_check_restored();
  }
  return &reply;
}

static const fuzz_reply_t *ask(void) {
  sent.kind = next_kind;
  sent.sequence = (uint8_t)(sent.sequence + 1 + turn);
  next_kind = REQUEST;
  turn = 0;
  return again();
}

static const fuzz_reply_t *ask_plainly(uint8_t command) {
  begin(command);
  next_kind = REQUEST;
  turn = 0;
  return ask();
}

static uint32_t digest(void) {
  const fuzz_reply_t *reply = ask_plainly(DIGEST);
  FUZZ_CHECK(reply->status == OK && reply->size == 12, "no digest");
  return (uint32_t)reply->payload[0] | (uint32_t)reply->payload[1] << 8 | (uint32_t)reply->payload[2] << 16 |
         (uint32_t)reply->payload[3] << 24;
}

/* A label of the task's, or any. */
static uint32_t label(uint8_t choice) {
  if (choice >= 0xF0u) {
    return choice;
  }
  for (uint32_t k = 0; k < SCL_N_CLASSES; k++) {
    const uint32_t c = (choice + k) % SCL_N_CLASSES;
    if (scl_learner.class_task[c] == scl_learner.task) {
      return c;
    }
  }
  return choice % SCL_N_CLASSES;
}

static void build_task_begin(fuzz_input_t *in) {
  const uint8_t mode = fuzz_u8(in), count = fuzz_u8(in);
  put(mode < 0xF0u ? mode & 1u : mode);
  put_u16(count < 0xF0u ? count % SCL_TABLE + 1u : fuzz_u16(in));
  const uint8_t classes = fuzz_u8(in);
  put(classes < 0xF0u ? classes % 3u + 1u : classes);
  for (uint32_t k = 0; k < (classes < 0xF0u ? classes % 3u + 1u : classes % 8u); k++) {
    const uint8_t class = fuzz_u8(in);
    put(class < 0xF0u ? class % SCL_N_CLASSES : class);
  }
}

static uint32_t fitting(uint32_t count, uint32_t head, uint32_t each) {
  const uint32_t most = (SCL_MAX_PAYLOAD - head) / each;
  return count < most ? count : most;
}

static void build_samples(fuzz_input_t *in) {
  const uint8_t wish = fuzz_u8(in), seed = fuzz_u8(in);
  uint32_t count = fitting(wish < 0xF0u ? wish % 16u : 255u, 3u, 1u + SCL_N_IN);
  uint32_t first = scl_learner.received;
  if (wish < 0xE0u && count > (uint32_t)scl_learner.n - first) {
    count = (uint32_t)scl_learner.n - first;
  }
  put_u16(wish % 16u == 15u ? fuzz_u16(in) : first);
  put(count);
  for (uint32_t k = 0; k < count; k++) {
    put(label((uint8_t)(k % 4u == 3u ? fuzz_u8(in) : seed + k)));
    put_x(seed + k);
  }
}

static void build_train(fuzz_input_t *in) {
  const uint8_t steps = fuzz_u8(in), flags = fuzz_u8(in);
  const int streamed = scl_learner.mode == SCL_MODE_STREAMED;
  put_u16(steps >= 0xF0u ? fuzz_u16(in) : streamed ? 0u : steps % (SCL_STEPS_PER_REQUEST + 1u));
  put(flags < 0xF0u ? flags & 1u : flags);
}

static void build_step(fuzz_input_t *in) {
  const uint8_t wish = fuzz_u8(in), seed = fuzz_u8(in);
  uint32_t count = fitting(wish % 16u, 2u, 3u + SCL_N_IN);
  if (wish < 0xF0u && count > (uint32_t)scl_learner.n - scl_learner.pos) {
    count = (uint32_t)scl_learner.n - scl_learner.pos;
  }
  put(count);
  for (uint32_t k = 0; k < count; k++) {
    const uint32_t pos = scl_learner.pos + k;
    put_u16(seed < 0xF0u && pos < SCL_TABLE ? scl_table.id[pos] : fuzz_u16(in));
    put(label((uint8_t)(seed + k)));
    put_x(seed + k);
  }
  put(wish & 1u);
}

static void build_evaluate(fuzz_input_t *in) {
  const uint8_t wish = fuzz_u8(in), seed = fuzz_u8(in);
  const uint32_t count = fitting(wish, 1u, 1u + SCL_N_IN);
  put(count);
  for (uint32_t k = 0; k < count; k++) {
    put(seed < 0xF0u ? (seed + k) % SCL_N_CLASSES : seed);
    put_x(seed + k);
  }
}

static void build_replay(fuzz_input_t *in) {
  const uint8_t seen = fuzz_u8(in), id = fuzz_u8(in), task = fuzz_u8(in), class = fuzz_u8(in);
  put_u16(seen < 0xF0u ? seen : 0xFFFFu);
  put_u16(seen < 0xF0u ? 0u : 0xFFFFu);
  put_u16(id);
  put(task < 0xF0u ? task % 4u : task);
  put(class < 0xF0u ? class % SCL_N_CLASSES : class);
  put_x(id);
}

static void build_dump(fuzz_input_t *in) {
  const uint8_t region = fuzz_u8(in);
  put_u16(region < 0xF0u ? region % 40u : fuzz_u16(in));
  const uint32_t offset = fuzz_u16(in);
  put_u16(offset);
  put_u16(region == 0xFFu ? offset : 0u);
  put_u16(fuzz_u8(in) * 5u);
}

static void build_any(fuzz_input_t *in) {
  sent.command = fuzz_u8(in);
  const uint32_t size = fuzz_u8(in) * (fuzz_u8(in) % 8u + 1u);
  for (uint32_t k = 0; k < size && sent.size < SCL_MAX_PAYLOAD; k++) {
    put(fuzz_u8(in));
  }
}

/* The request with one fault: a byte less, one more, one that is another. */
static void spoil(fuzz_input_t *in) {
  const uint8_t how = fuzz_u8(in);
  if (how < 0x40u && sent.size > 0) {
    sent.size--;
  } else if (how < 0x80u && sent.size < SCL_MAX_PAYLOAD) {
    put(how);
  } else if (sent.size > 0) {
    sent.bytes[fuzz_u16(in) % sent.size] = fuzz_u8(in);
  }
}

/* As hello says it. */
static void put_nonce(void) {
  uint8_t nonce[8];
  scl_seal_nonce(nonce);
  for (uint32_t k = 0; k < sizeof nonce; k++) {
    put(nonce[k]);
  }
}

static void build(fuzz_input_t *in, uint8_t command) {
  static void (*const builders[])(fuzz_input_t *in) = {
      [TASK_BEGIN] = build_task_begin, [SAMPLES] = build_samples, [TRAIN] = build_train, [STEP] = build_step,
      [EVALUATE] = build_evaluate,     [REPLAY] = build_replay,   [DUMP] = build_dump};
  begin(command);
  if (command == PREDICT) {
    put_x(fuzz_u8(in));
  } else if (command == RESET) {
    put(fuzz_u8(in) % 3u);
    put_nonce();
  } else if (command < sizeof builders / sizeof builders[0] && builders[command] != NULL) {
    builders[command](in);
  }
}

/* ---- a task from its beginning to its end --------------------------------------- */

/* What the learner's phase asks for. */
static void build_next(uint8_t seed, uint8_t mode) {
  const uint8_t fields[] = {1, seed, seed, seed};
  fuzz_input_t in = {fields, sizeof fields};
  if (scl_learner.phase == SCL_PHASE_IDLE) {
    begin(TASK_BEGIN);
    put(mode);
    put_u16(seed % SCL_TABLE + 1u);
    put(2);
    put(seed % SCL_N_CLASSES);
    put((seed + 1u) % SCL_N_CLASSES);
  } else if (scl_learner.phase == SCL_PHASE_FILLING) {
    build(&in, SAMPLES);
  } else if (scl_learner.phase == SCL_PHASE_TRAINED) {
    begin(TASK_END);
  } else if (scl_learner.mode == SCL_MODE_STREAMED && scl_learner.shuffled) {
    build(&in, STEP);
  } else {
    begin(TRAIN);
    put_u16(scl_learner.mode == SCL_MODE_STREAMED ? 0u : seed % 4u + 2u);
    put(1);
  }
}

int fuzz_learn(uint8_t seed, uint8_t mode, uint32_t requests) {
  for (uint32_t k = 0; k < requests; k++) {
    build_next(seed, mode);
    const uint8_t command = sent.command;
    const fuzz_reply_t *reply = ask();
    if (reply->restarted || reply->status != OK || command == TASK_END) {
      return 1;
    }
  }
  return 0;
}

void fuzz_learn_all(uint8_t seed, uint8_t mode) {
  /* A sample or a step in each request, and shuffle and end of each epoch. */
  FUZZ_CHECK(fuzz_learn(seed, mode, 2u * SCL_TABLE * (SCL_EPOCHS + 1u)), "a task without an end");
}

/* ---- operations ----------------------------------------------------------------- */

enum {
  OP_RAW = RESET + 1,
  OP_ANY,
  OP_SPOILT,
  OP_AGAIN,
  OP_NEXT,
  OP_LEARN,
  OP_CUT,
  OP_FAULT,
  OP_ROT,
  OP_QUESTION,
  OP_COUNT
};
#define SILENT 0xE0u /* from here on OP_CUT: the host does not ask hello */

static void raw(fuzz_input_t *in) {
  uint8_t bytes[256];
  const uint32_t size = fuzz_u8(in);
  for (uint32_t k = 0; k < size; k++) {
    bytes[k] = fuzz_u8(in);
  }
  bytes[size] = 0; /* the next request starts over */
  if (fuzz_send(bytes, size + 1u)) {
    fuzz_check_restored();
  } else {
    (void)fuzz_check_said();
  }
}

static void fault(fuzz_input_t *in) {
  const uint8_t which = fuzz_u8(in);
  uint32_t *const counters[] = {&fuzz_faults.fail, &fuzz_faults.torn, &fuzz_faults.weak};
  *counters[which % 3u] = fuzz_u8(in) + 1u;
}

static void question(fuzz_input_t *in) {
  const uint8_t bytes[] = {0, '?', fuzz_u8(in) & 1u ? '\r' : '\n'};
  (void)fuzz_send(bytes, sizeof bytes);
  FUZZ_CHECK(fuzz_check_said() == 0 && fuzz_said.size > 20u, "no line of text");
}

static void operate(fuzz_input_t *in) {
  const uint8_t choice = fuzz_u8(in);
  const uint8_t op = choice % OP_COUNT;
  switch (op) {
    case 0:
    case OP_RAW:
      raw(in);
      break;
    case OP_ANY:
      begin(0);
      build_any(in);
      (void)ask();
      break;
    case OP_SPOILT:
      build(in, fuzz_u8(in) % (RESET + 1u));
      spoil(in);
      (void)ask();
      break;
    case OP_AGAIN:
      (void)again();
      break;
    case OP_NEXT:
      next_kind = NEXT;
      turn = (int8_t)(fuzz_u8(in) >= 0xF0u);
      break;
    case OP_LEARN: {
      const uint8_t seed = fuzz_u8(in);
      fuzz_learn_all(seed, fuzz_u8(in) & 1u);
      break;
    }
    case OP_CUT:
      fuzz_boot();
      if (choice < SILENT) {
        fuzz_check_restored();
      }
      break;
    case OP_FAULT:
      fault(in);
      break;
    case OP_ROT:
      fuzz_flash()[fuzz_u32(in) % SCL_FLASH_SIZE] ^= (uint8_t)(1u << fuzz_u8(in) % 8u);
      break;
    case OP_QUESTION:
      question(in);
      break;
    default:
      build(in, op);
      (void)ask();
      break;
  }
}

void fuzz_operate(fuzz_input_t *in, uint32_t most) {
  memset(&fuzz_faults, 0, sizeof fuzz_faults);
  memset(&sent, 0, sizeof sent);
  sent.command = HELLO;
  sent.kind = REQUEST;
  next_kind = REQUEST;
  turn = 0;
  for (uint32_t k = 0; k < most && in->left > 0; k++) {
    operate(in);
  }
  memset(&fuzz_faults, 0, sizeof fuzz_faults);
}

/* ---- what holds after all of it ----------------------------------------------------- */

static struct {
  uint32_t initial, taught;
} fresh;

static void factory_reset(void) {
  begin(RESET);
  put(1);
  put_nonce();
  const fuzz_reply_t *reply = ask();
  FUZZ_CHECK(!reply->restarted && reply->status == OK, "factory reset was refused");
}

static uint32_t taught(void) {
  fuzz_learn_all(6, 0);
  fuzz_learn_all(9, 1);
  FUZZ_CHECK(scl_learner.task == 2 && scl_learner.phase == SCL_PHASE_IDLE, "a board as new did not learn two tasks");
  return digest();
}

void fuzz_remember(void) {
  memset(fuzz_flash(), 0xFF, SCL_FLASH_SIZE);
  fuzz_start();
  next_kind = REQUEST;
  fresh.initial = digest();
  fresh.taught = taught();
}

/* What a save that was not refused saved is there after a power cut; a record that rotted shows in the digest's refusal. */
static void check_save(void) {
  const fuzz_reply_t *reply = ask_plainly(SAVE);
  if (reply->status != OK) {
    return;
  }
  const uint32_t before = digest();
  fuzz_start();
  FUZZ_CHECK(scl_journal.snapshot != 0, "a save was lost");
  FUZZ_CHECK(digest() == before, "a save came back as another state");
}

void fuzz_recover(void) {
  FUZZ_CHECK(ask_plainly(HELLO)->status == OK, "no hello");
  check_save();
  factory_reset();
  FUZZ_CHECK(digest() == fresh.initial, "factory reset: not the initial state");
  fuzz_start();
  FUZZ_CHECK(scl_journal.snapshot == 0 && digest() == fresh.initial, "factory reset: something came back");
  FUZZ_CHECK(taught() == fresh.taught, "factory reset: learns something else");
  fuzz_start();
  FUZZ_CHECK(digest() == fresh.taught, "factory reset: what was learnt after it is lost");
}
