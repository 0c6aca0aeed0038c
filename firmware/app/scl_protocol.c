/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_protocol.h"

#include <string.h>

#include "scl_bytes.h"
#include "scl_checkpoint.h"
#include "scl_frame.h"
#include "scl_integrity.h"
#include "scl_net.h"
#include "scl_port.h"
#include "scl_seal.h"
#include "scl_state.h"
#include "scl_task.h"
#include "scl_train.h"

#define KIND_REQUEST 0x01u
#define KIND_NEXT 0x02u /* a request that is executed only in its turn */
#define KIND_REPLY 0x81u
#define CLASS_BYTES (1u + 2u * SCL_N_CLASSES)
#define TRAIN_HEAD SCL_WIRE_TRAINING_SIZE
#define MAX_STEPS SCL_STEPS_PER_REQUEST

_Static_assert(TRAIN_HEAD + 4u + 4u * MAX_STEPS <= SCL_MAX_PAYLOAD, "the reply has a digest of each step");

/* Writes a reply's payload step by step; a reply never exceeds SCL_MAX_PAYLOAD (each command checks its counts). */
typedef struct {
  uint8_t *bytes;
  uint32_t size;
} out_t;

typedef struct {
  const uint8_t *bytes;
  uint32_t size;
} in_t;

_Static_assert(SCL_LINE_PAYLOAD == SCL_MAX_PAYLOAD + SCL_SEAL_BYTES, "generator and core agree about seals");
_Static_assert(SCL_MAX_PAYLOAD <= 65535u, "hello reports it in 16 bits");

static scl_frame_t frame;
/*
 * The last reply is at the beginning.  Where several requests may be under way, the replies before it are kept at the
 * end as far as they fit, the newest last: any of them may be lost on the line and asked for again.
 */
static uint8_t reply[SCL_FRAME_BYTES];
static uint32_t reply_size; /* 0: nothing was answered yet */
static uint32_t last_request; /* checksum of the request that `reply` answers */
static uint32_t kept = SCL_FRAME_BYTES; /* where the replies before the last begin */
static uint8_t in_turn; /* number of the next request of kind NEXT */
static uint8_t turns_valid; /* the request before it was executed */
static uint8_t restored_state;
static uint8_t restart_pending;
static uint8_t damaged; /* a bit has flipped: the board starts again after the reply */
static uint8_t greeted; /* the host knows where the board stands since it started */

static const uint8_t model_hash[8] = SCL_MODEL_HASH;
static const uint8_t version[3] = {SCL_VERSION_MAJOR, SCL_VERSION_MINOR, SCL_VERSION_PATCH};

/* A reply is dozens of these: in line they take a kilobyte of a small board's flash. */
#define COMPACT __attribute__((noinline))

static COMPACT void put_u8(out_t *o, uint32_t v) { o->bytes[o->size++] = (uint8_t)v; }

static COMPACT void put_u16(out_t *o, uint32_t v) {
  scl_put_u16(o->bytes + o->size, v);
  o->size += 2u;
}

static COMPACT void put_u32(out_t *o, uint32_t v) {
  scl_put_u32(o->bytes + o->size, v);
  o->size += 4u;
}

static void put_u64(out_t *o, const uint64_t *v) {
  scl_put_u64(o->bytes + o->size, *v);
  o->size += 8u;
}

static void put_bytes(out_t *o, const void *data, uint32_t size) {
  memcpy(o->bytes + o->size, data, size);
  o->size += size;
}

