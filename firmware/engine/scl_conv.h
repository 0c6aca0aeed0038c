/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolution, with masks (panels, docs/spec/numerics.md) or without, also
 * depthwise.  Inputs are tensors with margins, so no kernel position ever lies
 * outside.
 *
 * Forward: a tile of output positions stays in registers while the entries of
 * one line (a block of output channels) are walked; no map of accumulators
 * exists.  Without masks a row of the kernel is taken at once, and skipped
 * where all inputs under it are 0.  Backward: most errors are 0, behind
 * max-pooling for one; the others of a line are listed first, straight from
 * the pooling where there is one, and each entry visits the list.
 */
#ifndef SCL_CONV_H
#define SCL_CONV_H

#include "scl_pool.h"
#include "scl_simd.h"
#include "scl_sparse.h"

/*
 * A tensor of 16 or 8 bits: value (c, y, x) lies at origin + c * plane + y * row + x.
 * Kernel position i of output (y, x) lies at in_origin + at[i] + y * stride_h * in_row + x * stride_w in the input, in
 * a depthwise convolution one in_plane further for each `multiplier` output channels.
 */
typedef struct {
  const uint16_t *at;   /* n_in */
  uint16_t n_in, n_out; /* kernel positions, output channels */
  uint8_t block;        /* 1 without masks */
  uint8_t multiplier;   /* 0: not depthwise */
  uint16_t kernel_h, kernel_w, out_h, out_w, stride_h, stride_w, in_row;
  uint32_t in_plane, in_origin;
  uint32_t out_row, out_plane, out_origin;
  uint16_t n_panels;    /* 0 without masks */
} scl_conv_t;

/* Number formats of a layer's backward pass, docs/spec/numerics.md "Convolution". */
typedef struct {
  int8_t ke, elog, glog; /* kg is part of scl_rate_t.shift */
  uint8_t su, wlog, blog;
  int8_t bias_shift;     /* fg - kg - fw - fx */
} scl_conv_rates_t;

#define SCL_CONV_LANES 4u   /* output channels at a time, at most */
#define SCL_CONV_SUMS 8u    /* sums at a time: what registers hold */
#define SCL_CONV_TAPS 9u    /* gradients at a time, at most */
#define SCL_CONV_INPUTS 16u /* neighbouring inputs at a time, at most */

#define SCL_CONV_UNROLL _Pragma("GCC unroll 16")

/* Keeps gcc from moving what follows ahead: loads of inputs far before their use push the sums out of the registers. */
#define SCL_CONV_IN_ORDER __asm__ volatile("")

/* First value of the input channel of output channel o; padded outputs have one too, and weights of 0. */
SCL_INLINE uint32_t scl_conv_input(const scl_conv_t c, uint32_t o) {
  if (c.multiplier == 0) {
    return c.in_origin;
  }
  return c.in_origin + scl_min_u32(o, c.n_out - 1u) / c.multiplier * c.in_plane;
}

/* ---- forward ---- */

/* Channels whose sums are computed together: a block; without masks a pair, if they share their input. */
SCL_INLINE uint32_t scl_conv_lanes(const scl_conv_t c) {
  if (c.n_panels > 0) {
    return c.block;
  }
  return c.n_out % 2u == 0 && (c.multiplier == 0 || c.multiplier % 2u == 0) ? 2u : 1u;
}

/* Output positions whose sums are computed together. */
typedef struct {
  uint32_t rows, columns;
} scl_conv_tile_t;

/* Divides a row as evenly as possible; short rows go together, as many as divide all of them. */
SCL_INLINE scl_conv_tile_t scl_conv_tile(const scl_conv_t c) {
  const uint32_t most = SCL_CONV_SUMS / scl_conv_lanes(c);
  const uint32_t parts = (c.out_w + most - 1u) / most;
  scl_conv_tile_t tile = {1, (c.out_w + parts - 1u) / parts};
  SCL_CONV_UNROLL
  for (uint32_t rows = 2; rows <= SCL_CONV_SUMS; rows++) {
    if (parts == 1 && rows * c.out_w <= most && c.out_h % rows == 0) {
      tile.rows = rows;
    }
  }
  return tile;
}

typedef struct {
  int32_t sum[SCL_CONV_LANES][SCL_CONV_SUMS]; /* [lane][row * columns + column] */
} scl_conv_sums_t;

