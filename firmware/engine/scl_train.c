/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_train.h"

#include <string.h>

#include "scl_bytes.h"
#include "scl_checkpoint.h"
#include "scl_crc.h"
#include "scl_fixed.h"
#include "scl_loss.h"
#include "scl_mask.h"
#include "scl_net.h"
#include "scl_host.h"
#include "scl_prng.h"
#include "scl_replay.h"
#include "scl_state.h"
#include "scl_task.h"

#define REPLAYS (SCL_METHOD != SCL_METHOD_FINETUNE)
#define KEEPS_LOGITS (SCL_METHOD == SCL_METHOD_DERPP)
#define REFRESHES (SCL_REFRESH && KEEPS_LOGITS)

/* What scl_train_reserve asks for at most; the partition was planned for it (generator/journal.py). */
#define LESSER(a, b) ((a) < (b) ? (a) : (b))
#define MOST_STEPS (REPLAYS ? LESSER(SCL_STEPS_PER_REQUEST, SCL_TABLE) : 0u)
#define MOST_STREAMED LESSER(MOST_STEPS, (SCL_MAX_PAYLOAD - 2u) / (3u + SCL_N_IN))
#define MOST_LOGITS(steps) (KEEPS_LOGITS ? (steps) + (REFRESHES ? SCL_CAPACITY : 0u) : 0u)
_Static_assert(SCL_SECTORS_FOR(0u, MOST_LOGITS(MOST_STEPS)) == SCL_PLAN_RESIDENT, "a request to train, resident");
_Static_assert(SCL_SECTORS_FOR(MOST_STREAMED, MOST_LOGITS(MOST_STREAMED)) == SCL_PLAN_STREAMED, "the same, streamed");

scl_meter_t scl_meter;

static uint32_t clock_start(void) { return scl_host_ticks(); }

static void clock_stop(scl_ticks_t phase, uint32_t start) { scl_meter.ticks[phase] += scl_host_ticks() - start; }

/*
 * A sample as records hold it.  Where that is its latent, it stays valid until the next call: longer than a training
 * step, whose replayed samples come from records.
 */
static const scl_stored_t *stored(const scl_input_t *x) {
#if SCL_LATENT_STORED
  static scl_latent_t latent[SCL_N_LATENT];
  scl_net_prefix(x, latent);
  return latent;
#else
  return x;
#endif
}

static void forward(const scl_stored_t *x) {
  const uint32_t start = clock_start();
  scl_host_feed_watchdog();
  scl_net_forward(x, &scl_learner.counts);
  scl_learner.rolling = scl_crc32(scl_learner.rolling, scl_logits, 2u * SCL_N_CLASSES);
  scl_meter.passes++;
  clock_stop(SCL_TICKS_FORWARD, start);
}

static void backward(const scl_stored_t *x, scl_term_t term, int32_t capture) {
  const uint32_t start = clock_start();
  scl_net_backward(x, term, capture);
  clock_stop(SCL_TICKS_BACKWARD, start);
}

static int32_t capture_slot(int capturing, uint8_t *captured, uint32_t first) {
  if (!capturing || *captured >= SCL_CAPTURE) {
    return SCL_NO_CAPTURE;
  }
  return (int32_t)(first + (*captured)++);
}

