/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_blake2s.h"

#include <string.h>

#include "scl_bytes.h"

/* RFC 7693, 2.6: the initial state. */
static const uint32_t iv[8] = {0x6A09E667u, 0xBB67AE85u, 0x3C6EF372u, 0xA54FF53Au,
                               0x510E527Fu, 0x9B05688Cu, 0x1F83D9ABu, 0x5BE0CD19u};

/* RFC 7693, 2.7: the order of the message's words in each round. */
static const uint8_t sigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

static uint32_t rotate(uint32_t v, uint32_t by) { return (v >> by) | (v << (32u - by)); }

/* RFC 7693, 3.1; step 0 to 3 mixes a column, 4 to 7 a diagonal. */
static void mix(uint32_t *v, uint32_t step, uint32_t x, uint32_t y) {
  const uint32_t turn = step < 4u ? 0u : 1u;
  uint32_t *a = v + (step & 3u);
  uint32_t *b = v + 4u + ((step + turn) & 3u);
  uint32_t *c = v + 8u + ((step + 2u * turn) & 3u);
  uint32_t *d = v + 12u + ((step + 3u * turn) & 3u);
  *a += *b + x;
  *d = rotate(*d ^ *a, 16);
  *c += *d;
  *b = rotate(*b ^ *c, 12);
  *a += *b + y;
  *d = rotate(*d ^ *a, 8);
  *c += *d;
  *b = rotate(*b ^ *c, 7);
}

/* RFC 7693, 3.2. */
static void compress(scl_blake2s_t *s, int last) {
  uint32_t v[16];
  memcpy(v, s->h, sizeof s->h);
  memcpy(v + 8, iv, sizeof iv);
  v[12] ^= s->count;
  v[14] ^= last ? 0xFFFFFFFFu : 0u;
  for (uint32_t round = 0; round < 10u; round++) {
    for (uint32_t step = 0; step < 8u; step++) {
      const uint8_t *word = sigma[round] + 2u * step;
      mix(v, step, scl_get_u32(s->block + 4u * word[0]), scl_get_u32(s->block + 4u * word[1]));
    }
  }
  for (uint32_t k = 0; k < 8u; k++) {
    s->h[k] ^= v[k] ^ v[k + 8u];
  }
  s->used = 0;
}

void scl_blake2s_begin(scl_blake2s_t *s, const uint8_t *key, uint32_t key_size, uint32_t size) {
  memset(s, 0, sizeof *s);
  memcpy(s->h, iv, sizeof iv);
  s->h[0] ^= 0x01010000u ^ (key_size << 8) ^ size;
  s->size = size;
  if (key_size != 0) { /* the key is a block of its own in front of the message */
    memcpy(s->block, key, key_size);
    s->used = SCL_BLAKE2S_BLOCK;
  }
}

void scl_blake2s_add(scl_blake2s_t *s, const void *data, uint32_t size) {
  const uint8_t *bytes = data;
  for (uint32_t k = 0; k < size; k++) {
    if (s->used == SCL_BLAKE2S_BLOCK) { /* only now is it known not to be the last */
      s->count += SCL_BLAKE2S_BLOCK;
      compress(s, 0);
    }
    s->block[s->used++] = bytes[k];
  }
}

void scl_blake2s_end(scl_blake2s_t *s, uint8_t *result) {
  s->count += s->used;
  memset(s->block + s->used, 0, SCL_BLAKE2S_BLOCK - s->used);
  compress(s, 1);
  for (uint32_t k = 0; k < s->size; k++) {
    result[k] = (uint8_t)(s->h[k / 4u] >> (8u * (k % 4u)));
  }
}