/* Adds the products of one weight, a half of w; x: the input under it for the tile's first position. */
SCL_INLINE void scl_conv_products(const scl_conv_t c, int32_t *sum, uint32_t w, uint32_t upper, const void *x,
                                  scl_kind_t kind, const scl_conv_tile_t tile) {
  const uint32_t pairs = SCL_PAIRS && SCL_UNALIGNED && kind == SCL_I16 && c.stride_w == 1 ? tile.columns / 2u : 0;
  const int32_t weight = upper ? scl_high(w) : scl_low(w);
  SCL_CONV_UNROLL
  for (uint32_t y = 0; y < tile.rows; y++, sum += tile.columns) {
    const uint32_t row = y * c.stride_h * c.in_row;
    SCL_CONV_UNROLL
    for (uint32_t n = 0; n < pairs; n++) {
      const uint32_t both = scl_pair((const int16_t *)x + row + 2u * n);
      int32_t *two = sum + 2u * n;
      two[0] = upper ? scl_mac_low_by_high(two[0], both, w) : scl_mac_low(two[0], both, weight);
      two[1] = upper ? scl_mac_high_by_high(two[1], both, w) : scl_mac_high(two[1], both, weight);
    }
    SCL_CONV_UNROLL
    for (uint32_t r = 2u * pairs; r < tile.columns; r++) {
      sum[r] += weight * scl_load(x, kind, row + r * c.stride_w);
    }
  }
}

/* Adds the products of all weights of a layer without masks. */
SCL_INLINE void scl_conv_add_all(const scl_conv_t c, scl_conv_sums_t *acc, const int16_t *weight, const void *x,
                                 scl_kind_t kind, uint32_t lanes, const scl_conv_tile_t tile) {
  for (uint32_t k = 0; k < c.n_in; k++, weight++) {
    SCL_CONV_UNROLL
    for (uint32_t j = 0; j < lanes; j++) {
      scl_conv_products(c, acc->sum[j], (uint32_t)weight[j * c.n_in], 0, scl_at(x, kind, c.at[k]), kind, tile);
    }
  }
}

/*
 * Three neighbouring weights by four neighbouring inputs: two sums.  8-bit inputs come apart as every second one, so
 * the weights that go together differ.
 */
typedef struct {
  uint32_t outer, inner; /* 16 bits: (0, 1) and (1, 2); 8 bits: (0, 2) and (., 1) */
} scl_three_t;

/* skip: leading weights that count as 0. */
SCL_INLINE scl_three_t scl_three(const int16_t *w, scl_kind_t kind, uint32_t skip) {
  const uint32_t first = skip == 0 ? scl_pair(w) : skip == 1 ? scl_pair(w) & 0xFFFF0000u : 0;
  if (kind == SCL_I16) {
    return (scl_three_t){first, skip < 2 ? scl_pair(w + 1) : scl_pair(w + 1) & 0xFFFF0000u};
  }
  return (scl_three_t){scl_lower_halves(first, (uint32_t)w[2]), first};
}

/* Four neighbouring inputs in two words: 16 bits as they lie, 8 bits in the first word alone. */
SCL_INLINE scl_two_t scl_four_inputs(const void *x, scl_kind_t kind, uint32_t at) {
  if (kind == SCL_I16) {
    return (scl_two_t){(int32_t)scl_pair((const int16_t *)x + at), (int32_t)scl_pair((const int16_t *)x + at + 2u)};
  }
  return (scl_two_t){(int32_t)scl_four_bytes((const uint8_t *)x + at), 0};
}

SCL_INLINE void scl_three_products(const scl_three_t w, scl_two_t four, scl_kind_t kind, int32_t *sum) {
  const uint32_t a = (uint32_t)four.a, b = (uint32_t)four.b;
  if (kind == SCL_I16) {
    sum[0] = scl_mac_low_by_high(scl_mac_pair(sum[0], a, w.outer), b, w.inner);
    sum[1] = scl_mac_high(scl_mac_pair(sum[1], b, w.inner), a, scl_low(w.outer));
    return;
  }
  const uint32_t even = scl_even_bytes(a, kind == SCL_I8);
  const uint32_t odd = scl_odd_bytes(a, kind == SCL_I8);
  sum[0] = scl_mac_low_by_high(scl_mac_pair(sum[0], even, w.outer), odd, w.inner);
  sum[1] = scl_mac_high_by_high(scl_mac_pair(sum[1], odd, w.outer), even, w.inner);
}

/* One row of the kernel by one row of the tile, an even number of columns; weight: of the first lane. */
SCL_INLINE void scl_conv_row_by_three(const scl_conv_t c, scl_conv_sums_t *acc, uint32_t first, uint32_t columns,
                                      const int16_t *weight, const void *x, scl_kind_t kind, uint32_t lanes) {
  SCL_CONV_UNROLL
  for (uint32_t t = 0; t < c.kernel_w; t += 3u) {
    const uint32_t tap = scl_min_u32(t, c.kernel_w - 3u); /* the last three may overlap with those before */
    scl_two_t four[SCL_CONV_SUMS / 2u];
    scl_three_t w[SCL_CONV_LANES];
    int32_t any = 0;
    SCL_CONV_UNROLL
    for (uint32_t n = 0; n < columns / 2u; n++) {
      four[n] = scl_four_inputs(x, kind, tap + 2u * n);
      any |= four[n].a | four[n].b;
    }
    if (any == 0) { /* the background of a picture */
      continue;
    }
    SCL_CONV_UNROLL
    for (uint32_t j = 0; j < lanes; j++) {
      w[j] = scl_three(weight + j * c.n_in + tap, kind, t - tap);
    }
    SCL_CONV_UNROLL
    for (uint32_t n = 0; n < columns / 2u; n++) {
      SCL_CONV_IN_ORDER;
      SCL_CONV_UNROLL
      for (uint32_t j = 0; j < lanes; j++) {
        scl_three_products(w[j], four[n], kind, &acc->sum[j][first + 2u * n]);
      }
    }
  }
}

