/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_seal.h"

#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_frame.h"
#include "scl_journal.h"
#include "scl_learner.h"
#include "scl_port.h"

static uint32_t start; /* number of this start, 0: no host has asked yet */
static uint32_t count; /* of the last request that was accepted by its nonce or its seal */

/*
 * Another number at each start: from the time of the first hello and the place of learner and journal.  A CRC turns
 * different times into different numbers.
 */
static uint32_t make_start(void) {
  const scl_learner_t *l = &scl_learner;
  const uint32_t parts[] = {scl_port_ticks(), scl_journal.sequence, scl_journal.next_snapshot, l->step, l->rolling};
  const uint32_t number = scl_crc32((uint32_t)scl_port_reset_reason(), parts, sizeof parts);
  return number != 0 ? number : 1u;
}

void scl_seal_nonce(uint8_t *nonce) {
  if (start == 0) {
    start = make_start();
  }
  scl_put_u32(nonce, start);
  scl_put_u32(nonce + 4, count);
}

int scl_seal_is_nonce(const uint8_t *nonce) {
  return start != 0 && scl_get_u32(nonce) == start && scl_get_u32(nonce + 4) == count;
}

void scl_seal_use_nonce(void) { count++; }

#if SCL_KEYED
#include "scl_blake2s.h"
#include "scl_key.h"

static const uint8_t key[] = SCL_KEY;
static const uint8_t model_hash[8] = SCL_MODEL_HASH;

static void make_tag(const uint8_t *frame, uint32_t size, uint8_t *tag) {
  uint8_t number[4];
  scl_blake2s_t s;
  scl_put_u32(number, start);
  scl_blake2s_begin(&s, key, sizeof key, SCL_SEAL_TAG);
  scl_blake2s_add(&s, number, sizeof number);
  scl_blake2s_add(&s, model_hash, sizeof model_hash);
  scl_blake2s_add(&s, frame, size);
  scl_blake2s_end(&s, tag);
}

scl_status_t scl_seal_check(const uint8_t *frame, uint32_t size, uint32_t *counter) {
  uint8_t tag[SCL_SEAL_TAG];
  if (start == 0 || size < SCL_FRAME_HEAD + SCL_SEAL_BYTES) {
    return SCL_ERR_NOT_SEALED;
  }
  size -= SCL_SEAL_TAG;
  make_tag(frame, size, tag);
  *counter = scl_get_u32(frame + size - 4u);
  if (!scl_equal(tag, frame + size, SCL_SEAL_TAG)) {
    return SCL_ERR_NOT_SEALED;
  }
  return *counter > count ? SCL_OK : SCL_ERR_REPLAYED;
}

void scl_seal_use(uint32_t counter) { count = counter; }

void scl_seal_close(uint8_t *frame, uint32_t size, uint32_t counter) {
  scl_put_u32(frame + size, counter);
  make_tag(frame, size + 4u, frame + size + 4u);
}
#endif
