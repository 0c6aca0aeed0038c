/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolution, with masks (panels, docs/numerics.md) or without, also
 * depthwise.  Inputs are tensors with margins, so no kernel position ever lies
 * outside.
 *
 * Forward: a run of neighbouring output positions stays in registers while the
 * entries of one line (a block of output channels) are walked; no map of
 * accumulators exists.  Backward: most errors are 0, behind max-pooling for
 * one; the others of a line are listed first, and each entry visits the list.
 */
#ifndef SCL_CONV_H
#define SCL_CONV_H

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
  uint16_t out_h, out_w, stride_h, stride_w, in_row;
  uint32_t in_plane, in_origin;
  uint32_t out_row, out_plane, out_origin;
  uint16_t n_panels;    /* 0 without masks */
} scl_conv_t;

/* Number formats of a layer's backward pass, docs/numerics.md "Convolution". */
typedef struct {
  int8_t ke, elog, glog; /* kg is part of scl_rate_t.shift */
  uint8_t su, wlog, blog;
  int8_t bias_shift;     /* fg - kg - fw - fx */
} scl_conv_rates_t;

/* One error that is not 0: where the window of its output position begins, the error to propagate, the step. */
typedef struct {
  uint16_t at;
  int16_t e, g;
} scl_active_t;

#define SCL_CONV_LANES 4u /* output channels at a time, at most */
#define SCL_CONV_RUN 7u   /* output positions at a time, at most */
#define SCL_CONV_SUMS 8u  /* of both together: what registers hold */

#define SCL_UNROLL_ALL _Pragma("GCC unroll 8")

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

/* Positions in a run: as even a division of a row as possible. */
SCL_INLINE uint32_t scl_conv_run_length(const scl_conv_t c) {
  const uint32_t most = scl_min_u32(SCL_CONV_SUMS / scl_conv_lanes(c), SCL_CONV_RUN);
  const uint32_t runs = (c.out_w + most - 1u) / most;
  return (c.out_w + runs - 1u) / runs;
}

typedef struct {
  int32_t sum[SCL_CONV_LANES][SCL_CONV_RUN];
} scl_conv_sums_t;

/*
 * Adds the products of `count` entries.  index NULL: the entries are kernel positions 0, 1, ...; weight j of an entry
 * lies lane_step * j further.
 */
SCL_INLINE void scl_conv_add(const scl_conv_t c, scl_conv_sums_t *acc, const uint16_t *at, const uint8_t *index,
                             uint32_t count, const int16_t *weight, uint32_t entry_step, uint32_t lane_step,
                             const void *const *x, scl_kind_t kind, uint32_t lanes, uint32_t run) {
  for (uint32_t k = 0; k < count; k++, weight += entry_step) {
    const uint32_t from = at[index == NULL ? k : index[k]];
    SCL_UNROLL_ALL
    for (uint32_t j = 0; j < lanes; j++) {
      const int32_t w = weight[j * lane_step];
      SCL_UNROLL_ALL
      for (uint32_t r = 0; r < run; r++) {
        acc->sum[j][r] += w * scl_load(x[j], kind, from + r * c.stride_w);
      }
    }
  }
}