/* Inputs that a row of the kernel reads for some columns. */
SCL_INLINE uint32_t scl_conv_row_inputs(const scl_conv_t c, uint32_t columns) {
  return (columns - 1u) * c.stride_w + c.kernel_w;
}

/* One row of the kernel for any number of columns, stride and core: each input is loaded once. */
SCL_INLINE void scl_conv_row(const scl_conv_t c, scl_conv_sums_t *acc, uint32_t first, uint32_t columns,
                             const int16_t *weight, const void *x, scl_kind_t kind, uint32_t lanes) {
  int32_t input[SCL_CONV_INPUTS];
  int32_t any = 0;
  SCL_CONV_UNROLL
  for (uint32_t n = 0; n < scl_conv_row_inputs(c, columns); n++) {
    input[n] = scl_load(x, kind, n);
    any |= input[n];
  }
  if (any == 0) {
    return;
  }
  SCL_CONV_UNROLL
  for (uint32_t t = 0; t < c.kernel_w; t++) {
    SCL_CONV_UNROLL
    for (uint32_t j = 0; j < lanes; j++) {
      SCL_CONV_IN_ORDER;
      SCL_CONV_UNROLL
      for (uint32_t r = 0; r < columns; r++) {
        acc->sum[j][first + r] += weight[j * c.n_in + t] * input[r * c.stride_w + t];
      }
    }
  }
}

/* Whether a layer is computed by rows of its kernel. */
SCL_INLINE int scl_conv_by_rows(const scl_conv_t c, const scl_conv_tile_t tile) {
  return c.n_panels == 0 && c.kernel_w > 1 && scl_conv_row_inputs(c, tile.columns) <= SCL_CONV_INPUTS;
}

/* Adds the products of all weights, along the rows of the kernel. */
SCL_INLINE void scl_conv_add_rows(const scl_conv_t c, scl_conv_sums_t *acc, const int16_t *weight, const void *x,
                                  scl_kind_t kind, uint32_t lanes, const scl_conv_tile_t tile) {
  const uint32_t by_three = SCL_PAIRS && SCL_UNALIGNED && c.stride_w == 1 && c.kernel_w >= 3 ? tile.columns & ~1u : 0;
  const uint32_t plane = (uint32_t)c.kernel_h * c.kernel_w;
  for (uint32_t k = 0, from = 0; k < c.n_in; k += plane, from += c.in_plane) {
    _Pragma("GCC unroll 3") for (uint32_t row = 0; row < c.kernel_h; row++) {
      const int16_t *w = weight + k + row * c.kernel_w;
      SCL_CONV_UNROLL
      for (uint32_t y = 0; y < tile.rows; y++) {
        const uint32_t at = from + (row + y * c.stride_h) * c.in_row;
        if (by_three > 0) {
          scl_conv_row_by_three(c, acc, y * tile.columns, by_three, w, scl_at(x, kind, at), kind, lanes);
        }
        if (by_three < tile.columns) {
          scl_conv_row(c, acc, y * tile.columns + by_three, tile.columns - by_three, w,
                       scl_at(x, kind, at + by_three * c.stride_w), kind, lanes);
        }
      }
    }
  }
}

/* Half of the last bit that is kept is part of the sums from the start: a shift then rounds. */
SCL_INLINE int32_t scl_conv_half(const scl_activation_t a) { return a.shift > 0 ? (int32_t)(1u << (a.shift - 1)) : 0; }

/*
 * The entries of one line as a list, made once for all its output positions: where the input lies, in bytes, then the
 * weights, two to a word.
 */
SCL_INLINE uint32_t scl_conv_entry_words(const scl_conv_t c) { return 1u + (c.block + 1u) / 2u; }

SCL_INLINE int32_t *scl_conv_list_entries(const scl_conv_t c, const scl_panel_t *panels, uint32_t line, scl_kind_t kind,
                                          int32_t *list) {
  for (uint32_t p = 0; p < c.n_panels; p++) {
    /* cppcheck-suppress nullPointer ; where there are no panels n_panels is 0 */
    const scl_panel_t panel = panels[p];
    const uint8_t *index = panel.index;
    const int16_t *weight = panel.weight;
    const uint32_t end = panel.start[line + 1];
    for (uint32_t k = panel.start[line]; k < end; k++) {
      *list++ = (int32_t)c.at[panel.first + index[k]] * (kind == SCL_I16 ? 2 : 1);
      SCL_CONV_UNROLL
      for (uint32_t j = 0; j < c.block; j += 2u) {
        const uint32_t upper = j + 1u < c.block ? (uint32_t)weight[k * c.block + j + 1u] : 0;
        *list++ = (int32_t)scl_lower_halves((uint32_t)weight[k * c.block + j], upper);
      }
    }
  }
  return list;
}