/* The fields of a record (spec/wire.toml), each with the value that a macro of its name gives: prefix_field. */
#define PUT_HELLO_U8(field) put_u8(o, HELLO_##field);
#define PUT_HELLO_U16(field) put_u16(o, HELLO_##field);
#define PUT_HELLO_U32(field) put_u32(o, HELLO_##field);
#define PUT_HELLO_BYTES(field, size) put_bytes(o, HELLO_##field, size);
#define HELLO_protocol SCL_WIRE_VERSION
#define HELLO_version version
#define HELLO_model_hash model_hash
#define HELLO_board board
#define HELLO_n_in SCL_N_IN
#define HELLO_n_classes SCL_N_CLASSES
#define HELLO_n_layers SCL_N_LAYERS
#define HELLO_input SCL_INPUT_SIGNED
#define HELLO_max_payload SCL_MAX_PAYLOAD
#define HELLO_steps_per_request SCL_STEPS_PER_REQUEST
#define HELLO_window SCL_WINDOW
#define HELLO_table_capacity SCL_TABLE
#define HELLO_replay_capacity SCL_CAPACITY
#define HELLO_sector SCL_FLASH_SECTOR
#define HELLO_store_size SCL_FLASH_SIZE
#define HELLO_program_unit SCL_FLASH_PROGRAM_UNIT
#define HELLO_step l->step
#define HELLO_task l->task
#define HELLO_phase l->phase
#define HELLO_mode l->mode
#define HELLO_shuffled l->shuffled
#define HELLO_epoch l->epoch
#define HELLO_pos l->pos
#define HELLO_n l->n
#define HELLO_n_start l->n_start
#define HELLO_received l->received
#define HELLO_filled l->filled
#define HELLO_snapshot scl_journal.snapshot
#define HELLO_restored restored_state
#define HELLO_reset_reason (uint32_t)scl_port_reset_reason()
#define HELLO_nonce nonce
#define HELLO_keyed SCL_KEYED
#define HELLO_health scl_health.health | (scl_journal.counts.lost_saves != 0 ? SCL_HEALTH_LOST_SAVE : 0u)
#define HELLO_faults scl_health.faults

static scl_status_t do_hello(in_t in, out_t *o) {
  static const char board[16] = SCL_BOARD_NAME;
  const scl_learner_t *l = &scl_learner;
  uint8_t nonce[SCL_NONCE_BYTES];
  if (in.size != 0) {
    return SCL_ERR_BAD_LENGTH;
  }
  scl_seal_nonce(nonce);
  SCL_WIRE_HELLO(PUT_HELLO_U8, PUT_HELLO_U16, PUT_HELLO_U32, PUT_HELLO_BYTES)
  greeted = 1;
  return SCL_OK;
}

static scl_status_t do_task_begin(in_t in, out_t *o) {
  (void)o;
  if (in.size < 4u || (in.size != 4u + in.bytes[3] && in.size != 4u + in.bytes[3] + sizeof model_hash)) {
    return SCL_ERR_BAD_LENGTH;
  }
  const uint8_t *made_for = in.bytes + 4u + in.bytes[3];
  if (made_for != in.bytes + in.size && memcmp(made_for, model_hash, sizeof model_hash) != 0) {
    return SCL_ERR_OTHER_MODEL;
  }
  return scl_train_begin(in.bytes[0], scl_get_u16(in.bytes + 1), in.bytes + 4, in.bytes[3]);
}

/* `count` labels, `each` bytes apart. */
static scl_status_t check_labels(const uint8_t *labels, uint32_t each, uint32_t count) {
  scl_status_t status = SCL_OK;
  for (uint32_t k = 0; k < count && status == SCL_OK; k++) {
    status = scl_train_check_label(labels[k * each]);
  }
  return status;
}