SCL_INLINE uint32_t scl_conv_run(const scl_conv_t c, const scl_panel_t *panels, const int16_t *weight,
                                 const int32_t *bias, const void *x, scl_kind_t kind, int16_t *out, scl_activation_t a,
                                 uint32_t line, uint32_t row, uint32_t column, uint32_t run) {
  const uint32_t lanes = scl_conv_lanes(c);
  const uint32_t first = row * c.stride_h * c.in_row + column * c.stride_w;
  scl_conv_sums_t acc;
  const void *window[SCL_CONV_LANES];
  uint32_t saturated = 0;
  SCL_UNROLL_ALL
  for (uint32_t j = 0; j < lanes; j++) {
    window[j] = scl_at(x, kind, scl_conv_input(c, line * lanes + j) + first);
    SCL_UNROLL_ALL
    for (uint32_t r = 0; r < run; r++) {
      acc.sum[j][r] = bias[line * lanes + j];
    }
  }
  if (c.n_panels == 0) {
    scl_conv_add(c, &acc, c.at, NULL, c.n_in, weight + line * lanes * c.n_in, 1, c.n_in, window, kind, lanes, run);
  }
  for (uint32_t p = 0; p < c.n_panels; p++) {
    const scl_panel_t *panel = &panels[p];
    const uint32_t start = panel->start[line];
    scl_conv_add(c, &acc, c.at + panel->first, panel->index + start, panel->start[line + 1] - start,
                 panel->weight + start * lanes, lanes, 1, window, kind, lanes, run);
  }
  SCL_UNROLL_ALL
  for (uint32_t j = 0; j < lanes; j++) {
    const uint32_t o = line * lanes + j;
    if (o < c.n_out) {
      SCL_UNROLL_ALL
      for (uint32_t r = 0; r < run; r++) {
        out[c.out_origin + o * c.out_plane + row * c.out_row + column + r] =
            scl_activate_value(acc.sum[j][r], a, &saturated);
      }
    }
  }
  return saturated;
}

/*
 * panels: c.n_panels of them, or NULL and weight[o * n_in + i].  out: the tensor with its margins, which the caller has
 * cleared.  Returns how many activations saturated.
 */
