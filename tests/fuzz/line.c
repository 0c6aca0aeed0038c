/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "board.h"

#define REPLY 0x81u
#define HEAD 4u

/* The board's lines for people. */
static uint32_t text_size(const uint8_t *said, uint32_t size) {
  static const char begin[] = "sparcl-mcu ";
  if (size < sizeof begin || memcmp(said, begin, sizeof begin - 1u) != 0) {
    return 0;
  }
  uint32_t n = 0;
  while (n < size && said[n] != '\n') {
    FUZZ_CHECK(said[n] == '\r' || (said[n] >= ' ' && said[n] <= '~'), "a line of text with other bytes");
    n++;
  }
  FUZZ_CHECK(n < size, "a line of text that does not end");
  return n + 1u;
}

static uint8_t body[FUZZ_FRAME + 8u];

/* The next reply from *at on, in `body`; 0 when there is none left. */
static int next_reply(uint32_t *at, uint32_t *body_size) {
  while (*at < fuzz_said.size) {
    const uint8_t *said = fuzz_said.bytes + *at;
    const uint32_t left = fuzz_said.size - *at;
    const uint32_t text = text_size(said, left);
    if (text > 0 || said[0] == 0) {
      *at += text > 0 ? text : 1u;
      continue;
    }
    const uint8_t *end = memchr(said, 0, left);
    FUZZ_CHECK(end != NULL, "a reply that does not end");
    *at += (uint32_t)(end - said) + 1u;
    FUZZ_CHECK(fuzz_decode(said, (uint32_t)(end - said), body, FUZZ_FRAME, body_size) == FUZZ_GOOD,
               "a reply that cannot be decoded");
    FUZZ_CHECK(body[0] == REPLY, "a frame of the board that is no reply");
    FUZZ_CHECK(body[3] <= FUZZ_LARGEST_STATUS, "a status nobody knows");
    FUZZ_CHECK(body[3] == 0 || *body_size == HEAD, "a refusal with a payload");
    FUZZ_CHECK(*body_size <= HEAD + SCL_MAX_PAYLOAD, "a payload beyond the limit");
    return 1;
  }
  return 0;
}

uint32_t fuzz_check_said(void) {
  uint32_t at = 0, size, replies = 0;
  while (next_reply(&at, &size)) {
    replies++;
  }
  return replies;
}

const fuzz_reply_t *fuzz_request(uint8_t kind, uint8_t sequence, uint8_t command, const uint8_t *payload,
                                 uint32_t size) {
  static uint8_t request[FUZZ_FRAME + 16u], wire[FUZZ_FRAME + FUZZ_FRAME / 128u + 16u];
  static fuzz_reply_t reply;
  const uint8_t head[HEAD] = {kind, sequence, command, 0};
  memcpy(request, head, HEAD);
  if (size > 0) {
    memcpy(request + HEAD, payload, size);
  }
  reply.restarted = fuzz_send(wire, fuzz_encode(request, HEAD + size, wire));
  if (reply.restarted) {
    return &reply;
  }
  uint32_t at = 0, got;
  FUZZ_CHECK(next_reply(&at, &got), "a request without a reply");
  FUZZ_CHECK(body[1] == sequence && body[2] == command, "the reply to another request");
  reply.status = body[3];
  reply.size = got - HEAD;
  memcpy(reply.payload, body + HEAD, reply.size);
  FUZZ_CHECK(!next_reply(&at, &got), "two replies to one request");
  return &reply;
}