/* Current sample: loss, score, capture, update.  Its logits stay in `logits`. */
static void learn_current(const scl_sample_t *s, int capturing, int16_t *logits, scl_progress_t *progress) {
  const int32_t task = scl_learner.task;
  const int32_t loss_classes = SCL_SINGLE_HEAD == SCL_SINGLE_HEAD_LOSS ? task : SCL_ALL_CLASSES;
  forward(s->x);
  memcpy(logits, scl_logits, 2u * SCL_N_CLASSES);
  const int wrong = scl_loss_predict(scl_logits) != s->label;
  int32_t slot = capture_slot(capturing, &scl_learner.captured_d, 0);
  if (SCL_SINGLE_HEAD == SCL_SINGLE_HEAD_SCORE && slot != SCL_NO_CAPTURE) {
    (void)scl_loss_cross_entropy(scl_logits, s->label, scl_learner.class_task, task, scl_logit_error);
    scl_net_error(s->x, slot);
    slot = SCL_NO_CAPTURE;
  }
  const uint32_t loss =
      scl_loss_cross_entropy(scl_logits, s->label, scl_learner.class_task, loss_classes, scl_logit_error);
  scl_task_score(wrong, (uint32_t)-scl_logit_error[s->label]);
  backward(s->x, SCL_TERM_CURRENT, slot);
  progress->loss += loss;
  progress->wrong = (uint16_t)(progress->wrong + (wrong ? 1 : 0));
}

static scl_status_t read_slot(uint32_t slot, scl_sample_t *s, int16_t *logits) {
  const uint32_t start = clock_start();
  const scl_status_t status = scl_record_get_replay(slot, s, logits);
  clock_stop(SCL_TICKS_REPLAY, start);
  return status;
}

#if SCL_SHARED_DRAWS == 0
static scl_status_t learn_distil(void) {
  scl_sample_t s;
  int16_t stored[SCL_N_CLASSES];
  const scl_status_t status = read_slot(scl_replay_draw(), &s, stored);
  if (status != SCL_OK) {
    return status;
  }
  forward(s.x);
  scl_loss_distil(scl_logits, stored, scl_logit_error);
  backward(s.x, SCL_TERM_DISTIL, SCL_NO_CAPTURE);
  return SCL_OK;
}

static scl_status_t learn_replay(int capturing) {
  scl_sample_t s;
  const scl_status_t status = read_slot(scl_replay_draw(), &s, NULL);
  if (status != SCL_OK) {
    return status;
  }
  forward(s.x);
  (void)scl_loss_cross_entropy(scl_logits, s.label, scl_learner.class_task, SCL_ALL_CLASSES, scl_logit_error);
  backward(s.x, SCL_TERM_REPLAY, capture_slot(capturing, &scl_learner.captured_m, SCL_CAPTURE));
  return SCL_OK;
}

static scl_status_t learn_from_buffer(int capturing) {
  scl_status_t status = SCL_DISTIL ? learn_distil() : SCL_OK;
  if (status == SCL_OK && SCL_REPLAY) {
    status = learn_replay(capturing);
  }
  return status;
}
#else
static scl_status_t learn_shared(int capturing) {
  scl_sample_t s;
  int16_t stored[SCL_N_CLASSES];
  const scl_status_t status = read_slot(scl_replay_draw(), &s, stored);
  if (status != SCL_OK) {
    return status;
  }
  forward(s.x);
  scl_loss_shared(scl_logits, stored, s.label, scl_learner.class_task, scl_logit_error);
  backward(s.x, SCL_TERM_REPLAY, capture_slot(capturing, &scl_learner.captured_m, SCL_CAPTURE));
  return SCL_OK;
}

static scl_status_t learn_from_buffer(int capturing) {
  scl_status_t status = SCL_OK;
  for (uint32_t k = 0; status == SCL_OK && k < SCL_SHARED_DRAWS; k++) {
    status = learn_shared(capturing && k == 0);
  }
  return status;
}
#endif

static int last_epoch(void) { return scl_learner.epoch + 1u == SCL_EPOCHS; }

/* Whether the samples of this epoch are offered to the replay buffer. */
static int offers(void) { return REPLAYS && (!SCL_REFRESH || last_epoch()); }

static scl_status_t refresh(uint32_t slot) {
  scl_sample_t s;
  scl_status_t status = read_slot(slot, &s, NULL);
  if (status == SCL_OK) {
    forward(s.x);
    const uint32_t start = clock_start();
    status = scl_replay_refresh(slot, &s, scl_logits);
    clock_stop(SCL_TICKS_JOURNAL, start);
  }
  return status;
}

