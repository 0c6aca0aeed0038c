/* SPDX-License-Identifier: Apache-2.0 */
/* A weight's step, the innermost operation of the optimizer.  docs/spec/numerics.md "Backward", step 4. */
#ifndef SCL_STEP_H
#define SCL_STEP_H

#include "scl_fixed.h"
#include "scl_prng.h"
#include "scl_simd.h"

/* The benchmark's baseline without sparsity skips nothing. */
#ifdef SCL_BENCH_EVERY_INPUT
#define SCL_SKIP_ERRORS 0
#else
#define SCL_SKIP_ERRORS 1
#endif

/* v * 2^-shift, rounded stochastically (one draw) or to nearest. */
SCL_INLINE int32_t scl_round(int32_t v, uint32_t shift, uint32_t *prng) {
#if SCL_STOCHASTIC
  return scl_asr(v + (int32_t)(scl_prng_next(prng) >> (32u - shift)), shift);
#else
  (void)prng;
  return scl_shift(v, (int32_t)shift);
#endif
}

SCL_INLINE void scl_weight_step(int16_t *w, int32_t change, uint32_t shift, uint32_t wlog, uint32_t *prng) {
  *w = scl_clamp_weight(*w - scl_round(change, shift, prng), wlog);
}

/* A weight that cannot change is not read and written: rounding 0 gives 0.  It still draws its random number. */
SCL_INLINE void scl_weight_skip(uint32_t *prng) {
#if SCL_STOCHASTIC
  (void)scl_prng_next(prng);
#else
  (void)prng;
#endif
}

/*
 * How the weights of a layer step: by g * x * 2^-shift, clamped to wlog bits.  x_bits: magnitude bits of x; sparse: many
 * g are 0.  All but the random numbers are constants.
 */
typedef struct {
  uint32_t shift, wlog, x_bits;
  uint32_t *prng;
  int sparse;
} scl_stepping_t;

/* Whether steps can be taken in pairs: their size, with 16 bits of g, has to fit 16 bits. */
SCL_INLINE int scl_step_in_pairs(const scl_stepping_t s) { return SCL_PAIRS && SCL_STOCHASTIC && s.shift >= s.x_bits; }

/*
 * What the upper value of a pair is multiplied by: its product has the binary point in the middle of the word.  Computed
 * once for all weights of an input.
 */
SCL_INLINE int32_t scl_upper_factor(int32_t x, const scl_stepping_t s) {
  int32_t upper = s.shift < 16u ? x * (int32_t)(1u << (16u - s.shift)) : x;
  SCL_KEEP(upper);
  return upper;
}

/*
 * Steps of two weights by x times each of two values, with two random numbers; upper: scl_upper_factor.  The bits of the
 * upper random number that lie below those of the lower one never matter.
 */
SCL_INLINE void scl_step_pair(int16_t *w, uint32_t g, int32_t x, int32_t upper, uint32_t low_random, uint32_t random,
                              const scl_stepping_t s) {
  const int32_t low = scl_mac_low((int32_t)(low_random >> (32u - s.shift)), g, x);
  int32_t high;
  if (s.shift > 16u) {
    high = scl_asr(scl_mac_high((int32_t)(random >> (32u - s.shift)), g, x), s.shift - 16u);
  } else if (s.shift > s.x_bits) {
    high = scl_mac_high((int32_t)(random >> 16), g, upper);
  } else {
    high = scl_high(g) * upper + (int32_t)(random >> 16);
  }
  scl_put_pair(w, scl_subtract_pair(scl_pair(w), scl_pack(low, s.shift, high), s.wlog));
}

/* Steps of `count` neighbours, an even constant of at most 8; zero errors are passed over. */
SCL_INLINE void scl_step_pairs(int16_t *w, const int16_t *g, const uint32_t count, int32_t x, int32_t upper,
                               const scl_stepping_t s) {
  SCL_UNROLL_ALL
  for (uint32_t o = 0; o < count; o += 2u) {
    uint32_t pair = scl_pair(&g[o]), low_random = scl_prng_next(s.prng), random = scl_prng_next(s.prng);
    if (SCL_SKIP_ERRORS) {
      SCL_KEEP_LOW(pair);
      SCL_KEEP(random);
    }
    *s.prng = random;
    if (SCL_SKIP_ERRORS && pair == 0) {
      continue;
    }
    if (SCL_SKIP_ERRORS) {
      SCL_KEEP(low_random); /* gcc would prepare steps of zeros as well */
    }
    if (s.sparse) {
      SCL_KEEP(pair); /* that costs a copy, which only pays where most are zeros */
    }
    scl_step_pair(&w[o], pair, x, upper, low_random, random, s);
  }
}

/* Steps of any number of neighbours, one by one. */
SCL_INLINE void scl_step_each(int16_t *w, const int16_t *g, const uint32_t count, int32_t x, const scl_stepping_t s) {
  SCL_UNROLL
  for (uint32_t o = 0; o < count; o++) {
    int32_t step = g[o];
    SCL_KEEP_LOW(step);
    if (SCL_SKIP_ERRORS && step == 0) {
      scl_weight_skip(s.prng);
    } else {
      scl_weight_step(&w[o], step * x, s.shift, s.wlog, s.prng);
    }
  }
}

#endif
