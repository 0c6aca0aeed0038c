/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on whole tensors: copies with other margins, sums, errors, and
 * the input of the network.  docs/spec/numerics.md "Other layers".
 */
#ifndef SCL_TENSOR_H
#define SCL_TENSOR_H

#include "scl_layer.h"

/* Where the values of a tensor lie: (c, y, x) at origin + c * plane + y * row + x.  Its error is laid out the same way. */
typedef struct {
  uint16_t channels, height, width;
  uint32_t row, plane, origin;
} scl_tensor_t;

SCL_INLINE uint32_t scl_tensor_at(const scl_tensor_t t, uint32_t channel, uint32_t y, uint32_t x) {
  return t.origin + channel * t.plane + y * t.row + x;
}

/*
 * Copies to a tensor with other margins, which the caller has cleared; 8 bits stay 8 bits.  by_pixel: `from` lies in the
 * order (row, column, channel) without margins, as samples do.
 */
SCL_INLINE void scl_pad(const scl_tensor_t from, const scl_tensor_t to, const void *x, scl_kind_t kind, void *out,
                        int by_pixel) {
  for (uint32_t c = 0; c < to.channels; c++) {
    for (uint32_t y = 0; y < to.height; y++) {
      for (uint32_t column = 0; column < to.width; column++) {
        const uint32_t at = by_pixel ? (y * to.width + column) * to.channels + c : scl_tensor_at(from, c, y, column);
        const uint32_t place = scl_tensor_at(to, c, y, column);
        if (kind == SCL_I16) {
          ((int16_t *)out)[place] = ((const int16_t *)x)[at];
        } else {
          ((uint8_t *)out)[place] = ((const uint8_t *)x)[at];
        }
      }
    }
  }
}

/* One input of a sum. */
typedef struct {
  const void *x;
  scl_tensor_t tensor;
  scl_kind_t kind;
  int8_t shift; /* its fraction less that of the sum */
} scl_addend_t;

/* The sum of `n` tensors; returns how many values saturated. */
SCL_INLINE uint32_t scl_add(const scl_addend_t *in, uint32_t n, const scl_tensor_t to, int16_t *out,
                            scl_activation_t a) {
  uint32_t saturated = 0;
  for (uint32_t c = 0; c < to.channels; c++) {
    for (uint32_t y = 0; y < to.height; y++) {
      for (uint32_t x = 0; x < to.width; x++) {
        int32_t sum = 0;
        for (uint32_t k = 0; k < n; k++) {
          sum += scl_shift(scl_load(in[k].x, in[k].kind, scl_tensor_at(in[k].tensor, c, y, x)), in[k].shift);
        }
        out[scl_tensor_at(to, c, y, x)] = scl_activate_value(sum, a, &saturated);
      }
    }
  }
  return saturated;
}

/* Contributes the error of an output to the error of an input of the same size: add and pad. */
SCL_INLINE void scl_copy_error(const scl_tensor_t from, const int16_t *e_out, const scl_tensor_t to, int16_t *e_in,
                               int first) {
  for (uint32_t c = 0; c < to.channels; c++) {
    for (uint32_t y = 0; y < to.height; y++) {
      for (uint32_t x = 0; x < to.width; x++) {
        scl_contribute(&e_in[scl_tensor_at(to, c, y, x)], e_out[scl_tensor_at(from, c, y, x)], first);
      }
    }
  }
}

/*
 * Adds the error sums of a convolution, laid out as its input, to the input's error.  value: the input if it
 * is rectified, else NULL.  Returns how many saturated.
 */
SCL_INLINE uint32_t scl_contribute_sums(const scl_tensor_t t, const int32_t *sums, int16_t *e, const int16_t *value,
                                        int32_t shift, int first) {
  uint32_t saturated = 0;
  for (uint32_t c = 0; c < t.channels; c++) {
    for (uint32_t y = 0; y < t.height; y++) {
      for (uint32_t x = 0; x < t.width; x++) {
        const uint32_t at = scl_tensor_at(t, c, y, x);
        int32_t v = 0;
        if (value == NULL || value[at] != 0) {
          v = scl_shift(sums[at], shift);
          if (v > 32767 || v < -32768) {
            saturated++;
          }
        }
        scl_contribute(&e[at], scl_sat16(v), first);
      }
    }
  }
  return saturated;
}

/*
 * A rectified tensor as one bit for each of `size` values, margins included: whether errors pass, which is above 0 and
 * below `high` (32767 and more: any height).  Written when it is certain that the values themselves are not kept, or
 * before a norm guard changes them.
 */
SCL_INLINE void scl_alive(const int16_t *value, uint32_t size, int32_t high, uint8_t *bits) {
  /* Counted in bytes: with a count of values gcc warns of a byte behind the last one. */
  const uint32_t bytes = (size + 7u) / 8u;
  for (uint32_t i = 0; i < bytes; i++, value += 8) {
    const uint32_t count = size % 8u == 0 ? 8u : scl_min_u32(8u, size - 8u * i);
    uint32_t byte = 0;
    SCL_UNROLL_ALL
    for (uint32_t k = 0; k < count; k++) {
      const int32_t v = value[k];
      byte |= (v > 0 && (v < high || high >= 32767) ? 1u : 0u) << k;
    }
    bits[i] = (uint8_t)byte;
  }
}

/* Clears the errors of values that are not alive. */
SCL_INLINE void scl_mask_error(int16_t *e, uint32_t size, const uint8_t *bits) {
  for (uint32_t i = 0; i < size; i += 8u) {
    const uint32_t count = size % 8u == 0 ? 8u : scl_min_u32(8u, size - i);
    const uint32_t byte = bits[i / 8u];
    SCL_UNROLL_ALL
    for (uint32_t k = 0; k < count; k++) {
      if ((byte >> k & 1u) == 0) {
        e[i + k] = 0;
      }
    }
  }
}

/*
 * The last tensor of a frozen prefix to the 8-bit input of the network that learns; shift: its fraction less that of the
 * latent.
 */
SCL_INLINE void scl_latent(const scl_tensor_t from, const int16_t *x, int32_t shift, scl_latent_t *latent) {
  const int32_t low = SCL_LATENT_SIGNED ? -128 : 0;
  const int32_t high = SCL_LATENT_SIGNED ? 127 : 255;
  for (uint32_t c = 0; c < from.channels; c++) {
    for (uint32_t y = 0; y < from.height; y++) {
      for (uint32_t column = 0; column < from.width; column++) {
        *latent++ = (scl_latent_t)scl_clamp(scl_shift(x[scl_tensor_at(from, c, y, column)], shift), low, high);
      }
    }
  }
}

#endif