/* Later tasks distil from the network's present logits of the buffer, not from those of a sample learned halfway. */
static scl_status_t refresh_all(void) {
  scl_status_t status = SCL_OK;
  for (uint32_t slot = 0; status == SCL_OK && slot < scl_learner.filled; slot++) {
    status = refresh(slot);
  }
  return status;
}

static void seal(uint16_t id) {
  uint8_t bytes[10];
  scl_put_u32(bytes, scl_learner.choices);
  scl_put_u32(bytes + 4, scl_learner.rounding);
  scl_put_u16(bytes + 8, id);
  scl_learner.rolling = scl_crc32(scl_learner.rolling, bytes, sizeof bytes);
}

static scl_status_t end_epoch(void) {
  scl_task_remove_easy();
  scl_learner.epoch++;
  scl_learner.pos = 0;
  scl_learner.shuffled = 0;
  if (scl_learner.epoch < SCL_EPOCHS) {
    return SCL_OK;
  }
  scl_learner.phase = SCL_PHASE_TRAINED;
  return REFRESHES ? refresh_all() : SCL_OK;
}

#ifdef SCL_FLIP_STEP
/* Debug build only: damages one bit of the parameters after one step, to prove that `sparcl validate` finds it. */
static void flip_bit(void) {
  if (scl_learner.step == SCL_FLIP_STEP) {
    ((uint8_t *)scl_regions[SCL_FLIP_REGION].data)[SCL_FLIP_BYTE] ^= (uint8_t)(1u << SCL_FLIP_BIT);
  }
}
#else
static void flip_bit(void) {}
#endif

static scl_status_t update_masks(void) {
  const uint32_t start = clock_start();
  const scl_status_t status =
      scl_host_check(SPARCL_BEFORE_MASKS); /* else a flipped bit would be in the sums that follow */
  if (status == SCL_OK) {
    scl_mask_update();
    scl_mask_clear_captured();
    (void)scl_host_check(SPARCL_MASKS_CHANGED);
  }
  clock_stop(SCL_TICKS_MASK, start);
  return status;
}

/* What follows a step: batch, masks, end of the epoch. */
static scl_status_t advance(void) {
  scl_status_t status = scl_host_check(SPARCL_EACH_STEP);
  scl_learner.pos++;
  scl_learner.step++;
  scl_meter.steps++;
  const int due = scl_mask_due(scl_learner.pos);
#if SCL_BATCH > 1
  if (scl_learner.pos % SCL_BATCH == 0 || scl_learner.pos == scl_learner.n || due) {
    scl_net_apply();
  }
#endif
  if (due && status == SCL_OK) {
    status = update_masks();
  }
  if (scl_learner.pos == scl_learner.n && status == SCL_OK) {
    status = end_epoch();
  }
  flip_bit();
  return status;
}

/* One training step, docs/spec/algorithm.md steps 2 to 13. */
static scl_status_t learn(const scl_sample_t *sample, scl_address_t address, scl_progress_t *progress) {
  int16_t logits[SCL_N_CLASSES];
  const int capturing = scl_mask_capturing(scl_learner.pos);
  const uint16_t id = sample->id;
  scl_sample_t kept = *sample; /* the replay reads below may reuse the sample's memory; its head stays */
  scl_status_t status = SCL_OK;

  learn_current(sample, capturing, logits, progress);
  if (REPLAYS && scl_learner.filled > 0) {
    status = learn_from_buffer(capturing);
  }
  if (offers() && status == SCL_OK) {
    const uint32_t start = clock_start();
    status = scl_replay_offer(&kept, address, logits);
    clock_stop(SCL_TICKS_JOURNAL, start);
  }
  if (status == SCL_OK) {
    seal(id);
    status = advance();
  }
  return status;
}

