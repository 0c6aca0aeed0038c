/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inner loops of fully connected layers for cores with Helium (Armv8.1-M, integer vectors of 128 bits): four or eight
 * weights at a time, with the bits of the plain C.  Sums wrap in both, and no sum overflows (generator/proof.py).
 *
 * Most are a loop with tail predication, for which gcc has no intrinsics: wlstp sets lr to the count and goes past the
 * loop if that is 0; letp takes one vector off.  In the last round the lanes past the count load 0 and store nothing.
 * Registers are gcc's choice but for lr: "w" a vector, "Te" an even register, "l" one of r0 to r7, as loads that widen
 * and stores that narrow ask for.
 */
#ifndef SCL_MVE_H
#define SCL_MVE_H

#include "scl_step.h"

#ifndef SCL_MVE
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1) && defined(__OPTIMIZE__)
#define SCL_MVE 1
#else
#define SCL_MVE 0
#endif
#endif

#if SCL_MVE
#include <arm_mve.h>

/* ---- sums of the forward pass ---- */

/* acc += x * w for n neighbours. */
SCL_INLINE void scl_mve_axpy(int32_t *acc, const int16_t *w, uint32_t n, int32_t x) {
  int32x4_t weights, sums;
  __asm__ volatile(
      "wlstp.32 lr, %[n], 2f\n"
      "1:\n\t"
      "vldrw.u32 %q[sums], [%[acc]]\n\t"
      "vldrh.s32 %q[weights], [%[w]], #8\n\t"
      "vmla.s32 %q[sums], %q[weights], %[x]\n\t"
      "vstrw.32 %q[sums], [%[acc]], #16\n\t"
      "letp lr, 1b\n"
      "2:"
      : [acc] "+r"(acc), [w] "+l"(w), [weights] "=&w"(weights), [sums] "=&w"(sums)
      : [n] "r"(n), [x] "r"(x)
      : "lr", "memory");
}

/* Entries of one line have different places, so no two lanes add to one sum. */
SCL_INLINE void scl_mve_sparse_axpy_1(int32_t *acc, const int16_t *w, const uint8_t *index, uint32_t n, int32_t x) {
  uint32x4_t at;
  int32x4_t weights, sums;
  __asm__ volatile(
      "wlstp.32 lr, %[n], 2f\n"
      "1:\n\t"
      "vldrb.u32 %q[at], [%[index]], #4\n\t"
      "vldrh.s32 %q[weights], [%[w]], #8\n\t"
      "vldrw.u32 %q[sums], [%[acc], %q[at], uxtw #2]\n\t"
      "vmla.s32 %q[sums], %q[weights], %[x]\n\t"
      "vstrw.32 %q[sums], [%[acc], %q[at], uxtw #2]\n\t"
      "letp lr, 1b\n"
      "2:"
      : [index] "+l"(index), [w] "+l"(w), [at] "=&w"(at), [weights] "=&w"(weights), [sums] "=&w"(sums)
      : [acc] "r"(acc), [n] "r"(n), [x] "r"(x)
      : "lr", "memory");
}

/* Blocks of two: four entries, first their lower and then their upper sums. */
SCL_INLINE void scl_mve_sparse_axpy_2(int32_t *acc, const int16_t *w, const uint8_t *index, uint32_t n, int32_t x) {
  uint32x4_t at;
  int32x4_t low, high, sums;
  __asm__ volatile(
      "wlstp.32 lr, %[n], 2f\n"
      "1:\n\t"
      "vldrb.u32 %q[at], [%[index]], #4\n\t"
      "vshl.i32 %q[at], %q[at], #1\n\t"
      "vldrh.u16 %q[high], [%[w]], #16\n\t"
      "vmovlb.s16 %q[low], %q[high]\n\t"
      "vmovlt.s16 %q[high], %q[high]\n\t"
      "vldrw.u32 %q[sums], [%[acc], %q[at], uxtw #2]\n\t"
      "vmla.s32 %q[sums], %q[low], %[x]\n\t"
      "vstrw.32 %q[sums], [%[acc], %q[at], uxtw #2]\n\t"
      "vldrw.u32 %q[sums], [%[next], %q[at], uxtw #2]\n\t"
      "vmla.s32 %q[sums], %q[high], %[x]\n\t"
      "vstrw.32 %q[sums], [%[next], %q[at], uxtw #2]\n\t"
      "letp lr, 1b\n"
      "2:"
      : [index] "+l"(index), [w] "+r"(w), [at] "=&w"(at), [low] "=&w"(low), [high] "=&w"(high), [sums] "=&w"(sums)
      : [acc] "r"(acc), [next] "r"(acc + 1), [n] "r"(n), [x] "r"(x)
      : "lr", "memory");
}