static scl_status_t do_samples(in_t in, out_t *o) {
  const uint32_t each = 1u + SCL_N_IN;
  if (in.size < 3u || in.size != 3u + in.bytes[2] * each) {
    return SCL_ERR_BAD_LENGTH;
  }
  const uint32_t first = scl_get_u16(in.bytes);
  const uint32_t count = in.bytes[2];
  if (scl_learner.phase != SCL_PHASE_FILLING) {
    return SCL_ERR_BAD_STATE;
  }
  if (first != scl_learner.received) {
    return SCL_ERR_WRONG_ORDER;
  }
  if (first + count > scl_learner.n) {
    return SCL_ERR_TOO_MANY;
  }
  /* All labels first: a refused request changes nothing. */
  scl_status_t status = check_labels(in.bytes + 3, each, count);
  for (uint32_t k = 0; k < count && status == SCL_OK; k++) {
    const uint8_t *s = in.bytes + 3 + k * each;
    status = scl_train_fill(first + k, s[0], (const scl_input_t *)(s + 1));
  }
  if (status != SCL_OK) {
    scl_learner.received = (uint16_t)first;
  }
  put_u16(o, scl_learner.received);
  return status;
}

/* A training request that the flash cut short is done in part: return to the last save, as after a power cut. */
static scl_status_t all_or_recover(scl_status_t status) {
  if (status != SCL_OK) {
    restored_state = (uint8_t)scl_checkpoint_recover();
    scl_integrity_masks_changed();
  }
  return status;
}

#define PUT_TRAINING_U8(field) put_u8(&head, TRAINING_##field);
#define PUT_TRAINING_U16(field) put_u16(&head, TRAINING_##field);
#define PUT_TRAINING_U32(field) put_u32(&head, TRAINING_##field);
#define TRAINING_done done
#define TRAINING_epoch l->epoch
#define TRAINING_pos l->pos
#define TRAINING_n l->n
#define TRAINING_phase l->phase
#define TRAINING_flags (digest ? 1u : 0u)
#define TRAINING_wrong progress->wrong
#define TRAINING_loss progress->loss

/* The head of a training reply goes in front of the rolling digests when all steps are done. */
static scl_status_t training_reply(out_t *o, uint32_t done, int digest, const scl_progress_t *progress) {
  const scl_learner_t *l = &scl_learner;
  uint32_t state = 0;
  if (digest) {
    const uint32_t start = scl_port_ticks();
    const scl_status_t status = scl_state_digest(&state);
    if (status != SCL_OK) {
      return status;
    }
    scl_meter.ticks[SCL_TICKS_DIGEST] += scl_port_ticks() - start;
  }
  out_t head = {o->bytes, 0};
  SCL_WIRE_TRAINING(PUT_TRAINING_U8, PUT_TRAINING_U16, PUT_TRAINING_U32)
  if (digest) {
    put_u32(&head, state);
  }
  return SCL_OK;
}

static scl_status_t do_train(in_t in, out_t *o) {
  if (in.size != 3u) {
    return SCL_ERR_BAD_LENGTH;
  }
  const uint32_t steps = scl_get_u16(in.bytes);
  const int digest = (in.bytes[2] & 1u) != 0;
  if (scl_learner.phase != SCL_PHASE_TRAINING || (scl_learner.mode == SCL_MODE_STREAMED && steps != 0)) {
    return SCL_ERR_BAD_STATE;
  }
  if (in.bytes[2] > 1u || steps > MAX_STEPS) {
    return SCL_ERR_RANGE;
  }
  scl_status_t status = scl_train_reserve(steps);
  if (status != SCL_OK) {
    return status;
  }
  if (steps == 0 && scl_learner.pos == 0) {
    scl_task_shuffle();
  }
  scl_progress_t progress = {0, 0};
  const uint32_t epoch = scl_learner.epoch;
  uint32_t done = 0;
  o->size = TRAIN_HEAD + (digest ? 4u : 0u);
  while (status == SCL_OK && done < steps && scl_learner.epoch == epoch) {
    status = scl_train_step(&progress);
    put_u32(o, scl_learner.rolling);
    done++;
  }
  if (status == SCL_OK) {
    status = training_reply(o, done, digest, &progress);
  }
  return all_or_recover(status);
}

