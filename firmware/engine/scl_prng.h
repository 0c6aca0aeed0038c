/* SPDX-License-Identifier: Apache-2.0 */
/* The one random generator, docs/spec/numerics.md "Random numbers". */
#ifndef SCL_PRNG_H
#define SCL_PRNG_H

#include "scl_types.h"

/* Numerical Recipes' 32-bit constants: one multiply-add per draw; only the high bits are ever used. */
#define SCL_PRNG_A 1664525u
#define SCL_PRNG_C 1013904223u

SCL_INLINE uint32_t scl_prng_next(uint32_t *state) {
  *state = *state * SCL_PRNG_A + SCL_PRNG_C;
  return *state;
}

/* Uniform in 0 .. n-1. */
SCL_INLINE uint32_t scl_prng_below(uint32_t *state, uint32_t n) {
  return (uint32_t)(((uint64_t)scl_prng_next(state) * n) >> 32);
}

#endif