/* Blocks of four: an entry is a vector. */
SCL_INLINE void scl_mve_sparse_axpy_4(int32_t *acc, const int16_t *w, const uint8_t *index, uint32_t n, int32_t x) {
  for (uint32_t k = 0; k < n; k++, w += 4) {
    int32_t *sums = acc + 4u * index[k];
    vstrwq_s32(sums, vmlaq_n_s32(vldrwq_s32(sums), vldrhq_s32(w), x));
  }
}

SCL_INLINE void scl_mve_sparse_axpy(int32_t *acc, const int16_t *w, const uint8_t *index, uint32_t n,
                                    const uint32_t block, int32_t x) {
  if (block == 1u) {
    scl_mve_sparse_axpy_1(acc, w, index, n, x);
  } else if (block == 2u) {
    scl_mve_sparse_axpy_2(acc, w, index, n, x);
  } else {
    scl_mve_sparse_axpy_4(acc, w, index, n, x);
  }
}

/*
 * Few outputs, 4 to 16, keep their sums in registers from input to input.  Where n is no multiple of four the last
 * vector overlaps the one before; both compute the same.
 */
typedef struct {
  int32x4_t at[4];
} scl_mve_sums_t;

SCL_INLINE int scl_mve_few_sums(const uint32_t n) { return n >= 4u && n <= 16u; }

SCL_INLINE uint32_t scl_mve_place(uint32_t vector, const uint32_t n) { return scl_min_u32(4u * vector, n - 4u); }

SCL_INLINE scl_mve_sums_t scl_mve_load_sums(const int32_t *acc, const uint32_t n) {
  scl_mve_sums_t sums;
  SCL_UNROLL_ALL
  for (uint32_t v = 0; v < 4u; v++) {
    sums.at[v] = vldrwq_s32(acc + scl_mve_place(v, n));
  }
  return sums;
}

SCL_INLINE void scl_mve_add_row(scl_mve_sums_t *sums, const int16_t *w, const uint32_t n, int32_t x) {
  SCL_UNROLL_ALL
  for (uint32_t v = 0; 4u * v < n; v++) {
    sums->at[v] = vmlaq_n_s32(sums->at[v], vldrhq_s32(w + scl_mve_place(v, n)), x);
  }
}

SCL_INLINE void scl_mve_store_sums(int32_t *acc, scl_mve_sums_t sums, const uint32_t n) {
  SCL_UNROLL_ALL
  for (uint32_t v = 0; 4u * v < n; v++) {
    vstrwq_s32(acc + scl_mve_place(v, n), sums.at[v]);
  }
}

/* ---- activations, errors to steps: of the first n / 4 * 4 values; they return how many ---- */

/* ReLU without saturation: adds to *sum, and *bits gets at least the highest bit of any. */
SCL_INLINE uint32_t scl_mve_relu(const int32_t *acc, int16_t *out, uint32_t n, int32_t shift, uint32_t *sum,
                                 uint32_t *bits) {
  int32_t most = 0;
  for (uint32_t o = 0; o + 4u <= n; o += 4u) {
    const int32x4_t alive = vmaxq_s32(vrshlq_n_s32(vldrwq_s32(acc + o), -shift), vdupq_n_s32(0));
    most = vmaxvq_s32(most, alive);
    *sum = vaddvaq_u32(*sum, vreinterpretq_u32_s32(alive));
    vstrhq_s32(out + o, alive);
  }
  *bits |= (uint32_t)most;
  return n / 4u * 4u;
}

