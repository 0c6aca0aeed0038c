/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two 16-bit values in one word.  SCL_PAIRS says whether kernels work on pairs: on cores with the DSP extension each
 * function below is one instruction.  Elsewhere they are plain C with the same bits, which the tests make use of.
 */
#ifndef SCL_SIMD_H
#define SCL_SIMD_H

#include <string.h>

#include "scl_fixed.h"

#if defined(__ARM_FEATURE_SIMD32) && defined(__OPTIMIZE__)
#define SCL_DSP 1
#include <arm_acle.h>
#else
#define SCL_DSP 0
#endif

#ifndef SCL_PAIRS
#define SCL_PAIRS SCL_DSP
#endif

/* Whether a word can be read from any address at the cost of one load. */
#if defined(__ARM_FEATURE_UNALIGNED) || !defined(__arm__)
#define SCL_UNALIGNED 1
#else
#define SCL_UNALIGNED 0
#endif

/* Two values of 16 bits, at any address where SCL_UNALIGNED, the first in the lower half. */
SCL_INLINE uint32_t scl_pair(const int16_t *p) {
  uint32_t pair;
  memcpy(&pair, p, sizeof pair);
  return pair;
}

SCL_INLINE void scl_put_pair(int16_t *p, uint32_t pair) { memcpy(p, &pair, sizeof pair); }

SCL_INLINE int32_t scl_low(uint32_t pair) { return (int16_t)pair; }

SCL_INLINE int32_t scl_high(uint32_t pair) { return scl_asr((int32_t)pair, 16); }

/* Two neighbours among 32-bit values: one load or store, which gcc does not reliably find. */
typedef struct {
  int32_t a, b;
} scl_two_t;

SCL_INLINE scl_two_t scl_load_two(const int32_t *p, const uint32_t i) {
  scl_two_t two;
#if SCL_DSP
  __asm__("ldrd %0, %1, [%2, %3]" : "=r"(two.a), "=r"(two.b) : "r"(p), "I"(4u * i), "m"(p[i]), "m"(p[i + 1u]));
#else
  two.a = p[i];
  two.b = p[i + 1u];
#endif
  return two;
}

SCL_INLINE void scl_store_two(int32_t *p, const uint32_t i, scl_two_t two) {
#if SCL_DSP
  __asm__("strd %2, %3, [%4, %5]" : "=m"(p[i]), "=m"(p[i + 1u]) : "r"(two.a), "r"(two.b), "r"(p), "I"(4u * i));
#else
  p[i] = two.a;
  p[i + 1u] = two.b;
#endif
}

/* Sums begin with the biases. */
SCL_INLINE void scl_copy_sums(int32_t *sums, const int32_t *bias, const uint32_t n) {
  uint32_t i = 0;
  for (; SCL_DSP && i + 16u <= n; i += 16u) {
    SCL_UNROLL_ALL
    for (uint32_t j = 0; j < 16u; j += 2u) {
      scl_store_two(sums + i, j, scl_load_two(bias + i, j));
    }
  }
  memcpy(sums + i, bias + i, (n - i) * sizeof *sums);
}

/* n sums of 0. */
SCL_INLINE void scl_clear_sums(int32_t *sums, const uint32_t n) {
  uint32_t i = 0;
  for (; SCL_DSP && i + 16u <= n; i += 16u) {
    SCL_UNROLL_ALL
    for (uint32_t j = 0; j < 16u; j += 2u) {
      scl_store_two(sums + i, j, (scl_two_t){0, 0});
    }
  }
  memset(sums + i, 0, (n - i) * sizeof *sums);
}

/* Four values of 16 bits on a word's boundary. */
SCL_INLINE scl_two_t scl_load_two_pairs(const int16_t *p) {
  scl_two_t two;
#if SCL_DSP
  __asm__("ldrd %0, %1, [%2]" : "=r"(two.a), "=r"(two.b) : "r"(p), "m"(*(const int16_t (*)[4])p));
#else
  memcpy(&two, p, sizeof two);
#endif
  return two;
}

/* sum + the lower, the upper value of a pair times x, which has 16 bits. */
SCL_INLINE int32_t scl_mac_low(int32_t sum, uint32_t pair, int32_t x) {
#if SCL_DSP
  return __smlabb((int32_t)pair, x, sum);
#else
  return sum + scl_low(pair) * x;
#endif
}

SCL_INLINE int32_t scl_mac_high(int32_t sum, uint32_t pair, int32_t x) {
#if SCL_DSP
  return __smlatb((int32_t)pair, x, sum);
#else
  return sum + scl_high(pair) * x;
#endif
}

/* Multiplies and adds with the upper half of a pair of weights. */
SCL_INLINE int32_t scl_mac_low_by_high(int32_t sum, uint32_t pair, uint32_t w) {
#if SCL_DSP
  return __smlabt((int32_t)pair, (int32_t)w, sum);
#else
  return sum + scl_low(pair) * scl_high(w);
#endif
}

SCL_INLINE int32_t scl_mac_high_by_high(int32_t sum, uint32_t pair, uint32_t w) {
#if SCL_DSP
  return __smlatt((int32_t)pair, (int32_t)w, sum);
#else
  return sum + scl_high(pair) * scl_high(w);
#endif
}

/* sum + both products. */
SCL_INLINE int32_t scl_mac_pair(int32_t sum, uint32_t a, uint32_t b) {
#if SCL_DSP
  return __smlad((int16x2_t)a, (int16x2_t)b, sum);
#else
  return sum + scl_low(a) * scl_low(b) + scl_high(a) * scl_high(b);
#endif
}