static scl_status_t do_step(in_t in, out_t *o) {
  const uint32_t each = 3u + SCL_N_IN;
  if (in.size < 2u || in.size != 2u + in.bytes[0] * each) {
    return SCL_ERR_BAD_LENGTH;
  }
  const uint32_t count = in.bytes[0];
  const int digest = (in.bytes[in.size - 1u] & 1u) != 0;
  const scl_learner_t *l = &scl_learner;
  if (l->phase != SCL_PHASE_TRAINING || l->mode != SCL_MODE_STREAMED || !l->shuffled) {
    return SCL_ERR_BAD_STATE;
  }
  /* A request does not cross an epoch. */
  if (in.bytes[in.size - 1u] > 1u || count > MAX_STEPS || count > (uint32_t)l->n - l->pos) {
    return SCL_ERR_RANGE;
  }
  scl_status_t status = check_labels(in.bytes + 3, each, count);
  for (uint32_t k = 0; k < count && status == SCL_OK; k++) {
    if (scl_get_u16(in.bytes + 1 + k * each) != scl_table.id[l->pos + k]) {
      status = SCL_ERR_WRONG_ORDER;
    }
  }
  if (status == SCL_OK) {
    status = scl_train_reserve(count);
  }
  if (status != SCL_OK) {
    return status;
  }
  scl_progress_t progress = {0, 0};
  o->size = TRAIN_HEAD + (digest ? 4u : 0u);
  for (uint32_t k = 0; k < count && status == SCL_OK; k++) {
    const uint8_t *s = in.bytes + 1 + k * each;
    status = scl_train_step_streamed(scl_get_u16(s), s[2], (const scl_input_t *)(s + 3), &progress);
    put_u32(o, scl_learner.rolling);
  }
  if (status == SCL_OK) {
    status = training_reply(o, count, digest, &progress);
  }
  return all_or_recover(status);
}

static void put_prediction(out_t *o, uint32_t predicted) {
  put_u8(o, predicted);
  put_bytes(o, scl_logits, 2u * SCL_N_CLASSES);
}

static scl_status_t do_evaluate(in_t in, out_t *o) {
  const uint32_t each = 1u + SCL_N_IN;
  if (in.size < 1u || in.size != 1u + in.bytes[0] * each) {
    return SCL_ERR_BAD_LENGTH;
  }
  if (1u + in.bytes[0] * CLASS_BYTES > SCL_MAX_PAYLOAD) {
    return SCL_ERR_RANGE;
  }
  for (uint32_t k = 0; k < in.bytes[0]; k++) {
    if (in.bytes[1 + k * each] >= SCL_N_CLASSES) {
      return SCL_ERR_BAD_LABEL;
    }
  }
  put_u8(o, 0);
  for (uint32_t k = 0; k < in.bytes[0]; k++) {
    const uint8_t *s = in.bytes + 1 + k * each;
    const uint32_t predicted = scl_train_predict((const scl_input_t *)(s + 1));
    if (predicted == s[0]) {
      o->bytes[0]++;
    }
    put_prediction(o, predicted);
  }
  return SCL_OK;
}

static scl_status_t do_predict(in_t in, out_t *o) {
  if (in.size != SCL_N_IN) {
    return SCL_ERR_BAD_LENGTH;
  }
  put_prediction(o, scl_train_predict((const scl_input_t *)in.bytes));
  return SCL_OK;
}

static scl_status_t do_replay(in_t in, out_t *o) {
  if (in.size != 8u + SCL_N_IN) {
    return SCL_ERR_BAD_LENGTH;
  }
  const scl_sample_t s = {.id = scl_get_u16(in.bytes + 4), .task = in.bytes[6], .label = in.bytes[7]};
  const scl_status_t status = scl_train_replay(scl_get_u32(in.bytes), s, (const scl_input_t *)(in.bytes + 8));
  put_u16(o, scl_learner.filled);
  return status;
}

