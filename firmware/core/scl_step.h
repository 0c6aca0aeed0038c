/* SPDX-License-Identifier: Apache-2.0 */
/* One weight's step, the innermost operation of the optimizer.  docs/numerics.md "Backward", step 4. */
#ifndef SCL_STEP_H
#define SCL_STEP_H

#include "scl_fixed.h"
#include "scl_prng.h"

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

#endif
