/* SPDX-License-Identifier: Apache-2.0 */
/* Fixed-point primitives, docs/spec/numerics.md "Primitives". */
#ifndef SCL_FIXED_H
#define SCL_FIXED_H

#include "scl_types.h"

/* C leaves >> of a negative value to the implementation; every use goes through here and a test holds it. */
/* cppcheck-suppress shiftNegativeLHS ; that is what is asserted */
_Static_assert(-5 >> 1 == -3, "the shift of a negative value has to be arithmetic");
/* cppcheck-suppress shiftTooManyBitsSigned ; up to 31, and arithmetic as asserted above */
SCL_INLINE int32_t scl_asr(int32_t v, uint32_t s) { return v >> s; }

/* Round half up.  floor(v / 2^s + 1/2) is the floor plus the bit below the cut, which cannot overflow as v + 2^(s-1) could. */
SCL_INLINE int32_t scl_shift_right(int32_t v, uint32_t s) { return scl_asr(v, s) + (scl_asr(v, s - 1u) & 1); }

/* Like scl_shift_right, but s may be 0 or negative as well. */
SCL_INLINE int32_t scl_shift(int32_t v, int32_t s) {
  if (s > 0) {
    return scl_shift_right(v, (uint32_t)s);
  }
  return (int32_t)((uint32_t)v << (uint32_t)-s);
}

SCL_INLINE int32_t scl_clamp(int32_t v, int32_t low, int32_t high) { return v < low ? low : (v > high ? high : v); }

/*
 * To [-2^log, 2^log - 1], log a constant of the layer.  ARMv7-M and later have an instruction for it that GCC does not
 * find by itself; the bits are the same.
 */
SCL_INLINE int32_t scl_saturate(int32_t v, const uint32_t log) {
#if defined(__ARM_FEATURE_SAT) && defined(__OPTIMIZE__)
  int32_t saturated;
  __asm__("ssat %0, %1, %2" : "=r"(saturated) : "I"(log + 1u), "r"(v));
  return saturated;
#else
  return scl_clamp(v, -(int32_t)(1u << log), (int32_t)(1u << log) - 1);
#endif
}

SCL_INLINE int16_t scl_sat16(int32_t v) { return (int16_t)scl_saturate(v, 15); }

SCL_INLINE int16_t scl_clamp_weight(int32_t v, const uint32_t wlog) { return (int16_t)scl_saturate(v, wlog); }

SCL_INLINE uint32_t scl_abs(int32_t v) { return v < 0 ? 0u - (uint32_t)v : (uint32_t)v; }

SCL_INLINE int32_t scl_max(int32_t a, int32_t b) { return a > b ? a : b; }

SCL_INLINE uint32_t scl_min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Logarithmic: sixteen bins for each power of 2; below 32 each value has its own. */
SCL_INLINE uint32_t scl_log_bin(uint32_t v) {
  if (v < 32u) {
    return v;
  }
  const uint32_t shift = 27u - (uint32_t)__builtin_clz(v);
  return (shift << 4) + (v >> shift);
}

#endif