/* scl_scaled, and the bias's step, which is 0 where the error is. */
SCL_INLINE uint32_t scl_mve_scale_and_bias(int16_t *e, int32_t *bias, uint32_t n, int32_t multiplier,
                                           int32_t rate_shift, int32_t shift, int32_t limit) {
  const int32x4_t low = vdupq_n_s32(-limit);
  const int32x4_t high = vdupq_n_s32(limit);
  for (uint32_t o = 0; o + 4u <= n; o += 4u) {
    const int32x4_t scaled = vrshlq_n_s32(vmulq_n_s32(vldrhq_s32(e + o), multiplier), -rate_shift);
    const int32x4_t g = vmovlbq_s16(vqmovnbq_s32(vdupq_n_s16(0), scaled));
    const int32x4_t b = vsubq_s32(vldrwq_s32(bias + o), vrshlq_n_s32(g, -shift));
    vstrhq_s32(e + o, g);
    vstrwq_s32(bias + o, vminq_s32(vmaxq_s32(b, low), high));
  }
  return n / 4u * 4u;
}

/* ---- error sums ---- */

/* The scalar product of n neighbours. */
SCL_INLINE int32_t scl_mve_dot(const int16_t *w, const int16_t *e, uint32_t n) {
  int16x8_t weights, errors;
  int32_t sum = 0;
  __asm__(
      "wlstp.16 lr, %[n], 2f\n"
      "1:\n\t"
      "vldrh.u16 %q[weights], [%[w]], #16\n\t"
      "vldrh.u16 %q[errors], [%[e]], #16\n\t"
      "vmladava.s16 %[sum], %q[weights], %q[errors]\n\t"
      "letp lr, 1b\n"
      "2:"
      : [sum] "+Te"(sum), [w] "+r"(w), [e] "+r"(e), [weights] "=&w"(weights), [errors] "=&w"(errors)
      : [n] "r"(n)
      : "lr", "memory");
  return sum;
}

/* The errors of few outputs, 8 to 16, stay in registers: the last vector has those that are not in the first. */
typedef struct {
  int16x8_t first, last;
} scl_mve_errors_t;

SCL_INLINE int scl_mve_few_errors(const uint32_t n) { return n >= 8u && n <= 16u; }

SCL_INLINE scl_mve_errors_t scl_mve_load_errors(const int16_t *e, const uint32_t n) {
  if (!scl_mve_few_errors(n)) {
    return (scl_mve_errors_t){vdupq_n_s16(0), vdupq_n_s16(0)};
  }
  return (scl_mve_errors_t){vldrhq_s16(e), vldrhq_z_s16(e + n - 8u, (mve_pred16_t)~vctp16q(16u - n))};
}

/* The scalar product of a row with the errors at e, or with those that stay in registers. */
SCL_INLINE int32_t scl_mve_dot_row(const int16_t *w, const int16_t *e, scl_mve_errors_t errors, const uint32_t n) {
  if (!scl_mve_few_errors(n)) {
    return scl_mve_dot(w, e, n);
  }
  const int32_t sum = vmladavq_s16(vldrhq_s16(w), errors.first);
  return n == 8u ? sum : vmladavaq_s16(sum, vldrhq_s16(w + n - 8u), errors.last);
}

SCL_INLINE int32_t scl_mve_sparse_dot_1(const int16_t *e, const int16_t *w, const uint8_t *index, uint32_t n) {
  uint16x8_t at;
  int16x8_t weights, errors;
  int32_t sum = 0;
  __asm__(
      "wlstp.16 lr, %[n], 2f\n"
      "1:\n\t"
      "vldrb.u16 %q[at], [%[index]], #8\n\t"
      "vldrh.u16 %q[weights], [%[w]], #16\n\t"
      "vldrh.u16 %q[errors], [%[e], %q[at], uxtw #1]\n\t"
      "vmladava.s16 %[sum], %q[weights], %q[errors]\n\t"
      "letp lr, 1b\n"
      "2:"
      : [sum] "+Te"(sum), [index] "+l"(index), [w] "+r"(w), [at] "=&w"(at), [weights] "=&w"(weights),
        [errors] "=&w"(errors)
      : [e] "r"(e), [n] "r"(n)
      : "lr", "memory");
  return sum;
}

