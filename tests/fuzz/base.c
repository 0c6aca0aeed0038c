/* SPDX-License-Identifier: Apache-2.0 */
#include "base.h"

#include <stdio.h>
#include <stdlib.h>

#define HEAD 4u

_Noreturn void fuzz_fail(const char *what) {
  (void)fprintf(stderr, "fuzz: %s\n", what);
  abort();
}

uint32_t fuzz_crc(const uint8_t *data, uint32_t size) {
  static uint32_t table[256];
  for (uint32_t n = 0; n < 256u && table[255] == 0; n++) {
    uint32_t v = n;
    for (uint32_t bit = 0; bit < 8u; bit++) {
      v = (v >> 1) ^ (v & 1u ? 0xEDB88320u : 0u);
    }
    table[n] = v;
  }
  uint32_t crc = 0xFFFFFFFFu;
  for (uint32_t k = 0; k < size; k++) {
    crc = (crc >> 8) ^ table[(crc ^ data[k]) & 0xFFu];
  }
  return ~crc;
}

static uint32_t get_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* COBS: the place of each zero holds the way to the next; after 254 bytes without one a code stands for none. */
uint32_t fuzz_encode(const uint8_t *body, uint32_t size, uint8_t *wire) {
  const uint32_t crc = fuzz_crc(body, size);
  uint32_t code_at = 0, at = 1;
  uint8_t code = 1;
  for (uint32_t k = 0; k < size + 4u; k++) {
    const uint8_t byte = (uint8_t)(k < size ? body[k] : crc >> (8u * (k - size)));
    if (byte != 0) {
      wire[at++] = byte;
      code++;
    }
    if (byte == 0 || (code == 0xFFu && k + 1u < size + 4u)) {
      wire[code_at] = code;
      code_at = at++;
      code = 1;
    }
  }
  wire[code_at] = code;
  wire[at++] = 0;
  return at;
}

fuzz_decoded_t fuzz_decode(const uint8_t *wire, uint32_t size, uint8_t *body, uint32_t room, uint32_t *body_size) {
  uint32_t n = 0;
  int whole = 1;
  for (uint32_t at = 0; at < size;) {
    const uint32_t code = wire[at++];
    whole = code - 1u <= size - at;
    const uint32_t end = whole ? at + code - 1u : size;
    while (at < end) {
      body[n < room + 4u ? n : 0u] = wire[at++];
      n++;
    }
    if (code != 0xFFu && at < size) {
      body[n < room + 4u ? n : 0u] = 0;
      n++;
    }
  }
  if (n > room + 4u) {
    return FUZZ_TOO_LONG;
  }
  if (!whole || n < HEAD + 4u || get_u32(body + n - 4u) != fuzz_crc(body, n - 4u)) {
    return FUZZ_DAMAGED;
  }
  *body_size = n - 4u;
  return FUZZ_GOOD;
}