static scl_status_t do_task_end(in_t in, out_t *o) {
  uint32_t digest;
  if (in.size != 0) {
    return SCL_ERR_BAD_LENGTH;
  }
  scl_status_t status = scl_train_end();
  if (status == SCL_OK) {
    status = scl_state_digest(&digest);
  }
  if (status == SCL_OK) {
    put_u32(o, scl_journal.snapshot);
    put_u32(o, digest);
  }
  return status;
}

static scl_status_t do_digest(in_t in, out_t *o) {
  uint32_t digest;
  if (in.size != 0) {
    return SCL_ERR_BAD_LENGTH;
  }
  const scl_status_t status = scl_state_digest(&digest);
  put_u32(o, digest);
  put_u32(o, scl_learner.rolling);
  put_u32(o, scl_learner.step);
  return status;
}

static scl_status_t do_dump(in_t in, out_t *o) {
  if (in.size != 8u) {
    return SCL_ERR_BAD_LENGTH;
  }
  const uint32_t size = scl_get_u16(in.bytes + 6);
  if (size > SCL_MAX_PAYLOAD) {
    return SCL_ERR_RANGE;
  }
  o->size = size;
  return scl_state_dump(scl_get_u16(in.bytes), scl_get_u32(in.bytes + 2), o->bytes, size);
}

#define PUT_STATISTICS_U16(field) put_u16(o, STATISTICS_##field);
#define PUT_STATISTICS_U32(field) put_u32(o, STATISTICS_##field);
#define PUT_STATISTICS_U64(field) put_u64(o, &STATISTICS_##field);
#define STATISTICS_forward scl_meter.ticks[SCL_TICKS_FORWARD]
#define STATISTICS_backward scl_meter.ticks[SCL_TICKS_BACKWARD]
#define STATISTICS_replay_read scl_meter.ticks[SCL_TICKS_REPLAY]
#define STATISTICS_mask_update scl_meter.ticks[SCL_TICKS_MASK]
#define STATISTICS_journal_write scl_meter.ticks[SCL_TICKS_JOURNAL]
#define STATISTICS_digest scl_meter.ticks[SCL_TICKS_DIGEST]
#define STATISTICS_training scl_meter.ticks[SCL_TICKS_STEP]
#define STATISTICS_training_steps scl_meter.steps
#define STATISTICS_passes scl_meter.passes
#define STATISTICS_programs c->programs
#define STATISTICS_erases c->erases
#define STATISTICS_bytes_written c->bytes_written
#define STATISTICS_sectors SCL_SECTORS
#define STATISTICS_sectors_free scl_journal_free()
#define STATISTICS_live_records scl_record_live()
#define STATISTICS_erase_min low
#define STATISTICS_erase_max high
#define STATISTICS_relocated c->relocated
#define STATISTICS_checkpoints c->checkpoints
#define STATISTICS_retired_sectors c->retired
#define STATISTICS_lost_records c->lost_records
#define STATISTICS_saturated_activations scl_learner.counts.saturated_activations
#define STATISTICS_saturated_errors scl_learner.counts.saturated_errors
#define STATISTICS_guard_shifts scl_learner.counts.guard_shifts
#define STATISTICS_weights_at_clamp scl_net_clamped()
#define STATISTICS_stack_used scl_port_stack_used()

static scl_status_t do_statistics(in_t in, out_t *o) {
  const scl_journal_counts_t *c = &scl_journal.counts;
  uint32_t low, high;
  if (in.size != 0) {
    return SCL_ERR_BAD_LENGTH;
  }
  scl_journal_wear(&low, &high);
  SCL_WIRE_STATISTICS(PUT_STATISTICS_U16, PUT_STATISTICS_U32, PUT_STATISTICS_U64)
  return SCL_OK;
}

static scl_status_t do_save(in_t in, out_t *o) {
  if (in.size != 0) {
    return SCL_ERR_BAD_LENGTH;
  }
  const scl_status_t status = scl_checkpoint_save(SCL_NO_RECORDS);
  put_u32(o, scl_journal.snapshot);
  return status;
}