/* Blocks of two: four entries, whose upper errors are moved beside the lower ones. */
SCL_INLINE int32_t scl_mve_sparse_dot_2(const int16_t *e, const int16_t *w, const uint8_t *index, uint32_t n) {
  uint32x4_t at;
  int16x8_t weights, errors, upper;
  int32_t sum = 0;
  __asm__(
      "wlstp.32 lr, %[n], 2f\n"
      "1:\n\t"
      "vldrb.u32 %q[at], [%[index]], #4\n\t"
      "vshl.i32 %q[at], %q[at], #1\n\t"
      "vldrh.u32 %q[errors], [%[e], %q[at], uxtw #1]\n\t"
      "vldrh.u32 %q[upper], [%[next], %q[at], uxtw #1]\n\t"
      "vmovnt.i32 %q[errors], %q[upper]\n\t"
      "vldrh.u16 %q[weights], [%[w]], #16\n\t"
      "vmladava.s16 %[sum], %q[weights], %q[errors]\n\t"
      "letp lr, 1b\n"
      "2:"
      : [sum] "+Te"(sum), [index] "+l"(index), [w] "+r"(w), [at] "=&w"(at), [weights] "=&w"(weights),
        [errors] "=&w"(errors), [upper] "=&w"(upper)
      : [e] "r"(e), [next] "r"(e + 1), [n] "r"(n)
      : "lr", "memory");
  return sum;
}

SCL_INLINE int32_t scl_mve_sparse_dot_4(const int16_t *e, const int16_t *w, const uint8_t *index, uint32_t n) {
  int32_t sum = 0;
  for (uint32_t k = 0; k < n; k++, w += 4) {
    sum = vmladavaq_s32(sum, vldrhq_s32(w), vldrhq_s32(e + 4u * index[k]));
  }
  return sum;
}

SCL_INLINE int32_t scl_mve_sparse_dot(const int16_t *e, const int16_t *w, const uint8_t *index, uint32_t n,
                                      const uint32_t block) {
  return block == 1u   ? scl_mve_sparse_dot_1(e, w, index, n)
         : block == 2u ? scl_mve_sparse_dot_2(e, w, index, n)
                       : scl_mve_sparse_dot_4(e, w, index, n);
}

/* ---- steps ---- */

/*
 * Random numbers, four draws of scl_prng_next in a vector.  k draws are one multiplication and one addition as well,
 * state * A^k + C_k, also backward: before the first vector the lanes have the states of the three draws before, and
 * then the state, so that a step of four draws gives the next four.
 */
#define SCL_MVE_A2 (SCL_PRNG_A * SCL_PRNG_A)
#define SCL_MVE_C2 (SCL_PRNG_A * SCL_PRNG_C + SCL_PRNG_C)
#define SCL_MVE_A4 (SCL_MVE_A2 * SCL_MVE_A2)
#define SCL_MVE_C4 (SCL_MVE_A2 * SCL_MVE_C2 + SCL_MVE_C2)
#define SCL_MVE_BACK_A 4276115653u /* the inverse of A */
#define SCL_MVE_BACK_C (0u - SCL_PRNG_C * SCL_MVE_BACK_A)
#define SCL_MVE_BACK_A2 (SCL_MVE_BACK_A * SCL_MVE_BACK_A)
#define SCL_MVE_BACK_C2 (SCL_MVE_BACK_A * SCL_MVE_BACK_C + SCL_MVE_BACK_C)
_Static_assert(SCL_PRNG_A *SCL_MVE_BACK_A == 1u, "the inverse of the generator's factor");

SCL_INLINE uint32x4_t scl_mve_random(uint32_t state) {
  const uint32x4_t factors = {SCL_MVE_BACK_A2 * SCL_MVE_BACK_A, SCL_MVE_BACK_A2, SCL_MVE_BACK_A, 1};
  const uint32x4_t offsets = {SCL_MVE_BACK_A2 * SCL_MVE_BACK_C + SCL_MVE_BACK_C2, SCL_MVE_BACK_C2, SCL_MVE_BACK_C, 0};
  return vmlaq_n_u32(offsets, factors, state);
}

/* The state after n draws.  The last lies in lane (n - 1) % 4, as lanes past the count do not draw. */
SCL_INLINE uint32_t scl_mve_state(uint32x4_t random, uint32_t n) {
  if (__builtin_constant_p(n & 3u)) {
    const uint32_t last = (n - 1u) & 3u;
    return last == 0   ? vgetq_lane_u32(random, 0)
           : last == 1 ? vgetq_lane_u32(random, 1)
           : last == 2 ? vgetq_lane_u32(random, 2)
                       : vgetq_lane_u32(random, 3);
  }
  uint32_t lanes[4];
  vstrwq_u32(lanes, random);
  return lanes[(n - 1u) & 3u];
}

