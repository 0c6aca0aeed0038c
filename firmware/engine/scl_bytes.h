/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers to and from little-endian bytes, for the line and the flash; tags compared. */
#ifndef SCL_BYTES_H
#define SCL_BYTES_H

#include <stdint.h>

static inline void scl_put_u16(uint8_t *p, uint32_t v) {
  p[0] = (uint8_t)v;
  p[1] = (uint8_t)(v >> 8);
}

static inline void scl_put_u32(uint8_t *p, uint32_t v) {
  scl_put_u16(p, v & 0xFFFFu);
  scl_put_u16(p + 2, v >> 16);
}

static inline void scl_put_u64(uint8_t *p, uint64_t v) {
  scl_put_u32(p, (uint32_t)v);
  scl_put_u32(p + 4, (uint32_t)(v >> 32));
}

static inline uint16_t scl_get_u16(const uint8_t *p) { return (uint16_t)(p[0] | (p[1] << 8)); }

static inline uint32_t scl_get_u32(const uint8_t *p) {
  return (uint32_t)scl_get_u16(p) | ((uint32_t)scl_get_u16(p + 2) << 16);
}

/* Constant time: the duration does not reveal how much of a tag is right. */
static inline int scl_equal(const uint8_t *a, const uint8_t *b, uint32_t size) {
  uint8_t wrong = 0;
  for (uint32_t k = 0; k < size; k++) {
    wrong |= (uint8_t)(a[k] ^ b[k]);
  }
  return wrong == 0;
}

#endif