/* Adds the products of a list. */
SCL_INLINE void scl_conv_add_list(const scl_conv_t c, scl_conv_sums_t *acc, const int32_t *list, const int32_t *end,
                                  const void *const *x, scl_kind_t kind, uint32_t lanes, const scl_conv_tile_t tile) {
  for (; list != end; list += scl_conv_entry_words(c)) {
    const scl_two_t entry = scl_load_two(list, 0);
    SCL_CONV_UNROLL
    for (uint32_t j = 0; j < lanes; j++) {
      const void *window = (const uint8_t *)x[j] + entry.a;
      if (SCL_PAIRS) {
        const uint32_t w = (uint32_t)(j < 2 ? entry.b : list[1u + j / 2u]);
        scl_conv_products(c, acc->sum[j], w, j % 2u, window, kind, tile);
      } else { /* a load sooner than a load and a shift */
        int16_t w;
        SCL_CONV_IN_ORDER;
        memcpy(&w, (const uint8_t *)(list + 1) + 2u * j, sizeof w);
        scl_conv_products(c, acc->sum[j], (uint32_t)w, 0, window, kind, tile);
      }
    }
  }
}

/* Whether it can be told from the upper bits of a sum that it does not saturate. */
SCL_INLINE int scl_conv_limit_is_bits(const scl_activation_t a) {
  return a.shift > 0 && ((a.high + 1) & a.high) == 0 && (a.low == 0 || (a.low == -a.high - 1 && a.count_low));
}

/* One lane's sums to activations; returns how many saturated. */
SCL_INLINE uint32_t scl_conv_activate(const int32_t *sum, const scl_activation_t a, int16_t *out, uint32_t out_row,
                                      const scl_conv_tile_t tile) {
  const uint32_t shift = a.shift > 0 ? (uint32_t)a.shift : 0;
  const uint32_t pairs = SCL_PAIRS && SCL_UNALIGNED && shift >= 1 && shift <= 16 ? tile.columns / 2u : 0;
  uint32_t saturated = 0;
  int32_t value[SCL_CONV_SUMS];
  int32_t beyond = 0;
  SCL_CONV_UNROLL
  for (uint32_t r = 0; r < tile.rows * tile.columns; r++) {
    value[r] = a.low == 0 ? scl_max(sum[r], 0) : sum[r];
    beyond |= a.low == 0 ? value[r] : value[r] ^ scl_asr(value[r], 31);
  }
  const int exact = !scl_conv_limit_is_bits(a) || scl_asr(beyond, shift) > a.high;
  SCL_CONV_UNROLL
  for (uint32_t y = 0; y < tile.rows; y++, out += out_row) {
    const int32_t *v = value + y * tile.columns;
    if (exact) {
      const scl_activation_t rounded = {a.low, a.high, 0, a.count_low, a.count_high};
      SCL_CONV_UNROLL
      for (uint32_t r = 0; r < tile.columns; r++) {
        const int32_t at_fraction = a.shift > 0 ? scl_asr(v[r], shift) : scl_shift(v[r], a.shift);
        out[r] = scl_activate_value(at_fraction, rounded, &saturated);
      }
      continue;
    }
    SCL_CONV_UNROLL
    for (uint32_t n = 0; n < pairs; n++) {
      scl_put_pair(out + 2u * n, scl_pack(v[2u * n], shift, (int32_t)((uint32_t)v[2u * n + 1u] << (16u - shift))));
    }
    SCL_CONV_UNROLL
    for (uint32_t r = 2u * pairs; r < tile.columns; r++) {
      out[r] = (int16_t)scl_asr(v[r], shift);
    }
  }
  return saturated;
}

/* One tile of a line.  entries: of the line, up to `end`; NULL without masks, whose lanes share their input. */
SCL_INLINE uint32_t scl_conv_run(const scl_conv_t c, const int32_t *entries, const int32_t *end, const int16_t *weight,
                                 const int32_t *bias, const void *x, scl_kind_t kind, int16_t *out,
                                 const scl_activation_t a, uint32_t line, uint32_t row, uint32_t column,
                                 const scl_conv_tile_t tile) {
  const uint32_t lanes = scl_conv_lanes(c);
  const uint32_t first = row * c.stride_h * c.in_row + column * c.stride_w;
  scl_conv_sums_t acc;
  const void *window[SCL_CONV_LANES];
  uint32_t saturated = 0;
  SCL_CONV_UNROLL
  for (uint32_t j = 0; j < lanes; j++) {
    if (j == 0 || c.multiplier > 0) {
      window[j] = scl_at(x, kind, scl_conv_input(c, line * lanes + j) + first);
      if (c.n_panels > 0) { /* kernel rows without masks have constant offsets, which a load takes for nothing */
        SCL_KEEP(window[j]);
      }
    } else {
      window[j] = window[0];
    }
    SCL_CONV_UNROLL
    for (uint32_t r = 0; r < tile.rows * tile.columns; r++) {
      acc.sum[j][r] = bias[line * lanes + j] + scl_conv_half(a);
    }
  }
  if (c.n_panels > 0) {
    scl_conv_add_list(c, &acc, entries, end, window, kind, lanes, tile);
  } else if (scl_conv_by_rows(c, tile)) {
    scl_conv_add_rows(c, &acc, weight + line * lanes * c.n_in, window[0], kind, lanes, tile);
  } else {
    scl_conv_add_all(c, &acc, weight + line * lanes * c.n_in, window[0], kind, lanes, tile);
  }
  SCL_CONV_UNROLL
  for (uint32_t j = 0; j < lanes; j++) {
    const uint32_t o = line * lanes + j;
    if (o < c.n_out) {
      int16_t *to = out + c.out_origin + o * c.out_plane + row * c.out_row + column;
      saturated += scl_conv_activate(acc.sum[j], a, to, c.out_row, tile);
    }
  }
  return saturated;
}