static scl_status_t do_reset(in_t in, out_t *o) {
  (void)o;
  if (in.size != 1u + SCL_NONCE_BYTES) {
    return SCL_ERR_BAD_LENGTH;
  }
  if (in.bytes[0] > 1u) {
    return SCL_ERR_RANGE;
  }
  if (!scl_seal_is_nonce(in.bytes + 1)) {
    return SCL_ERR_WRONG_NONCE;
  }
  scl_seal_use_nonce();
  if (in.bytes[0] == 0) {
    restart_pending = 1; /* after the reply */
    return SCL_OK;
  }
  if (scl_integrity_begin(0) != SCL_OK) {
    (void)scl_journal_mount(SCL_ANY_SNAPSHOT); /* its bookkeeping may be damaged: read it back from the flash */
  }
  const scl_status_t status = scl_journal_format();
  restored_state = (uint8_t)scl_checkpoint_recover(); /* of a journal that could not be written, its last save */
  scl_integrity_end(SCL_PARTS_STATE);
  return status;
}

typedef struct {
  scl_status_t (*run)(in_t in, out_t *o);
  uint8_t parts; /* of the state that it may change, scl_parts_t */
  uint8_t flags;
} command_t;

#define LEARNS 1u
#define FIRST 2u /* may come before the host knows where the board stands */
#define ANYHOW 4u /* executed although a bit has flipped: it resets the state, then takes the sums */

/* By command code, docs/spec/protocol.md "Commands". */
static const command_t commands[] = {
    [SCL_COMMAND_HELLO] = {do_hello, 0, FIRST},
    [SCL_COMMAND_TASK_BEGIN] = {do_task_begin, SCL_PARTS_STATE, LEARNS},
    [SCL_COMMAND_SAMPLES] = {do_samples, SCL_PARTS_BOOKS | SCL_PARTS_TABLES, LEARNS},
    [SCL_COMMAND_TRAIN] = {do_train, SCL_PARTS_STEP, LEARNS},
    [SCL_COMMAND_STEP] = {do_step, SCL_PARTS_STEP, LEARNS},
    [SCL_COMMAND_EVALUATE] = {do_evaluate, 0, 0},
    [SCL_COMMAND_PREDICT] = {do_predict, 0, 0},
    [SCL_COMMAND_REPLAY] = {do_replay, SCL_PARTS_BOOKS | SCL_PARTS_TABLES, LEARNS},
    [SCL_COMMAND_TASK_END] = {do_task_end, SCL_PARTS_STATE, LEARNS},
    [SCL_COMMAND_DIGEST] = {do_digest, 0, 0},
    [SCL_COMMAND_DUMP] = {do_dump, 0, 0},
    [SCL_COMMAND_STATISTICS] = {do_statistics, 0, 0},
    [SCL_COMMAND_SAVE] = {do_save, SCL_PARTS_STATE, LEARNS},
    [SCL_COMMAND_RESET] = {do_reset, 0, FIRST | ANYHOW},
};

/* Whether a command may be executed at all. */
static scl_status_t permitted(const command_t *command) {
  if ((command->flags & FIRST) != 0) {
    return SCL_OK;
  }
  /* What the host sends was meant for the state before the restart, until it has asked for the one after it. */
  if (!greeted) {
    return (scl_health.health & SCL_HEALTH_RESTORED) != 0 ? SCL_ERR_DAMAGED : SCL_ERR_OUT_OF_TURN;
  }
  if ((command->flags & LEARNS) != 0 && (scl_health.health & SCL_HEALTH_SELF_TEST) != 0) {
    return SCL_ERR_SELF_TEST;
  }
  return SCL_OK;
}