scl_status_t scl_train_begin(uint32_t mode, uint32_t n_samples, const uint8_t *classes, uint32_t n_classes) {
  scl_learner_t *l = &scl_learner;
  if (l->phase != SCL_PHASE_IDLE) {
    return SCL_ERR_BAD_STATE;
  }
  if (mode > SCL_MODE_STREAMED || n_samples == 0 || l->task >= SCL_NO_TASK) {
    return SCL_ERR_RANGE;
  }
  if (n_samples > SCL_TABLE) {
    return SCL_ERR_TOO_MANY;
  }
  if (n_classes == 0) {
    return SCL_ERR_RANGE;
  }
  for (uint32_t k = 0; k < n_classes; k++) {
    if (classes[k] >= SCL_N_CLASSES) {
      return SCL_ERR_BAD_LABEL;
    }
  }
  if (mode == SCL_MODE_RESIDENT) {
    const scl_status_t status = scl_checkpoint_reserve((scl_records_t){n_samples, 0});
    if (status != SCL_OK) {
      return status;
    }
  }
  for (uint32_t k = 0; k < n_classes; k++) {
    l->class_task[classes[k]] = l->task;
  }
  l->mode = (uint8_t)mode;
  l->n_start = l->n = (uint16_t)n_samples;
  l->received = l->epoch = l->pos = 0;
  l->shuffled = 0;
  for (uint32_t i = 0; i < n_samples; i++) {
    scl_table.id[i] = (uint16_t)i;
    scl_table.score[i] = 0;
    scl_table.address[i] = SCL_ADDRESS_NONE;
  }
  scl_mask_clear_captured();
  scl_mask_begin_task();
  l->phase = mode == SCL_MODE_RESIDENT ? SCL_PHASE_FILLING : SCL_PHASE_TRAINING;
  return SCL_OK;
}

scl_status_t scl_train_check_label(uint32_t label) {
  return label < SCL_N_CLASSES && scl_learner.class_task[label] == scl_learner.task ? SCL_OK : SCL_ERR_BAD_LABEL;
}

scl_status_t scl_train_fill(uint32_t id, uint32_t label, const scl_input_t *x) {
  scl_learner_t *l = &scl_learner;
  const scl_sample_t s = {.x = stored(x), .id = (uint16_t)id, .task = l->task, .label = (uint8_t)label};
  const scl_status_t status = scl_record_put_sample(&s, &scl_table.address[id]);
  if (status == SCL_OK && ++l->received == l->n) {
    l->phase = SCL_PHASE_TRAINING;
  }
  return status;
}

scl_status_t scl_train_reserve(uint32_t steps) {
  scl_records_t need = SCL_NO_RECORDS;
  if (offers()) {
    const uint32_t kept =
        scl_min_u32(steps, (uint32_t)scl_learner.n - scl_learner.pos); /* a request ends with its epoch */
    need.samples = scl_learner.mode == SCL_MODE_STREAMED ? kept : 0u;
    need.logits = KEEPS_LOGITS ? kept : 0u;
  }
  if (REFRESHES && last_epoch() && scl_learner.pos + steps >= scl_learner.n) {
    need.logits += SCL_CAPACITY; /* all at once: a save in between would be of a state that no reference has */
  }
  return need.samples + need.logits == 0 ? SCL_OK : scl_checkpoint_reserve(need);
}

scl_status_t scl_train_step(scl_progress_t *progress) {
  const uint32_t start = clock_start();
  scl_sample_t sample;
  scl_task_shuffle();
  const scl_address_t address = scl_table.address[scl_learner.pos];
  const uint32_t read = clock_start();
  scl_status_t status = scl_record_get_sample(scl_learner.pos, &sample);
  clock_stop(SCL_TICKS_REPLAY, read);
  if (status == SCL_OK) {
    status = learn(&sample, address, progress);
  }
  clock_stop(SCL_TICKS_STEP, start);
  return status;
}

scl_status_t scl_train_step_streamed(uint32_t id, uint32_t label, const scl_input_t *x, scl_progress_t *progress) {
  const uint32_t start = clock_start();
  const scl_sample_t sample = {.x = stored(x), .id = (uint16_t)id, .task = scl_learner.task, .label = (uint8_t)label};
  const scl_status_t status = learn(&sample, SCL_ADDRESS_NONE, progress);
  clock_stop(SCL_TICKS_STEP, start);
  return status;
}

