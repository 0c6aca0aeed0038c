/* SPDX-License-Identifier: Apache-2.0 */
/* Pooling; positions outside of the input do not count.  docs/numerics.md. */
#ifndef SCL_POOL_H
#define SCL_POOL_H

#include "scl_tensor.h"

/* Value (c, y, x) lies at origin + c * plane + y * row + x, in the input and in the output. */
typedef struct {
  uint16_t channels, in_h, in_w, out_h, out_w;
  uint16_t kernel_h, kernel_w, stride_h, stride_w;
  uint16_t top, left; /* margin in front; what is needed behind follows from the sizes */
  uint16_t in_row, out_row;
  uint32_t in_plane, in_origin, out_plane, out_origin;
} scl_pool_t;

/* The part of a window that lies inside of the input. */
typedef struct {
  uint32_t y, x, height, width; /* its first value, its size; 0, 0 and the kernel's where windows never reach outside */
  uint32_t skip_y, skip_x;      /* rows and columns of the kernel before it */
} scl_window_t;

/* Along one axis. */
SCL_INLINE void scl_pool_clip(uint32_t output, uint32_t stride, uint32_t margin, uint32_t kernel, uint32_t size,
                              uint32_t *first, uint32_t *count, uint32_t *skip) {
  const uint32_t begin = output * stride; /* in an input with its margin in front */
  *skip = begin < margin ? margin - begin : 0;
  *first = begin + *skip - margin;
  *count = scl_min_u32(kernel - *skip, size - *first);
}

SCL_INLINE scl_window_t scl_pool_window(const scl_pool_t p, uint32_t y, uint32_t x) {
  scl_window_t w;
  scl_pool_clip(y, p.stride_h, p.top, p.kernel_h, p.in_h, &w.y, &w.height, &w.skip_y);
  scl_pool_clip(x, p.stride_w, p.left, p.kernel_w, p.in_w, &w.x, &w.width, &w.skip_x);
  return w;
}

/*
 * arg: position in its window of the first greatest value, for each output without margins; NULL: not kept, else a
 * window has at most 256 positions.
 */
SCL_INLINE uint32_t scl_max_pool(const scl_pool_t p, const void *x, scl_kind_t kind, int16_t *out, uint8_t *arg,
                                 scl_activation_t a) {
  uint32_t saturated = 0;
  for (uint32_t c = 0; c < p.channels; c++) {
    for (uint32_t y = 0; y < p.out_h; y++) {
      for (uint32_t column = 0; column < p.out_w; column++) {
        const scl_window_t w = scl_pool_window(p, y, column);
        const uint32_t from = p.in_origin + c * p.in_plane + w.y * p.in_row + w.x;
        int32_t greatest = -32769;
        uint32_t place = 0;
        for (uint32_t i = 0; i < w.height; i++) {
          for (uint32_t j = 0; j < w.width; j++) {
            const int32_t v = scl_load(x, kind, from + i * p.in_row + j);
            if (v > greatest) {
              greatest = v;
              place = (i + w.skip_y) * p.kernel_w + j + w.skip_x;
            }
          }
        }
        out[p.out_origin + c * p.out_plane + y * p.out_row + column] = scl_activate_value(greatest, a, &saturated);
        if (arg != NULL) {
          *arg++ = (uint8_t)place;
        }
      }
    }
  }
  return saturated;
}

/* e_in: cleared by the caller if nothing was contributed to it before. */
SCL_INLINE void scl_max_pool_back(const scl_pool_t p, const uint8_t *arg, const int16_t *e_out, int16_t *e_in) {
  for (uint32_t c = 0; c < p.channels; c++) {
    for (uint32_t y = 0; y < p.out_h; y++) {
      for (uint32_t x = 0; x < p.out_w; x++) {
        const uint32_t place = *arg++;
        const uint32_t in_y = y * p.stride_h + place / p.kernel_w - p.top;
        const uint32_t in_x = x * p.stride_w + place % p.kernel_w - p.left;
        scl_contribute(&e_in[p.in_origin + c * p.in_plane + in_y * p.in_row + in_x],
                       e_out[p.out_origin + c * p.out_plane + y * p.out_row + x], 0);
      }
    }
  }
}

/* floor((2 sum + n) / (2 n)) */
SCL_INLINE int32_t scl_mean(int32_t sum, int32_t n) {
  const int32_t twice = 2 * sum + n;
  const int32_t quotient = twice / (2 * n);
  return twice % (2 * n) < 0 ? quotient - 1 : quotient;
}

SCL_INLINE uint32_t scl_avg_pool(const scl_pool_t p, const void *x, scl_kind_t kind, int16_t *out,
                                 scl_activation_t a) {
  uint32_t saturated = 0;
  for (uint32_t c = 0; c < p.channels; c++) {
    for (uint32_t y = 0; y < p.out_h; y++) {
      for (uint32_t column = 0; column < p.out_w; column++) {
        const scl_window_t w = scl_pool_window(p, y, column);
        const uint32_t from = p.in_origin + c * p.in_plane + w.y * p.in_row + w.x;
        int32_t sum = 0;
        for (uint32_t i = 0; i < w.height; i++) {
          for (uint32_t j = 0; j < w.width; j++) {
            sum += scl_load(x, kind, from + i * p.in_row + j);
          }
        }
        out[p.out_origin + c * p.out_plane + y * p.out_row + column] =
            scl_activate_value(scl_mean(sum, (int32_t)(w.height * w.width)), a, &saturated);
      }
    }
  }
  return saturated;
}

/* e_in: cleared by the caller if nothing was contributed to it before. */
SCL_INLINE void scl_avg_pool_back(const scl_pool_t p, const int16_t *e_out, int16_t *e_in) {
  for (uint32_t c = 0; c < p.channels; c++) {
    for (uint32_t y = 0; y < p.out_h; y++) {
      for (uint32_t x = 0; x < p.out_w; x++) {
        const int32_t e = e_out[p.out_origin + c * p.out_plane + y * p.out_row + x];
        const scl_window_t w = scl_pool_window(p, y, x);
        const uint32_t to = p.in_origin + c * p.in_plane + w.y * p.in_row + w.x;
        if (e == 0) {
          continue;
        }
        const int32_t share = scl_mean(e, (int32_t)(w.height * w.width));
        for (uint32_t i = 0; i < w.height; i++) {
          for (uint32_t j = 0; j < w.width; j++) {
            scl_contribute(&e_in[to + i * p.in_row + j], share, 0);
          }
        }
      }
    }
  }
}

#endif