/*
 * panels: c.n_panels of them, or NULL and weight[o * n_in + i].  out: the tensor with its margins, which the caller has
 * cleared.  space: for the entries of one line.  Returns how many activations saturated.
 */
SCL_INLINE uint32_t scl_conv_forward(const scl_conv_t c, const scl_panel_t *panels, const int16_t *weight,
                                     const int32_t *bias, const void *x, scl_kind_t kind, int16_t *out,
                                     const scl_activation_t a, int32_t *space) {
  const uint32_t lanes = scl_conv_lanes(c);
  const scl_conv_tile_t tile = scl_conv_tile(c);
  const uint32_t rest = c.out_w % tile.columns;
  uint32_t saturated = 0;
  for (uint32_t line = 0; line * lanes < c.n_out; line++) {
    const int32_t *end = scl_conv_list_entries(c, panels, line, kind, space);
    for (uint32_t row = 0; row < c.out_h; row += tile.rows) {
      for (uint32_t column = 0; column + tile.columns <= c.out_w; column += tile.columns) {
        saturated += scl_conv_run(c, space, end, weight, bias, x, kind, out, a, line, row, column, tile);
      }
      if (rest > 0) {
        saturated += scl_conv_run(c, space, end, weight, bias, x, kind, out, a, line, row, c.out_w - rest,
                                  (scl_conv_tile_t){1, rest});
      }
    }
  }
  return saturated;
}

/* ---- backward ---- */

/* The entries of one line in one panel, or all weights of an output channel without masks. */
typedef struct {
  const uint16_t *at;
  const uint8_t *index; /* NULL: kernel positions 0, 1, ... */
  int16_t *weight;
  uint32_t learning, count; /* entries of the gradient mask, which come first, and of all */
} scl_conv_line_t;

SCL_INLINE uint32_t scl_conv_count_panels(const scl_conv_t c) { return c.n_panels == 0 ? 1u : c.n_panels; }

SCL_INLINE uint32_t scl_conv_count_lines(const scl_conv_t c) { return (c.n_out + c.block - 1u) / c.block; }

SCL_INLINE scl_conv_line_t scl_conv_line(const scl_conv_t c, const scl_panel_t *panel, int16_t *weight, uint32_t line) {
  if (c.n_panels == 0) {
    return (scl_conv_line_t){c.at, NULL, weight + line * c.n_in, c.n_in, c.n_in};
  }
  const uint32_t start = panel->start[line];
  return (scl_conv_line_t){c.at + panel->first, panel->index + start, panel->weight + start * c.block,
                           panel->split[line] - start, panel->start[line + 1] - start};
}

SCL_INLINE uint32_t scl_conv_at(const scl_conv_line_t *line, uint32_t k) {
  return line->at[line->index == NULL ? k : line->index[k]];
}

/*
 * The errors of a convolution's output: e laid out as the output; or, behind a max_pool whose windows do not overlap,
 * e laid out as the output of the pooling, each at the position `arg` of its window.
 */
typedef struct {
  const int16_t *e;
  const uint8_t *arg; /* NULL: e is laid out as the convolution's output */
  scl_pool_t pool;
} scl_conv_errors_t;

/* What errors become: steps, and errors to carry back. */
typedef struct {
  /* step = ((e * multiplier + half) >> right) << left, without a branch: docs/spec/numerics.md */
  int32_t multiplier, half;
  uint32_t right, left;
  int8_t ke, elog, glog;
} scl_conv_scale_t;

SCL_INLINE scl_conv_scale_t scl_conv_scale(scl_rate_t rate, const scl_conv_rates_t r) {
  const uint32_t right = rate.shift > 0 ? (uint32_t)rate.shift : 0;
  const uint32_t left = rate.shift < 0 ? (uint32_t)-rate.shift : 0;
  return (scl_conv_scale_t){rate.multiplier, (int32_t)((1u << right) >> 1), right, left, r.ke, r.elog, r.glog};
}

/*
 * The errors other than 0 of one output channel, in words.  Without sums to carry them to: the place where the window
 * of the output position begins (lower half) and the step.  With sums: the place; the error (lower half) and the step.
 * The count is even: another entry of 0 may follow.
 */