/*
 * Steps of four weights at w by x times g: draw, round, subtract, saturate.  Weights of 16 bits saturate when they are
 * narrowed, others in the upper bits of a word.
 */
#define SCL_MVE_STEP                          \
  "vmlas.u32 %q[random], %q[a4], %[c4]\n\t"   \
  "vshr.u32 %q[sum], %q[random], %[down]\n\t" \
  "vmla.s32 %q[sum], %q[g], %[x]\n\t"         \
  "vldrh.s32 %q[g], [%[w]]\n\t"               \
  "vshr.s32 %q[sum], %q[sum], %[shift]\n\t"   \
  "vsub.i32 %q[g], %q[g], %q[sum]\n\t"
#define SCL_MVE_SATURATE_16 "vqmovnb.s32 %q[g], %q[g]\n\t"
#define SCL_MVE_SATURATE                 \
  "vqshl.s32 %q[g], %q[g], %[spare]\n\t" \
  "vshr.s32 %q[g], %q[g], %[spare]\n\t"
#define SCL_MVE_STORE "vstrh.32 %q[g], [%[w]], #8\n\t"
#define SCL_MVE_CONSTANTS(factor, s)                                                                     \
  [x] "r"(factor), [a4] "w"(vdupq_n_u32(SCL_MVE_A4)), [c4] "r"(SCL_MVE_C4), [down] "i"(32u - (s).shift), \
      [shift] "i"((s).shift), [spare] "i"(31u - (s).wlog)

/* w -= g * x, rounded, for n neighbours. */
#define SCL_MVE_STEP_ROW(saturate)                                                              \
  __asm__ volatile(                                                                             \
      "wlstp.32 lr, %[n], 2f\n"                                                                 \
      "1:\n\t"                                                                                  \
      "vldrh.s32 %q[g], [%[from]], #8\n\t" SCL_MVE_STEP saturate SCL_MVE_STORE                  \
      "letp lr, 1b\n"                                                                           \
      "2:"                                                                                      \
      : [from] "+l"(g), [w] "+l"(w), [random] "+w"(random), [g] "=&w"(values), [sum] "=&w"(sum) \
      : [n] "r"(n), SCL_MVE_CONSTANTS(x, s)                                                     \
      : "lr", "memory")

SCL_INLINE void scl_mve_step_row(int16_t *w, const int16_t *g, uint32_t n, int32_t x, const scl_stepping_t s) {
  uint32x4_t random = scl_mve_random(*s.prng);
  int32x4_t values, sum;
  if (s.wlog == 15u) {
    SCL_MVE_STEP_ROW(SCL_MVE_SATURATE_16);
  } else {
    SCL_MVE_STEP_ROW(SCL_MVE_SATURATE);
  }
  *s.prng = scl_mve_state(random, n);
}

#define SCL_MVE_STEP_1(saturate)                                                                     \
  __asm__ volatile(                                                                                  \
      "wlstp.32 lr, %[n], 2f\n"                                                                      \
      "1:\n\t"                                                                                       \
      "vldrb.u32 %q[sum], [%[index]], #4\n\t"                                                        \
      "vldrh.s32 %q[g], [%[from], %q[sum], uxtw #1]\n\t" SCL_MVE_STEP saturate SCL_MVE_STORE         \
      "letp lr, 1b\n"                                                                                \
      "2:"                                                                                           \
      : [index] "+l"(index), [w] "+l"(w), [random] "+w"(random), [g] "=&w"(values), [sum] "=&w"(sum) \
      : [from] "r"(g), [n] "r"(n), SCL_MVE_CONSTANTS(x, s)                                           \
      : "lr", "memory")

SCL_INLINE void scl_mve_sparse_step_1(int16_t *w, const int16_t *g, const uint8_t *index, uint32_t n, int32_t x,
                                      const scl_stepping_t s) {
  uint32x4_t random = scl_mve_random(*s.prng);
  int32x4_t values, sum;
  if (s.wlog == 15u) {
    SCL_MVE_STEP_1(SCL_MVE_SATURATE_16);
  } else {
    SCL_MVE_STEP_1(SCL_MVE_SATURATE);
  }
  *s.prng = scl_mve_state(random, n);
}