static scl_status_t run(uint32_t code, in_t in, out_t *out) {
  if (code >= sizeof commands / sizeof commands[0] || commands[code].run == NULL) {
    return SCL_ERR_UNKNOWN_COMMAND;
  }
  const command_t *command = &commands[code];
  scl_status_t status = permitted(command);
  if (status != SCL_OK) {
    return status;
  }
  if ((command->flags & ANYHOW) == 0) {
    status = scl_integrity_begin(command->parts);
  }
  if (status == SCL_OK) {
    status = command->run(in, out);
    scl_integrity_end(command->parts);
  }
  damaged = status == SCL_ERR_DAMAGED;
  return status;
}

/* Behind each kept reply: room for the checksum that sending it adds, the checksum of its request, its size. */
#define KEPT_FOOT 10u

static uint32_t kept_size(uint32_t end) { return scl_get_u16(reply + end - 2u); }

static uint32_t kept_begin(uint32_t end) { return end - KEPT_FOOT - kept_size(end); }

/* Forgets the kept replies of which a part is in the first `size` bytes of the buffer, and those no host waits for. */
static void forget(uint32_t size) {
  uint32_t at = SCL_FRAME_BYTES;
  for (uint32_t n = 1; n < SCL_WINDOW && at > kept && at >= size + KEPT_FOOT && kept_begin(at) >= size; n++) {
    at = kept_begin(at);
  }
  kept = at;
}

/* Moves the last reply to the kept ones, before its place is used again. */
static void keep(void) {
  const uint32_t each = reply_size + KEPT_FOOT;
  forget(reply_size + each);
  if (reply_size == 0 || kept < reply_size + each) {
    return;
  }
  memmove(reply + kept - each, reply + kept, SCL_FRAME_BYTES - kept);
  kept -= each;
  memcpy(reply + SCL_FRAME_BYTES - each, reply, reply_size);
  scl_put_u32(reply + SCL_FRAME_BYTES - 6u, last_request);
  scl_put_u16(reply + SCL_FRAME_BYTES - 2u, reply_size);
}

/* Sends the reply to an earlier request again; 0 when there is none. */
static int repeat(uint32_t checksum) {
  if (reply_size != 0 && checksum == last_request) {
    scl_frame_send(reply, reply_size);
    return 1;
  }
  for (uint32_t at = SCL_FRAME_BYTES; at > kept; at = kept_begin(at)) {
    if (scl_get_u32(reply + at - 6u) == checksum) {
      scl_frame_send(reply + kept_begin(at), kept_size(at));
      return 1;
    }
  }
  return 0;
}

/* Answers what is not executed, without touching the replies that a repeated request may ask for again. */
static void refuse(uint32_t sequence, uint32_t command, scl_status_t status) {
  uint8_t bytes[SCL_FRAME_HEAD + 4u] = {KIND_REPLY, (uint8_t)sequence, (uint8_t)command, (uint8_t)-status};
  scl_frame_send(bytes, SCL_FRAME_HEAD);
}

/*
 * Checks the seal of a request that changes the state and takes it off.  *counter: of the seal, 0 where there is none.
 */
static scl_status_t unseal(uint32_t command, uint32_t *counter) {
  *counter = 0;
#if SCL_KEYED
  if (command != SCL_COMMAND_HELLO && command != SCL_COMMAND_DIGEST && command != SCL_COMMAND_DUMP &&
      command != SCL_COMMAND_STATISTICS) {
    const scl_status_t status = scl_seal_check(frame.bytes, frame.size, counter);
    if (status != SCL_OK) {
      return status;
    }
    frame.size -= SCL_SEAL_BYTES;
  }
#else
  (void)command;
#endif
  return SCL_OK;
}

/* Seals a good reply to a sealed request. */
static void seal(uint32_t counter) {
#if SCL_KEYED
  if (counter != 0) {
    scl_seal_use(counter);
  }
  if (counter != 0 && reply[3] == 0) {
    scl_seal_close(reply, reply_size, counter);
    reply_size += SCL_SEAL_BYTES;
  }
#else
  (void)counter;
#endif
}