SCL_INLINE uint32_t scl_active_words(int carries) { return carries ? 2u : 1u; }

SCL_INLINE uint32_t scl_active_at(const int32_t *active, int carries) {
  return (uint32_t)active[0] & (carries ? ~0u : 0xFFFFu);
}

SCL_INLINE int32_t scl_active_step(const int32_t *active, int carries) { return scl_asr(active[carries ? 1 : 0], 16); }

SCL_INLINE int32_t *scl_conv_append(int32_t *list, int carries, uint32_t at, int32_t v, const scl_conv_scale_t s,
                                    int32_t *steps) {
  const int32_t rounded = scl_asr(v * s.multiplier + s.half, s.right);
  const int32_t step = scl_saturate((int32_t)((uint32_t)rounded << s.left), (uint32_t)s.glog);
  uint32_t low = at;
  *steps += step;
  if (carries) {
    *list++ = (int32_t)at;
    low = (uint32_t)scl_saturate(scl_shift(v, s.ke), (uint32_t)s.elog);
  }
  *list++ = (int32_t)scl_lower_halves(low, (uint32_t)step);
  return list;
}

/* Where the window of output position (y, x) begins, or of the greatest value under window (y, x) of the pooling. */
SCL_INLINE uint32_t scl_conv_window(const scl_conv_t c, const scl_conv_errors_t e, uint32_t y, uint32_t x,
                                    const uint8_t *arg) {
  const scl_place_t at = arg == NULL ? (scl_place_t){y, x} : scl_pool_place(e.pool, y, x, arg[x]);
  return at.y * c.stride_h * c.in_row + at.x * c.stride_w;
}

/* The errors of output channel o. */
SCL_INLINE int32_t *scl_conv_list(const scl_conv_t c, const scl_conv_errors_t e, uint32_t o, const scl_conv_scale_t s,
                                  int32_t *list, int carries, int32_t *steps) {
  const int pooled = e.arg != NULL;
  const uint32_t height = pooled ? e.pool.out_h : c.out_h, width = pooled ? e.pool.out_w : c.out_w;
  const uint32_t row = pooled ? e.pool.out_row : c.out_row;
  const uint32_t at_once = SCL_UNALIGNED && width % 2u == 0 ? 2u : 1u;
  const int16_t *from = e.e + (pooled ? e.pool.out_origin + o * e.pool.out_plane : c.out_origin + o * c.out_plane);
  const uint8_t *arg = pooled ? e.arg + o * height * width : NULL;
  for (uint32_t y = 0; y < height; y++, from += row) {
    for (uint32_t x = 0; x < width; x += at_once) {
      uint32_t values = at_once == 2 ? scl_pair(from + x) : (uint16_t)from[x];
      for (uint32_t here = x; values != 0; values >>= 16, here++) {
        if (scl_low(values) != 0) {
          const uint32_t at = scl_conv_window(c, e, y, here, arg);
          list = scl_conv_append(list, carries, at, scl_low(values), s, steps);
        }
      }
    }
    arg = pooled ? arg + width : NULL;
  }
  return list;
}

/* The lists of the output channels of a line. */
typedef struct {
  const int32_t *list[SCL_CONV_LANES];
  const int32_t *end[SCL_CONV_LANES];
  int32_t steps[SCL_CONV_LANES]; /* their sums */
} scl_conv_active_t;

SCL_INLINE int scl_conv_is_active(const scl_conv_active_t *active, uint32_t j) {
  return active->end[j] != active->list[j];
}

/* Whether a channel of the line is active. */
SCL_INLINE int scl_conv_actives(const scl_conv_t c, uint32_t line, const scl_conv_errors_t e, const scl_conv_scale_t s,
                                int32_t *space, int carries, scl_conv_active_t *active) {
  int32_t *const first = space;
  for (uint32_t j = 0; j < c.block; j++) {
    const uint32_t o = line * c.block + j;
    int32_t steps = 0;
    active->list[j] = space;
    if (o < c.n_out) {
      space = scl_conv_list(c, e, o, s, space, carries, &steps);
    }
    if ((uint32_t)(space - active->list[j]) % (2u * scl_active_words(carries)) != 0) {
      for (uint32_t word = 0; word < scl_active_words(carries); word++) {
        *space++ = 0;
      }
    }
    active->end[j] = space;
    active->steps[j] = steps;
  }
  return space != first;
}

/* Gradients of `taps` weights, each the sum of step times input; x: the input under the first, for output (0, 0). */
SCL_INLINE void scl_conv_gradients(const scl_conv_t c, const scl_conv_active_t *active, uint32_t j, const void *x,
                                   scl_kind_t kind, int carries, uint32_t taps, int32_t *gradient) {
  int32_t sum[SCL_CONV_TAPS] = {0};
  SCL_KEEP(x);
  for (const int32_t *n = active->list[j]; n != active->end[j]; n += scl_active_words(carries)) {
    const int32_t step = scl_active_step(n, carries);
    const void *window = scl_at(x, kind, scl_active_at(n, carries));
    SCL_KEEP(window);
    SCL_CONV_UNROLL
    for (uint32_t t = 0; t < taps; t++) {
      sum[t] += step * scl_load(window, kind, t / c.kernel_w * c.in_row + t % c.kernel_w);
    }
  }
  SCL_CONV_UNROLL
  for (uint32_t t = 0; t < taps; t++) {
    gradient[t] = sum[t];
  }
}