static uint32_t predict(const scl_stored_t *x) {
  scl_counts_t ignored = {0, 0, 0};
  scl_host_feed_watchdog();
  scl_net_forward(x, &ignored);
  return scl_loss_predict(scl_logits);
}

scl_status_t scl_train_replay(uint32_t seen, scl_sample_t sample, const scl_input_t *x) {
  scl_learner_t *l = &scl_learner;
  if (l->phase != SCL_PHASE_IDLE) {
    return SCL_ERR_BAD_STATE;
  }
  if (!REPLAYS || l->filled >= scl_replay_capacity()) {
    return SCL_ERR_TOO_MANY;
  }
  if (sample.task >= SCL_NO_TASK) {
    return SCL_ERR_RANGE;
  }
  if (sample.label >= SCL_N_CLASSES) {
    return SCL_ERR_BAD_LABEL;
  }
  scl_status_t status = scl_checkpoint_reserve((scl_records_t){1, KEEPS_LOGITS ? 1u : 0u});
  if (status != SCL_OK) {
    return status;
  }
  sample.x = stored(x);
  (void)predict(sample.x);
  status = scl_replay_add(&sample, scl_logits);
  if (status != SCL_OK) {
    return status;
  }
  l->seen = seen;
  l->class_task[sample.label] = sample.task;
  if (l->task <= sample.task) {
    l->task = (uint8_t)(sample.task + 1u);
  }
  return SCL_OK;
}

scl_status_t scl_train_end(void) {
  scl_learner_t *l = &scl_learner;
  if (l->phase != SCL_PHASE_TRAINED) {
    return SCL_ERR_BAD_STATE;
  }
  const scl_learner_t before = *l;
  l->task++;
  l->phase = SCL_PHASE_IDLE;
  l->mode = SCL_MODE_RESIDENT;
  l->epoch = l->pos = l->n = l->n_start = l->received = 0;
  const uint32_t start = clock_start();
  const scl_status_t status = scl_checkpoint_save(SCL_NO_RECORDS);
  clock_stop(SCL_TICKS_JOURNAL, start);
  if (status != SCL_OK) {
    *l = before; /* the save failed, so the task has not ended */
  }
  return status;
}

uint32_t scl_train_golden(void) {
  static const int16_t none[SCL_N_CLASSES];
  const scl_stored_t *x = stored(scl_golden_x);
  uint32_t digest = 0;
  memset(scl_learner.class_task, 0, SCL_N_CLASSES);
  for (uint32_t term = SCL_TERM_CURRENT; term <= SCL_TERM_REPLAY; term++) {
    if ((term == SCL_TERM_DISTIL && !SCL_DISTIL) || (term == SCL_TERM_REPLAY && !SCL_REPLAY)) {
      continue;
    }
    forward(x);
    if (term == SCL_TERM_DISTIL) {
      scl_loss_distil(scl_logits, none, scl_logit_error);
    } else if (term == SCL_TERM_REPLAY && SCL_SHARED_DRAWS > 0) {
      scl_loss_shared(scl_logits, none, 0, scl_learner.class_task, scl_logit_error);
    } else {
      (void)scl_loss_cross_entropy(scl_logits, 0, scl_learner.class_task, SCL_ALL_CLASSES, scl_logit_error);
    }
    backward(x, (scl_term_t)term, SCL_NO_CAPTURE);
  }
#if SCL_BATCH > 1
  scl_net_apply();
#endif
  seal((uint16_t)scl_prng_below(&scl_learner.choices, SCL_NO_TASK));
  (void)scl_state_digest(&digest); /* of an empty replay buffer: the journal is not read */
  memset(&scl_meter, 0, sizeof scl_meter);
  return digest;
}

uint32_t scl_train_predict(const scl_input_t *x) { return predict(stored(x)); }
