/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_replay.h"

#include "scl_learner.h"
#include "scl_prng.h"

uint32_t scl_replay_draw(void) { return scl_prng_below(&scl_learner.choices, scl_learner.filled); }

static scl_status_t put(uint32_t slot, const scl_sample_t *sample, scl_address_t address, const int16_t *logits) {
  scl_address_t logits_address = SCL_ADDRESS_NONE;
  scl_status_t status = SCL_OK;
  if (address == SCL_ADDRESS_NONE) {
    status = scl_record_put_sample(sample, &address);
  }
  if (status == SCL_OK && SCL_METHOD == SCL_METHOD_DERPP) {
    status = scl_record_put_logits(sample, logits, &logits_address);
  }
  if (status == SCL_OK) {
    scl_slots.sample[slot] = address;
    scl_slots.logits[slot] = logits_address;
    if (slot == scl_learner.filled) {
      scl_learner.filled++;
    }
  }
  return status;
}

scl_status_t scl_replay_offer(const scl_sample_t *sample, scl_address_t address, const int16_t *logits) {
  uint32_t slot = scl_learner.filled;
  scl_learner.seen++;
  if (slot >= scl_replay_capacity()) {
    slot = scl_prng_below(&scl_learner.choices, scl_learner.seen);
  }
  return slot < scl_replay_capacity() ? put(slot, sample, address, logits) : SCL_OK;
}

scl_status_t scl_replay_refresh(uint32_t slot, const scl_sample_t *sample, const int16_t *logits) {
  return scl_record_put_logits(sample, logits, &scl_slots.logits[slot]);
}

scl_status_t scl_replay_add(const scl_sample_t *sample, const int16_t *logits) {
  if (scl_learner.filled >= scl_replay_capacity()) {
    return SCL_ERR_TOO_MANY;
  }
  return put(scl_learner.filled, sample, SCL_ADDRESS_NONE, logits);
}