/* Carries one error back through a weight. */
SCL_INLINE void scl_conv_carry(scl_two_t entry, int32_t w, int32_t *sums) {
  sums[entry.a] = scl_mac_low(sums[entry.a], (uint32_t)entry.b, w);
}

/* All errors of a list. */
SCL_INLINE void scl_conv_scatter(const scl_conv_active_t *active, uint32_t j, int32_t w, int32_t *sums) {
  SCL_KEEP(sums);
  for (const int32_t *n = active->list[j]; n != active->end[j]; n += 4) {
    scl_conv_carry(scl_load_two(n, 0), w, sums);
    scl_conv_carry(scl_load_two(n, 2), w, sums);
  }
}

/* One error and its step; rectified: an input of 0 has no error. */
SCL_INLINE int32_t scl_conv_carry_and_learn(scl_two_t entry, const void *x, scl_kind_t kind, int rectified, int32_t w,
                                            int32_t *sums, int32_t sum) {
  const int32_t input = scl_load(x, kind, (uint32_t)entry.a);
  if (rectified && input == 0) {
    return sum;
  }
  scl_conv_carry(entry, w, sums);
  return scl_mac_high(sum, (uint32_t)entry.b, input);
}

/* The gradient of one weight, and its errors. */
SCL_INLINE int32_t scl_conv_both(const scl_conv_active_t *active, uint32_t j, const void *x, scl_kind_t kind,
                                 int rectified, int32_t w, int32_t *sums) {
  int32_t sum = 0;
  SCL_KEEP(x);
  SCL_KEEP(sums);
  for (const int32_t *n = active->list[j]; n != active->end[j]; n += 4) {
    sum = scl_conv_carry_and_learn(scl_load_two(n, 0), x, kind, rectified, w, sums, sum);
    sum = scl_conv_carry_and_learn(scl_load_two(n, 2), x, kind, rectified, w, sums, sum);
  }
  return sum;
}

/* The channels of entries from .. count carry their errors back and learn nothing. */
SCL_INLINE void scl_conv_line_error(const scl_conv_t c, const scl_conv_line_t *line, uint32_t number, uint32_t from,
                                    const scl_conv_active_t *active, int32_t *sums) {
  for (uint32_t k = from; k < line->count; k++) {
    const uint32_t at = scl_conv_at(line, k);
    for (uint32_t j = 0; j < c.block; j++) {
      scl_conv_scatter(active, j, line->weight[k * c.block + j], sums + scl_conv_input(c, number * c.block + j) + at);
    }
  }
}

/* Adds to the sums of the input's error, which are laid out as the input and cleared by the caller. */
SCL_INLINE void scl_conv_error(const scl_conv_t c, const scl_panel_t *panels, int16_t *weight,
                               const scl_conv_errors_t e, const scl_conv_rates_t r, int32_t *sums, int32_t *space) {
  const scl_conv_scale_t scale = scl_conv_scale((scl_rate_t){0, 0}, r);
  for (uint32_t p = 0; p < scl_conv_count_panels(c); p++) {
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      scl_conv_active_t active;
      if (scl_conv_actives(c, l, e, scale, space, 1, &active)) {
        const scl_conv_line_t line = scl_conv_line(c, panels + p, weight, l);
        scl_conv_line_error(c, &line, l, 0, &active, sums);
      }
    }
  }
}

/* Weights without masks whose gradients are computed together: a kernel's of one input channel, or a row of it. */
SCL_INLINE uint32_t scl_conv_taps(const scl_conv_t c, int carries) {
  const uint32_t plane = (uint32_t)c.kernel_h * c.kernel_w;
  if (c.n_panels > 0 || carries || c.kernel_w > SCL_CONV_TAPS) {
    return 1;
  }
  return plane <= SCL_CONV_TAPS ? plane : c.kernel_w;
}

/*
 * Error and update of every weight at once, with the weights as they were.  prng NULL, batch > 1: gradients of the
 * entries of the gradient mask are added up instead, in storage order in the panels or, without masks, of all weights
 * in `gradient`; bias then stands for its sums.  sums: as of scl_conv_error, NULL if the input has no error; rectified:
 * they need not count where the input is 0; rate: its shift with kg added; space: for the lists of one line.
 */