/* Blocks of two: two entries are a vector, their places at[0], at[0] + 1, at[1], at[1] + 1. */
#define SCL_MVE_STEP_2(saturate)                                                                          \
  __asm__ volatile(                                                                                       \
      "wlstp.32 lr, %[n], 2f\n"                                                                           \
      "1:\n\t"                                                                                            \
      "vldrb.u32 %q[sum], [%[index], %q[twice]]\n\t"                                                      \
      "adds %[index], #2\n\t"                                                                             \
      "vshl.i32 %q[sum], %q[sum], #1\n\t"                                                                 \
      "vadd.i32 %q[sum], %q[sum], %q[second]\n\t"                                                         \
      "vldrh.s32 %q[g], [%[from], %q[sum], uxtw #1]\n\t" SCL_MVE_STEP saturate SCL_MVE_STORE              \
      "letp lr, 1b\n"                                                                                     \
      "2:"                                                                                                \
      : [index] "+l"(index), [w] "+l"(w), [random] "+w"(random), [g] "=&w"(values), [sum] "=&w"(sum)      \
      : [from] "r"(g), [n] "r"(2u * n), [twice] "w"(twice), [second] "w"(second), SCL_MVE_CONSTANTS(x, s) \
      : "lr", "cc", "memory")

SCL_INLINE void scl_mve_sparse_step_2(int16_t *w, const int16_t *g, const uint8_t *index, uint32_t n, int32_t x,
                                      const scl_stepping_t s) {
  const uint32x4_t twice = {0, 0, 1, 1};
  const uint32x4_t second = {0, 1, 0, 1};
  uint32x4_t random = scl_mve_random(*s.prng);
  int32x4_t values, sum;
  if (s.wlog == 15u) {
    SCL_MVE_STEP_2(SCL_MVE_SATURATE_16);
  } else {
    SCL_MVE_STEP_2(SCL_MVE_SATURATE);
  }
  *s.prng = scl_mve_state(random, 2u * n);
}

/* In assembler, because gcc 14 asks its intrinsics' shifts to be constants before it has inlined anything. */
#define SCL_MVE_SHIFT_RIGHT(type, to, from, count) \
  __asm__("vshr." type " %q0, %q1, %2" : "=w"(to) : "w"(from), "i"(count))

/* Blocks of four: an entry is a vector. */
SCL_INLINE void scl_mve_sparse_step_4(int16_t *w, const int16_t *g, const uint8_t *index, uint32_t n, int32_t x,
                                      const scl_stepping_t s) {
  const int32x4_t low = vdupq_n_s32(-(int32_t)(1u << s.wlog));
  const int32x4_t high = vdupq_n_s32((int32_t)(1u << s.wlog) - 1);
  uint32x4_t random = scl_mve_random(*s.prng);
  for (uint32_t k = 0; k < n; k++, w += 4) {
    random = vmlasq_n_u32(random, vdupq_n_u32(SCL_MVE_A4), SCL_MVE_C4);
    int32x4_t rounding, step;
    SCL_MVE_SHIFT_RIGHT("u32", rounding, random, 32u - s.shift);
    SCL_MVE_SHIFT_RIGHT("s32", step, vmlaq_n_s32(rounding, vldrhq_s32(g + 4u * index[k]), x), s.shift);
    vstrhq_s32(w, vminq_s32(vmaxq_s32(vsubq_s32(vldrhq_s32(w), step), low), high));
  }
  *s.prng = scl_mve_state(random, 4);
}

SCL_INLINE void scl_mve_sparse_step(int16_t *w, const int16_t *g, const uint8_t *index, uint32_t n,
                                    const uint32_t block, int32_t x, const scl_stepping_t s) {
  if (block == 1u) {
    scl_mve_sparse_step_1(w, g, index, n, x, s);
  } else if (block == 2u) {
    scl_mve_sparse_step_2(w, g, index, n, x, s);
  } else {
    scl_mve_sparse_step_4(w, g, index, n, x, s);
  }
}

#endif

#endif