static void answer(uint32_t sequence, uint32_t command, scl_status_t status, uint32_t payload, uint32_t counter) {
  reply[0] = KIND_REPLY;
  reply[1] = (uint8_t)sequence;
  reply[2] = (uint8_t)command;
  reply[3] = (uint8_t)-status;
  reply_size = SCL_FRAME_HEAD + (status == SCL_OK ? payload : 0u);
  seal(counter);
  scl_frame_send(reply, reply_size);
}

static void execute(void) {
  const uint32_t checksum = scl_get_u32(frame.bytes + frame.size); /* covers sequence, command and payload */
  const uint32_t sequence = frame.bytes[1];
  const uint32_t command = frame.bytes[2];
  if (repeat(checksum)) {
    return;
  }
  if (frame.bytes[0] == KIND_NEXT && !(turns_valid && sequence == in_turn)) {
    refuse(sequence, command, SCL_ERR_OUT_OF_TURN);
    return;
  }
  uint32_t counter;
  scl_status_t status = unseal(command, &counter);
  if (status != SCL_OK) {
    refuse(sequence, command, status);
    return;
  }
  if (frame.bytes[0] == KIND_NEXT) {
    keep();
  } else {
    kept = SCL_FRAME_BYTES; /* the host has all replies it waited for */
  }
  const in_t in = {frame.bytes + SCL_FRAME_HEAD, frame.size - SCL_FRAME_HEAD};
  out_t out = {reply + SCL_FRAME_HEAD, 0};
  status = run(command, in, &out);
  forget(SCL_FRAME_HEAD + out.size + SCL_SEAL_BYTES + 4u);
  last_request = checksum;
  in_turn = (uint8_t)(sequence + 1u);
  /* What follows a refused request was sent without knowing of that; with a key nobody else takes a turn. */
  turns_valid = status == SCL_OK && (!SCL_KEYED || counter != 0);
  answer(sequence, command, status, out.size, counter);
  if (damaged) {
    scl_integrity_restart();
  }
  if (restart_pending) {
    scl_port_restart();
  }
}

static void write_text(const char *text) { scl_port_write((const uint8_t *)text, (uint32_t)strlen(text)); }

static void write_number(const char *label, uint32_t v) {
  char digits[11];
  uint32_t at = sizeof digits - 1u;
  digits[at] = '\0';
  do {
    digits[--at] = (char)('0' + v % 10u);
    v /= 10u;
  } while (v != 0);
  write_text(label);
  write_text(&digits[at]);
}

/* The plain text line for a person at a terminal. */
static void write_status(void) {
  static const char *const phases[] = {"idle", "filling", "training", "trained"};
  write_text("sparcl-mcu " SCL_VERSION_TEXT " on " SCL_BOARD_NAME ", model " SCL_MODEL_HASH_TEXT);
  write_number(", task ", scl_learner.task);
  write_text(", ");
  write_text(phases[scl_learner.phase & 3u]);
  write_number(", step ", scl_learner.step);
  write_number(", replay ", scl_learner.filled);
  write_number(", snapshot ", scl_journal.snapshot);
  write_text("\r\n");
}

void scl_protocol_init(int restored) {
  static const uint8_t end = 0;
  restored_state = restored ? 1u : 0u;
  write_status();
  scl_port_write(&end, 1);
}

void scl_protocol_take(uint8_t byte) {
  switch (scl_frame_take(&frame, byte)) {
    case SCL_FRAME_COMPLETE:
      if (frame.bytes[0] == KIND_REQUEST || frame.bytes[0] == KIND_NEXT) {
        execute();
      }
      break;
    case SCL_FRAME_DAMAGED:
      refuse(0, 0, SCL_ERR_BAD_FRAME);
      break;
    case SCL_FRAME_TOO_LONG:
      refuse(0, 0, SCL_ERR_TOO_LONG);
      break;
    case SCL_FRAME_QUESTION:
      write_status();
      break;
    default:
      break;
  }
}