SCL_INLINE void scl_conv_backward(const scl_conv_t c, const scl_panel_t *panels, int16_t *weight, int32_t *bias,
                                  int32_t *gradient, const void *x, scl_kind_t kind, int rectified,
                                  const scl_conv_errors_t e, scl_rate_t rate, const scl_conv_rates_t r, int32_t *sums,
                                  int32_t *space, uint32_t *prng) {
  const int carries = sums != NULL;
  const uint32_t taps = scl_conv_taps(c, carries);
  const scl_conv_scale_t scale = scl_conv_scale(rate, r);
  uint32_t random = prng == NULL ? 0 : *prng;
  for (uint32_t p = 0; p < scl_conv_count_panels(c); p++) {
    int32_t *to = c.n_panels == 0 ? gradient : panels[p].gradient;
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      const scl_conv_line_t line = scl_conv_line(c, panels + p, weight, l);
      int32_t *const next = prng == NULL ? to + line.learning * c.block : NULL;
      scl_conv_active_t active;
      const int any = scl_conv_actives(c, l, e, scale, space, carries, &active);
      for (uint32_t k = 0; any && k < line.learning; k += taps) {
        const uint32_t at = scl_conv_at(&line, k);
        for (uint32_t j = 0; j < c.block; j++, to = prng == NULL ? to + taps : NULL) {
          if (!scl_conv_is_active(&active, j)) {
            continue;
          }
          const uint32_t from = scl_conv_input(c, l * c.block + j) + at;
          int16_t *w = &line.weight[k * c.block + j];
          int32_t change[SCL_CONV_TAPS];
          if (carries) {
            change[0] = scl_conv_both(&active, j, scl_at(x, kind, from), kind, rectified, *w, sums + from);
          } else {
            scl_conv_gradients(c, &active, j, scl_at(x, kind, from), kind, carries, taps, change);
          }
          SCL_CONV_UNROLL
          for (uint32_t t = 0; t < taps; t++) {
            if (prng == NULL) {
              to[t] += scl_shift(change[t], SCL_SACC);
            } else {
              /* cppcheck-suppress objectIndex ; w points into the layer's weights, not at the line's pointer to them */
              scl_weight_step(&w[t], change[t], r.su, r.wlog, &random);
            }
          }
        }
      }
      to = next;
      if (any && carries) {
        scl_conv_line_error(c, &line, l, line.learning, &active, sums);
      }
      for (uint32_t j = 0; any && j < c.block && p == 0; j++) {
        if (prng == NULL) {
          bias[l * c.block + j] += active.steps[j];
        } else {
          scl_bias_step(&bias[l * c.block + j], active.steps[j], r.bias_shift, r.blog);
        }
      }
    }
  }
  if (prng != NULL) {
    *prng = random;
  }
}

/* End of a batch: r.su is that of the layer, less SCL_SACC here. */
SCL_INLINE void scl_conv_apply(const scl_conv_t c, const scl_panel_t *panels, int16_t *weight, int32_t *gradient,
                               int32_t *bias, int32_t *bias_gradient, const scl_conv_rates_t r, uint32_t *prng) {
  const uint32_t shift = (uint32_t)r.su - SCL_SACC;
  for (uint32_t p = 0; p < scl_conv_count_panels(c); p++) {
    int32_t *from = c.n_panels == 0 ? gradient : panels[p].gradient;
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      const scl_conv_line_t line = scl_conv_line(c, panels + p, weight, l);
      for (uint32_t k = 0; k < line.learning * c.block; k++, from++) {
        if (*from != 0) {
          scl_weight_step(&line.weight[k], *from, shift, r.wlog, prng);
          *from = 0;
        }
      }
    }
  }
  scl_bias_apply(bias, bias_gradient, scl_conv_count_lines(c) * c.block, r.bias_shift, r.blog);
}

/* Adds the gradients of one sample to the sums a sparse layer is scored by; slot: as of scl_net_backward. */
SCL_INLINE void scl_conv_capture(const scl_conv_t c, const scl_panel_t *panels, const void *x, scl_kind_t kind,
                                 const scl_conv_errors_t e, int32_t kc, int32_t slot, int32_t *space) {
  const scl_conv_rates_t exact = {.elog = 15, .glog = 15};
  const scl_conv_scale_t scale = scl_conv_scale((scl_rate_t){1, (int8_t)kc}, exact);
  for (uint32_t p = 0; p < c.n_panels; p++) {
    int32_t *to = slot < SCL_CAPTURE ? panels[p].captured_d : panels[p].captured_m;
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      scl_conv_line_t line = scl_conv_line(c, panels + p, NULL, l);
      scl_conv_active_t active;
      if (SCL_GROWTH_GRADIENT) { /* also of the weights that could be */
        line.index = NULL;
        line.count = panels[p].places;
      }
      if (!scl_conv_actives(c, l, e, scale, space, 0, &active)) {
        to += line.count * c.block;
        continue;
      }
      for (uint32_t k = 0; k < line.count; k++) {
        for (uint32_t j = 0; j < c.block; j++) {
          const uint32_t from = scl_conv_input(c, l * c.block + j) + scl_conv_at(&line, k);
          int32_t gradient;
          scl_conv_gradients(c, &active, j, scl_at(x, kind, from), kind, 0, 1, &gradient);
          *to++ += scl_shift(gradient, 8 - kc);
        }
      }
    }
  }
}

#endif
