/* SPDX-License-Identifier: Apache-2.0 */
/* Checks, and frames written from docs/spec/protocol.md and not from the engine's code. */
#ifndef FUZZ_BASE_H
#define FUZZ_BASE_H

#include <stdint.h>

/* Ends the process as a sanitizer does, so that libFuzzer keeps the input. */
_Noreturn void fuzz_fail(const char *what);

#define FUZZ_CHECK(condition, what) \
  do {                              \
    if (!(condition)) {             \
      fuzz_fail(what);              \
    }                               \
  } while (0)

uint32_t fuzz_crc(const uint8_t *data, uint32_t size);

/* A frame with its checksum and the zero that ends it; returns the bytes on the line. */
uint32_t fuzz_encode(const uint8_t *body, uint32_t size, uint8_t *wire);

typedef enum { FUZZ_DAMAGED, FUZZ_GOOD, FUZZ_TOO_LONG } fuzz_decoded_t;

/* What lies between two zeros, without its checksum, of which at most `room` bytes may be; body: room + 4 bytes. */
fuzz_decoded_t fuzz_decode(const uint8_t *wire, uint32_t size, uint8_t *body, uint32_t room, uint32_t *body_size);

#endif