SCL_INLINE uint32_t scl_conv_forward(const scl_conv_t c, const scl_panel_t *panels, const int16_t *weight,
                                     const int32_t *bias, const void *x, scl_kind_t kind, int16_t *out,
                                     scl_activation_t a) {
  const uint32_t lanes = scl_conv_lanes(c);
  const uint32_t run = scl_conv_run_length(c);
  const uint32_t rest = c.out_w % run;
  uint32_t saturated = 0;
  for (uint32_t line = 0; line * lanes < c.n_out; line++) {
    for (uint32_t row = 0; row < c.out_h; row++) {
      for (uint32_t column = 0; column + run <= c.out_w; column += run) {
        saturated += scl_conv_run(c, panels, weight, bias, x, kind, out, a, line, row, column, run);
      }
      if (rest > 0) {
        saturated += scl_conv_run(c, panels, weight, bias, x, kind, out, a, line, row, c.out_w - rest, rest);
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

/* The errors other than 0 of the output channels of a line, each with its step. */
typedef struct {
  const scl_active_t *list[SCL_CONV_LANES];
  uint32_t count[SCL_CONV_LANES]; /* 0: the channel is not active */
  uint32_t any;
} scl_conv_active_t;

SCL_INLINE uint32_t scl_conv_list(const scl_conv_t c, const int16_t *e, scl_rate_t rate, const scl_conv_rates_t r,
                                  scl_active_t *list) {
  uint32_t count = 0;
  for (uint32_t row = 0; row < c.out_h; row++, e += c.out_row) {
    uint32_t at = row * c.stride_h * c.in_row;
    for (uint32_t column = 0; column < c.out_w; column++, at += c.stride_w) {
      const int32_t v = e[column];
      if (v != 0) {
        list[count++] = (scl_active_t){(uint16_t)at, (int16_t)scl_saturate(scl_shift(v, r.ke), (uint32_t)r.elog),
                                       (int16_t)scl_saturate(scl_shift(v * rate.multiplier, rate.shift),
                                                             (uint32_t)r.glog)};
      }
    }
  }
  return count;
}

SCL_INLINE scl_conv_active_t scl_conv_actives(const scl_conv_t c, uint32_t line, const int16_t *e, scl_rate_t rate,
                                              const scl_conv_rates_t r, scl_active_t *space) {
  scl_conv_active_t active = {.any = 0};
  for (uint32_t j = 0; j < c.block; j++) {
    const uint32_t o = line * c.block + j;
    active.list[j] = space + j * SCL_ACTIVE;
    active.count[j] = 0;
    if (o < c.n_out) {
      active.count[j] = scl_conv_list(c, e + c.out_origin + o * c.out_plane, rate, r, space + j * SCL_ACTIVE);
      active.any |= active.count[j];
    }
  }
  return active;
}

/* Gradient of one weight: the sum of step times input; x: the input under its kernel position, for output (0, 0). */
SCL_INLINE int32_t scl_conv_gradient(const scl_active_t *list, uint32_t count, const void *x, scl_kind_t kind) {
  int32_t sum = 0;
  SCL_UNROLL
  for (uint32_t n = 0; n < count; n++) {
    sum += list[n].g * scl_load(x, kind, list[n].at);
  }
  return sum;
}

/* Carries the errors back through one weight. */
SCL_INLINE void scl_conv_scatter(const scl_active_t *list, uint32_t count, int32_t w, int32_t *sums) {
  SCL_UNROLL
  for (uint32_t n = 0; n < count; n++) {
    sums[list[n].at] += w * list[n].e;
  }
}

/* Both at once. */
SCL_INLINE int32_t scl_conv_both(const scl_active_t *list, uint32_t count, const void *x, scl_kind_t kind, int32_t w,
                                 int32_t *sums) {
  int32_t sum = 0;
  SCL_UNROLL
  for (uint32_t n = 0; n < count; n++) {
    const uint32_t at = list[n].at;
    sums[at] += w * list[n].e;
    sum += list[n].g * scl_load(x, kind, at);
  }
  return sum;
}

/* The channels of entries from .. count carry their errors back and learn nothing. */
SCL_INLINE void scl_conv_line_error(const scl_conv_t c, const scl_conv_line_t *line, uint32_t number, uint32_t from,
                                    const scl_conv_active_t *active, int32_t *sums) {
  for (uint32_t k = from; k < line->count; k++) {
    const uint32_t at = scl_conv_at(line, k);
    for (uint32_t j = 0; j < c.block; j++) {
      scl_conv_scatter(active->list[j], active->count[j], line->weight[k * c.block + j],
                       sums + scl_conv_input(c, number * c.block + j) + at);
    }
  }
}

/* Adds to the sums of the input's error, which are laid out as the input and cleared by the caller. */
SCL_INLINE void scl_conv_error(const scl_conv_t c, const scl_panel_t *panels, int16_t *weight, const int16_t *e,
                               const scl_conv_rates_t r, int32_t *sums, scl_active_t *space) {
  for (uint32_t p = 0; p < scl_conv_count_panels(c); p++) {
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      const scl_conv_active_t active = scl_conv_actives(c, l, e, (scl_rate_t){0, 0}, r, space);
      const scl_conv_line_t line = scl_conv_line(c, panels + p, weight, l);
      scl_conv_line_error(c, &line, l, 0, &active, sums);
    }
  }
}

/* The sum of the steps of channel j of a line. */
SCL_INLINE int32_t scl_conv_bias_step(const scl_conv_active_t *active, uint32_t j) {
  int32_t sum = 0;
  for (uint32_t n = 0; n < active->count[j]; n++) {
    sum += active->list[j][n].g;
  }
  return sum;
}

/* Gradient of weight j of entry k; its error goes to the sums unless they are NULL. */
SCL_INLINE int32_t scl_conv_learn(const scl_conv_t c, const scl_conv_line_t *line, uint32_t number, uint32_t k,
                                  uint32_t j, const scl_conv_active_t *active, const void *x, scl_kind_t kind,
                                  int32_t *sums) {
  const uint32_t at = scl_conv_input(c, number * c.block + j) + scl_conv_at(line, k);
  if (sums == NULL) {
    return scl_conv_gradient(active->list[j], active->count[j], scl_at(x, kind, at), kind);
  }
  return scl_conv_both(active->list[j], active->count[j], scl_at(x, kind, at), kind, line->weight[k * c.block + j],
                       sums + at);
}

/*
 * Batch 1: error and update of every weight at once, with the weights as they were.  sums: as of scl_conv_error, NULL if
 * the input has no error; e: laid out as the output; rate: its shift with kg added.
 */
SCL_INLINE void scl_conv_backward(const scl_conv_t c, const scl_panel_t *panels, int16_t *weight, int32_t *bias,
                                  const void *x, scl_kind_t kind, const int16_t *e, scl_rate_t rate,
                                  const scl_conv_rates_t r, int32_t *sums, scl_active_t *space, uint32_t *prng) {
  uint32_t random = *prng;
  for (uint32_t p = 0; p < scl_conv_count_panels(c); p++) {
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      const scl_conv_active_t active = scl_conv_actives(c, l, e, rate, r, space);
      if (active.any == 0) {
        continue;
      }
      const scl_conv_line_t line = scl_conv_line(c, panels + p, weight, l);
      for (uint32_t k = 0; k < line.learning; k++) {
        for (uint32_t j = 0; j < c.block; j++) {
          if (active.count[j] > 0) {
            const int32_t change = scl_conv_learn(c, &line, l, k, j, &active, x, kind, sums);
            scl_weight_step(&line.weight[k * c.block + j], change, r.su, r.wlog, &random);
          }
        }
      }
      if (sums != NULL) {
        scl_conv_line_error(c, &line, l, line.learning, &active, sums);
      }
      for (uint32_t j = 0; j < c.block && p == 0; j++) {
        scl_bias_step(&bias[l * c.block + j], scl_conv_bias_step(&active, j), r.bias_shift, r.blog);
      }
    }
  }
  *prng = random;
}

/* Batch > 1: gradients of the entries of the gradient mask in storage order, or of all weights without masks. */
SCL_INLINE void scl_conv_accumulate(const scl_conv_t c, const scl_panel_t *panels, int16_t *weight, int32_t *gradient,
                                    int32_t *bias_gradient, const void *x, scl_kind_t kind, const int16_t *e,
                                    scl_rate_t rate, const scl_conv_rates_t r, int32_t *sums, scl_active_t *space) {
  for (uint32_t p = 0; p < scl_conv_count_panels(c); p++) {
    int32_t *to = c.n_panels == 0 ? gradient : panels[p].gradient;
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      const scl_conv_active_t active = scl_conv_actives(c, l, e, rate, r, space);
      const scl_conv_line_t line = scl_conv_line(c, panels + p, weight, l);
      for (uint32_t k = 0; k < line.learning; k++) {
        for (uint32_t j = 0; j < c.block; j++) {
          if (active.count[j] > 0) {
            const int32_t change = scl_conv_learn(c, &line, l, k, j, &active, x, kind, sums);
            to[k * c.block + j] += scl_shift(change, SCL_SACC);
          }
        }
      }
      to += line.learning * c.block;
      if (sums != NULL) {
        scl_conv_line_error(c, &line, l, line.learning, &active, sums);
      }
      for (uint32_t j = 0; j < c.block && p == 0; j++) {
        bias_gradient[l * c.block + j] += scl_conv_bias_step(&active, j);
      }
    }
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
                                 const int16_t *e, int32_t kc, int32_t slot, scl_active_t *space) {
  const scl_rate_t scored = {1, (int8_t)kc};
  const scl_conv_rates_t exact = {.elog = 15, .glog = 15};
  for (uint32_t p = 0; p < c.n_panels; p++) {
    int32_t *to = slot < SCL_CAPTURE ? panels[p].captured_d : panels[p].captured_m;
    for (uint32_t l = 0; l < scl_conv_count_lines(c); l++) {
      const scl_conv_active_t active = scl_conv_actives(c, l, e, scored, exact, space);
      scl_conv_line_t line = scl_conv_line(c, panels + p, NULL, l);
      if (SCL_GROWTH_GRADIENT) { /* also of the weights that could be */
        line.index = NULL;
        line.count = panels[p].places;
      }
      for (uint32_t k = 0; k < line.count; k++) {
        for (uint32_t j = 0; j < c.block; j++) {
          *to++ += scl_shift(scl_conv_learn(c, &line, l, k, j, &active, x, kind, NULL), 8 - kc);
        }
      }
    }
  }
}

#endif