/* The lower 16 bits of low * 2^-shift, rounded down, below the upper 16 bits of high; shift a constant of 1 to 31. */
SCL_INLINE uint32_t scl_pack(int32_t low, const uint32_t shift, int32_t high) {
#if SCL_DSP
  uint32_t pair;
  __asm__("pkhtb %0, %1, %2, asr %3" : "=r"(pair) : "r"(high), "r"(low), "I"(shift));
  return pair;
#else
  return ((uint32_t)high & 0xFFFF0000u) | ((uint32_t)scl_asr(low, shift) & 0xFFFFu);
#endif
}

/* acc += x * w for `count` neighbours, an even constant of at most 8. */
SCL_INLINE void scl_axpy_pairs(int32_t *acc, const int16_t *w, const uint32_t count, int32_t x) {
  SCL_UNROLL_ALL
  for (uint32_t o = 0; o < count; o += 2u) {
    const uint32_t pair = scl_pair(&w[o]);
    scl_two_t two = scl_load_two(acc, o);
    two.a = scl_mac_low(two.a, pair, x);
    two.b = scl_mac_high(two.b, pair, x);
    scl_store_two(acc, o, two);
  }
}

/* Four weights of a sparse line: they lie on a word's boundary. */
SCL_INLINE void scl_axpy_four(int32_t *acc, const int16_t *w, int32_t x) {
  const scl_two_t pairs = scl_load_two_pairs(w);
  scl_two_t low = scl_load_two(acc, 0), high = scl_load_two(acc, 2);
  low.a = scl_mac_low(low.a, (uint32_t)pairs.a, x);
  low.b = scl_mac_high(low.b, (uint32_t)pairs.a, x);
  high.a = scl_mac_low(high.a, (uint32_t)pairs.b, x);
  high.b = scl_mac_high(high.b, (uint32_t)pairs.b, x);
  scl_store_two(acc, 0, low);
  scl_store_two(acc, 2, high);
}

/* a - b, each half saturated to [-2^log, 2^log - 1], log a constant up to 15. */
SCL_INLINE uint32_t scl_subtract_pair(uint32_t a, uint32_t b, const uint32_t log) {
#if SCL_DSP
  uint32_t pair = (uint32_t)__qsub16((int16x2_t)a, (int16x2_t)b);
  if (log < 15u) {
    __asm__("ssat16 %0, %1, %2" : "=r"(pair) : "I"(log + 1u), "r"(pair));
  }
  return pair;
#else
  const int32_t low = scl_saturate(scl_low(a) - scl_low(b), log);
  const int32_t high = scl_saturate(scl_high(a) - scl_high(b), log);
  return ((uint32_t)high << 16) | ((uint32_t)low & 0xFFFFu);
#endif
}

/* The lower halves of two words. */
SCL_INLINE uint32_t scl_lower_halves(uint32_t low, uint32_t high) {
#if SCL_DSP
  uint32_t pair;
  __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(pair) : "r"(low), "r"(high));
  return pair;
#else
  return (low & 0xFFFFu) | (high << 16);
#endif
}

/* The upper halves of two words. */
SCL_INLINE uint32_t scl_upper_halves(uint32_t low, uint32_t high) {
#if SCL_DSP
  uint32_t pair;
  __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(pair) : "r"(high), "r"(low));
  return pair;
#else
  return (low >> 16) | (high & 0xFFFF0000u);
#endif
}

/* Of each half the greater of a and b, a if they are equal, and the mark that goes with it. */
typedef struct {
  uint32_t value, mark;
} scl_chosen_t;

SCL_INLINE scl_chosen_t scl_greater_halves(uint32_t a, uint32_t b, uint32_t mark_a, uint32_t mark_b) {
  scl_chosen_t chosen;
#if SCL_DSP
  __asm__("ssub16 %0, %2, %3\n\tsel %0, %2, %3\n\tsel %1, %4, %5"
          : "=&r"(chosen.value), "=&r"(chosen.mark)
          : "r"(a), "r"(b), "r"(mark_a), "r"(mark_b));
#else
  const uint32_t low = scl_low(a) >= scl_low(b) ? 0xFFFFu : 0, high = scl_high(a) >= scl_high(b) ? 0xFFFF0000u : 0;
  const uint32_t from_a = low | high;
  chosen.value = (a & from_a) | (b & ~from_a);
  chosen.mark = (mark_a & from_a) | (mark_b & ~from_a);
#endif
  return chosen;
}

/* Four values of 8 bits, at any address where SCL_UNALIGNED. */
SCL_INLINE uint32_t scl_four_bytes(const void *p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return four;
}

/* Values 0 and 2 of four of 8 bits as two of 16 bits. */
SCL_INLINE uint32_t scl_even_bytes(uint32_t four, int is_signed) {
#if SCL_DSP
  return is_signed ? (uint32_t)__sxtb16((int8x4_t)four) : four & 0x00FF00FFu;
#else
  return is_signed ? scl_lower_halves((uint32_t)(int8_t)four, (uint32_t)(int8_t)(four >> 16)) : four & 0x00FF00FFu;
#endif
}

/* Values 1 and 3. */
SCL_INLINE uint32_t scl_odd_bytes(uint32_t four, int is_signed) {
#if SCL_DSP
  uint32_t pair;
  if (is_signed) {
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(four));
  } else {
    __asm__("uxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(four));
  }
  return pair;
#else
  return scl_even_bytes(four >> 8, is_signed);
#endif
}

#endif
