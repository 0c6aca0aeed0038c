/* SPDX-License-Identifier: Apache-2.0 */
/* Pooling; positions outside of the input do not count.  docs/spec/numerics.md. */
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
  uint32_t skip_y, skip_x; /* rows and columns of the kernel before it */
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

/* Windows of 2 x 2, none of which reaches outside: every row of the input is taken as pairs. */
SCL_INLINE int scl_pool_is_quads(const scl_pool_t p, scl_kind_t kind) {
  return SCL_PAIRS && SCL_UNALIGNED && kind == SCL_I16 && p.kernel_h == 2 && p.kernel_w == 2 && p.top == 0 &&
         p.left == 0 && (p.out_h - 1) * p.stride_h + 2 <= p.in_h && (p.out_w - 1) * p.stride_w + 2 <= p.in_w;
}

/* Value (upper half) and position counted from the end (3: the first) of the first greatest value of a window. */
SCL_INLINE uint32_t scl_greatest_of_quad(const int16_t *x, uint32_t row) {
  const uint32_t upper = scl_pair(x), lower = scl_pair(x + row);
  const scl_chosen_t column = scl_greater_halves(upper, lower, 0x00020003u, 0x00000001u);
  const uint32_t left = scl_lower_halves(column.mark, column.value);
  const uint32_t right = scl_upper_halves(column.mark, column.value);
  return (int32_t)left > (int32_t)right ? left : right;
}

/* The greatest value of any window inside the input, with its position. */
SCL_INLINE int32_t scl_greatest(const scl_pool_t p, const scl_window_t w, const void *x, scl_kind_t kind, uint32_t from,
                                uint32_t *place) {
  int32_t greatest = -32769;
  for (uint32_t i = 0; i < w.height; i++) {
    for (uint32_t j = 0; j < w.width; j++) {
      const int32_t v = scl_load(x, kind, from + i * p.in_row + j);
      if (v > greatest) {
        greatest = v;
        *place = (i + w.skip_y) * p.kernel_w + j + w.skip_x;
      }
    }
  }
  return greatest;
}

/*
 * arg: position in its window of the first greatest value, for each output without margins; NULL: not kept, else a
 * window has at most 256 positions.
 */
SCL_INLINE uint32_t scl_max_pool(const scl_pool_t p, const void *x, scl_kind_t kind, int16_t *out, uint8_t *arg,
                                 scl_activation_t a) {
  const int keep = arg != NULL;
  uint32_t saturated = 0;
  for (uint32_t c = 0; c < p.channels; c++) {
    for (uint32_t y = 0; y < p.out_h; y++) {
      int16_t *to = out + p.out_origin + c * p.out_plane + y * p.out_row;
      for (uint32_t column = 0; column < p.out_w; column++) {
        const scl_window_t w = scl_pool_window(p, y, column);
        const uint32_t from = p.in_origin + c * p.in_plane + w.y * p.in_row + w.x;
        uint32_t place = 0;
        int32_t v;
        if (scl_pool_is_quads(p, kind)) {
          const uint32_t greatest = scl_greatest_of_quad((const int16_t *)x + from, p.in_row);
          v = scl_high(greatest);
          place = ~greatest & 3u;
        } else {
          v = scl_greatest(p, w, x, kind, from, &place);
        }
        to[column] = scl_activate_value(v, a, &saturated);
        if (keep) {
          *arg++ = (uint8_t)place;
        }
      }
    }
  }
  return saturated;
}

/* Row and column of a position in the input. */
typedef struct {
  uint32_t y, x;
} scl_place_t;

/* Row and column in the input of position `arg` of the window of output (y, x). */
SCL_INLINE scl_place_t scl_pool_place(const scl_pool_t p, uint32_t y, uint32_t x, uint32_t arg) {
  return (scl_place_t){y * p.stride_h + arg / p.kernel_w - p.top, x * p.stride_w + arg % p.kernel_w - p.left};
}

/* e_in: cleared by the caller if nothing was contributed to it before. */
SCL_INLINE void scl_max_pool_back(const scl_pool_t p, const uint8_t *arg, const int16_t *e_out, int16_t *e_in) {
  for (uint32_t c = 0; c < p.channels; c++) {
    for (uint32_t y = 0; y < p.out_h; y++) {
      for (uint32_t x = 0; x < p.out_w; x++) {
        const scl_place_t place = scl_pool_place(p, y, x, *arg++);
        scl_contribute(&e_in[p.in_origin + c * p.in_plane + place.y * p.in_row + place.x],
                       e_out[p.out_origin + c * p.out_plane + y * p.out_row + x], 0);
      }
    }
  }
}

/* floor((2 sum + n) / (2 n)); a constant n that is a power of two needs no division. */
SCL_INLINE int32_t scl_mean(int32_t sum, int32_t n) {
  if (__builtin_constant_p(n) && (n & (n - 1)) == 0) {
    return scl_shift(sum, __builtin_ctz((uint32_t)n));
  }
  const int32_t twice = 2 * sum + n;
  const int32_t quotient = twice / (2 * n);
  return twice % (2 * n) < 0 ? quotient - 1 : quotient;
}

SCL_INLINE uint32_t scl_avg_pool(const scl_pool_t p, const void *x, scl_kind_t kind, int16_t *out, scl_activation_t a) {
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
