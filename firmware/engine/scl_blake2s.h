/* SPDX-License-Identifier: Apache-2.0 */
/* BLAKE2s with a key, RFC 7693: a message authentication code of 1 to 32 bytes. */
#ifndef SCL_BLAKE2S_H
#define SCL_BLAKE2S_H

#include <stdint.h>

#define SCL_BLAKE2S_BLOCK 64u

typedef struct {
  uint32_t h[8];
  uint32_t count; /* bytes so far, without those in `block`; a message is shorter than 4 GiB */
  uint32_t used;  /* bytes in `block` */
  uint32_t size;  /* of the result */
  uint8_t block[SCL_BLAKE2S_BLOCK];
} scl_blake2s_t;

/* Starts a code; key_size: 0 (no key) to 32; size: bytes of the result. */
void scl_blake2s_begin(scl_blake2s_t *s, const uint8_t *key, uint32_t key_size, uint32_t size);
void scl_blake2s_add(scl_blake2s_t *s, const void *data, uint32_t size);
void scl_blake2s_end(scl_blake2s_t *s, uint8_t *result);

#endif
