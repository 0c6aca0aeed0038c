/* SPDX-License-Identifier: Apache-2.0 */
/* Fixed-point primitives, docs/numerics.md "Primitives". */
#ifndef SCL_FIXED_H
#define SCL_FIXED_H

#include "scl_types.h"

/* C leaves >> of a negative value to the implementation; every use goes through here and a test holds it. */
SCL_INLINE int32_t scl_asr(int32_t v, uint32_t s) { return v >> s; }

/* Round half up.  floor(v / 2^s + 1/2) is the floor plus the bit below the cut, which cannot overflow as v + 2^(s-1) could. */
SCL_INLINE int32_t scl_shift(int32_t v, int32_t s) {
  if (s > 0) {
    return scl_asr(v, (uint32_t)s) + (scl_asr(v, (uint32_t)s - 1u) & 1);
  }
  return (int32_t)((uint32_t)v << (uint32_t)-s);
}

SCL_INLINE int32_t scl_clamp(int32_t v, int32_t low, int32_t high) {
  return v < low ? low : (v > high ? high : v);
}

SCL_INLINE int16_t scl_sat16(int32_t v) { return (int16_t)scl_clamp(v, -32768, 32767); }

SCL_INLINE int16_t scl_clamp_weight(int32_t v, uint32_t wlog) {
  return (int16_t)scl_clamp(v, -(int32_t)(1u << wlog), (int32_t)(1u << wlog) - 1);
}

SCL_INLINE uint32_t scl_abs(int32_t v) { return v < 0 ? 0u - (uint32_t)v : (uint32_t)v; }

SCL_INLINE uint32_t scl_min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

#endif
