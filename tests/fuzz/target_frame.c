/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame parser against a second one written from docs/spec/protocol.md: the same
 * events for any bytes, the same contents; and what is sent comes back whole.
 */
#include <string.h>

#include "base.h"
#include "scl_frame.h"
#include "scl_port.h"
#include "target.h"

#define MOST 4096u
#define CANARY 0xA5u

/* A parser with memory of its own around it. */
typedef struct {
  uint8_t before[64];
  scl_frame_t frame;
  uint8_t behind[64];
} guarded_t;

static uint8_t sent[2u * MOST];
static uint32_t sent_size;

void scl_port_write(const uint8_t *data, uint32_t size) {
  FUZZ_CHECK(size <= sizeof sent - sent_size, "sends too much");
  memcpy(sent + sent_size, data, size);
  sent_size += size;
}

static void check_canaries(const guarded_t *g) {
  for (uint32_t k = 0; k < sizeof g->before; k++) {
    FUZZ_CHECK(g->before[k] == CANARY && g->behind[k] == CANARY, "written around the parser");
  }
}

/* What the second parser says of the bytes since the last frame. */
typedef struct {
  uint8_t chunk[MOST + 1u];
  uint32_t size;
  uint8_t body[SCL_FRAME_BYTES + 8u];
  uint32_t body_size;
} second_t;

static scl_frame_event_t second_take(second_t *s, uint8_t byte) {
  if (byte == 0) {
    const uint32_t size = s->size;
    s->size = 0;
    if (size == 0) {
      return SCL_FRAME_MORE;
    }
    switch (fuzz_decode(s->chunk, size, s->body, SCL_FRAME_BYTES - 4u, &s->body_size)) {
      case FUZZ_GOOD:
        return SCL_FRAME_COMPLETE;
      case FUZZ_TOO_LONG:
        return SCL_FRAME_TOO_LONG;
      default:
        return SCL_FRAME_DAMAGED;
    }
  }
  if (s->size == 1u && s->chunk[0] == '?' && (byte == '\r' || byte == '\n')) {
    s->size = 0;
    return SCL_FRAME_QUESTION;
  }
  s->chunk[s->size++] = byte;
  return SCL_FRAME_MORE;
}

static void parse(const uint8_t *data, uint32_t size) {
  static guarded_t g;
  static second_t s;
  memset(&g, CANARY, sizeof g);
  memset(&g.frame, 0, sizeof g.frame);
  s.size = 0;
  for (uint32_t k = 0; k < size; k++) {
    const scl_frame_event_t event = scl_frame_take(&g.frame, data[k]);
    FUZZ_CHECK(event == second_take(&s, data[k]), "another event");
    if (event == SCL_FRAME_COMPLETE) {
      FUZZ_CHECK(g.frame.size == s.body_size && memcmp(g.frame.bytes, s.body, s.body_size) == 0, "another frame");
    }
  }
  check_canaries(&g);
}

/* Any bytes as a frame's contents: the second parser reads what the engine sends, the engine what the second one does. */
static void round_trip(const uint8_t *data, uint32_t size) {
  static uint8_t bytes[SCL_FRAME_BYTES], wire[2u * MOST], body[SCL_FRAME_BYTES + 8u];
  uint32_t body_size;
  if (size < SCL_FRAME_HEAD || size > SCL_FRAME_BYTES - 4u) {
    return;
  }
  memcpy(bytes, data, size);
  sent_size = 0;
  scl_frame_send(bytes, size);
  FUZZ_CHECK(fuzz_decode(sent, sent_size - 1u, body, SCL_FRAME_BYTES - 4u, &body_size) == FUZZ_GOOD,
             "sent what cannot be read");
  FUZZ_CHECK(body_size == size && memcmp(body, data, size) == 0, "sent something else");
  parse(sent, sent_size);
  parse(wire, fuzz_encode(data, size, wire));
}

int LLVMFuzzerInitialize(int *count, char ***arguments) {
  (void)count;
  (void)arguments;
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size <= MOST) {
    parse(data, (uint32_t)size);
    round_trip(data, (uint32_t)size);
  }
  return 0;
}
