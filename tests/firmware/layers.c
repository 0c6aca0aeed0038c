/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels of convolutional networks one by one: `layers OPERATION` reads
 * records from standard input and writes results to standard output, both as
 * they lie in memory.  test_layers.py holds the other side.  All memory has
 * exactly the right size, so that the sanitizer sees an access beyond it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scl_conv.h"
#include "scl_pool.h"

static void *take(size_t count, size_t size) {
  void *data = calloc(count ? count : 1u, size);
  if (data == NULL || fread(data, size, count, stdin) != count) {
    exit(2);
  }
  return data;
}

static void *clear(size_t count, size_t size) {
  void *data = calloc(count ? count : 1u, size);
  if (data == NULL) {
    exit(2);
  }
  return data;
}

static void give(const void *data, size_t size) { fwrite(data, 1, size, stdout); }

static void give_u32(uint32_t v) { give(&v, sizeof v); }

static scl_activation_t activation(const int32_t v[5]) {
  return (scl_activation_t){v[0], v[1], (int8_t)v[2], (uint8_t)v[3], (uint8_t)v[4]};
}

/* ---- convolution ---- */

typedef struct {
  int32_t kind, n_in, n_out, block, multiplier, kernel_h, kernel_w, out_h, out_w, stride_h, stride_w, in_row, in_plane,
      in_origin, out_row, out_plane, out_origin, n_panels, in_size, out_size;
  int32_t pool_h, pool_w, pool_stride_h, pool_stride_w, pool_top, pool_left, pooled_h, pooled_w; /* pool_h 0: none */
  int32_t activation[5], rate[2];
  int32_t ke, elog, glog, su, wlog, blog, bias_shift, kc, slot;
  uint32_t prng;
} conv_t;

static scl_conv_t conv_of(const conv_t *s, const uint16_t *at) {
  return (scl_conv_t){.at = at,
                      .n_in = (uint16_t)s->n_in,
                      .n_out = (uint16_t)s->n_out,
                      .block = (uint8_t)s->block,
                      .multiplier = (uint8_t)s->multiplier,
                      .kernel_h = (uint16_t)s->kernel_h,
                      .kernel_w = (uint16_t)s->kernel_w,
                      .out_h = (uint16_t)s->out_h,
                      .out_w = (uint16_t)s->out_w,
                      .stride_h = (uint16_t)s->stride_h,
                      .stride_w = (uint16_t)s->stride_w,
                      .in_row = (uint16_t)s->in_row,
                      .in_plane = (uint32_t)s->in_plane,
                      .in_origin = (uint32_t)s->in_origin,
                      .out_row = (uint32_t)s->out_row,
                      .out_plane = (uint32_t)s->out_plane,
                      .out_origin = (uint32_t)s->out_origin,
                      .n_panels = (uint16_t)s->n_panels};
}

/* The pooling behind a convolution; its output has no margins. */
static scl_pool_t pool_of(const conv_t *s) {
  return (scl_pool_t){.channels = (uint16_t)s->n_out,
                      .in_h = (uint16_t)s->out_h,
                      .in_w = (uint16_t)s->out_w,
                      .out_h = (uint16_t)s->pooled_h,
                      .out_w = (uint16_t)s->pooled_w,
                      .kernel_h = (uint16_t)s->pool_h,
                      .kernel_w = (uint16_t)s->pool_w,
                      .stride_h = (uint16_t)s->pool_stride_h,
                      .stride_w = (uint16_t)s->pool_stride_w,
                      .top = (uint16_t)s->pool_top,
                      .left = (uint16_t)s->pool_left,
                      .in_row = (uint16_t)s->out_row,
                      .out_row = (uint16_t)s->pooled_w,
                      .in_plane = (uint32_t)s->out_plane,
                      .in_origin = (uint32_t)s->out_origin,
                      .out_plane = (uint32_t)(s->pooled_h * s->pooled_w)};
}

/* Sizes of a panel's lists, in values. */
typedef struct {
  uint32_t weights, gradients, captured;
} sizes_t;

static scl_panel_t take_panel(const conv_t *s, uint32_t lines, sizes_t *sizes) {
  uint32_t *head = take(3, sizeof *head);
  const uint32_t block = (uint32_t)s->block;
  scl_panel_t p = {.first = (uint16_t)head[0], .places = (uint16_t)head[1]};
  p.start = take(lines + 1u, sizeof *p.start);
  p.split = take(lines, sizeof *p.split);
  p.index = take(head[2], 1);
  p.weight = take(head[2] * block, sizeof *p.weight);
  *sizes = (sizes_t){head[2] * block, 0, (SCL_GROWTH_GRADIENT ? lines * head[1] : head[2]) * block};
  for (uint32_t l = 0; l < lines; l++) {
    sizes->gradients += (uint32_t)(p.split[l] - p.start[l]) * block;
  }
  p.gradient = clear(sizes->gradients, sizeof *p.gradient);
  p.captured_d = clear(sizes->captured, sizeof *p.captured_d);
  p.captured_m = clear(sizes->captured, sizeof *p.captured_m);
  free(head);
  return p;
}

static void free_panel(scl_panel_t *p) {
  free(p->start), free(p->split), free(p->index), free(p->weight);
  free(p->gradient), free(p->captured_d), free(p->captured_m);
}

/* Everything a layer owns; without masks there is one entry in `panels`, of which the weights alone are used. */
typedef struct {
  scl_panel_t panels[4];
  sizes_t sizes[4];
  uint32_t count;
} weights_t;

static void give_weights(const weights_t *w) {
  for (uint32_t p = 0; p < w->count; p++) {
    give(w->panels[p].weight, w->sizes[p].weights * sizeof(int16_t));
  }
}

static void conv(void) {
  conv_t s;
  while (fread(&s, sizeof s, 1, stdin) == 1) {
    const scl_kind_t kind = (scl_kind_t)s.kind;
    uint16_t *at = take((size_t)s.n_in, sizeof *at);
    void *x = take((size_t)s.in_size, kind == SCL_I16 ? 2 : 1);
    const uint32_t lines = (uint32_t)((s.n_out + s.block - 1) / s.block);
    const uint32_t n_pad = lines * (uint32_t)s.block;
    int32_t *bias = take(n_pad, sizeof *bias);
    const size_t pooled = s.pool_h == 0 ? 0 : (size_t)(s.n_out * s.pooled_h * s.pooled_w);
    const size_t most = s.pool_h == 0 ? (size_t)(s.out_h * s.out_w) : (size_t)(s.pooled_h * s.pooled_w);
    int16_t *e = take(s.pool_h == 0 ? (size_t)s.out_size : pooled, sizeof *e);
    uint8_t *arg = take(pooled, sizeof *arg);
    const scl_conv_errors_t errors = {e, s.pool_h == 0 ? NULL : arg, pool_of(&s)};
    weights_t w = {.count = s.n_panels == 0 ? 1u : (uint32_t)s.n_panels};
    for (int32_t p = 0; p < s.n_panels; p++) {
      w.panels[p] = take_panel(&s, lines, &w.sizes[p]);
    }
    if (s.n_panels == 0) {
      w.sizes[0] = (sizes_t){(uint32_t)(s.n_out * s.n_in), (uint32_t)(s.n_out * s.n_in), 0};
      w.panels[0].weight = take(w.sizes[0].weights, sizeof *w.panels[0].weight);
      w.panels[0].gradient = clear(w.sizes[0].gradients, sizeof *w.panels[0].gradient);
    }
    const scl_panel_t *panels = s.n_panels == 0 ? NULL : w.panels;
    int16_t *weight = s.n_panels == 0 ? w.panels[0].weight : NULL;
    int32_t *gradient = s.n_panels == 0 ? w.panels[0].gradient : NULL;
    int16_t *out = clear((size_t)s.out_size, sizeof *out);
    int32_t *sums = clear((size_t)s.in_size, sizeof *sums);
    int32_t *bias_gradient = clear(n_pad, sizeof *bias_gradient);
    int32_t *space = clear((size_t)s.block * (most + most % 2) * 2, sizeof *space);
    int32_t *entries = clear((size_t)(s.n_in * (1 + (s.block + 1) / 2)), sizeof *entries);
    const scl_conv_t c = conv_of(&s, at);
    const scl_rate_t rate = {(int16_t)s.rate[0], (int8_t)s.rate[1]};
    const scl_conv_rates_t r = {(int8_t)s.ke,    (int8_t)s.elog,  (int8_t)s.glog,      (uint8_t)s.su,
                                (uint8_t)s.wlog, (uint8_t)s.blog, (int8_t)s.bias_shift};
    uint32_t random = s.prng;

    give_u32(scl_conv_forward(c, panels, weight, bias, x, kind, out, activation(s.activation), entries));
    give(out, (size_t)s.out_size * sizeof *out);
    scl_conv_error(c, panels, weight, errors, r, sums, space);
    give(sums, (size_t)s.in_size * sizeof *sums);
    scl_conv_capture(c, panels, x, kind, errors, s.kc, s.slot, space);
    for (int32_t p = 0; p < s.n_panels; p++) {
      give(w.panels[p].captured_d, w.sizes[p].captured * sizeof(int32_t));
      give(w.panels[p].captured_m, w.sizes[p].captured * sizeof(int32_t));
    }
    memset(sums, 0, (size_t)s.in_size * sizeof *sums);
    scl_conv_backward(c, panels, weight, bias, NULL, x, kind, kind == SCL_U8, errors, rate, r, s.slot % 2 ? sums : NULL,
                      space, &random);
    give(sums, (size_t)s.in_size * sizeof *sums);
    give_weights(&w);
    give(bias, n_pad * sizeof *bias);
    give_u32(random);
    memset(sums, 0, (size_t)s.in_size * sizeof *sums);
    scl_conv_backward(c, panels, weight, bias_gradient, gradient, x, kind, kind == SCL_U8, errors, rate, r,
                      s.slot % 2 ? NULL : sums, space, NULL);
    give(sums, (size_t)s.in_size * sizeof *sums);
    for (uint32_t p = 0; p < w.count; p++) {
      give(w.panels[p].gradient, w.sizes[p].gradients * sizeof(int32_t));
    }
    give(bias_gradient, n_pad * sizeof *bias_gradient);
    scl_conv_apply(c, panels, weight, gradient, bias, bias_gradient, r, &random);
    give_weights(&w);
    give(bias, n_pad * sizeof *bias);
    give_u32(random);

    for (uint32_t p = 0; p < w.count; p++) {
      free_panel(&w.panels[p]);
    }
    free(at), free(x), free(bias), free(e), free(arg), free(entries), free(out), free(sums), free(bias_gradient),
        free(space);
  }
}

/* ---- pooling ---- */

static void pool(void) {
  struct {
    int32_t kind, channels, in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, top, left, in_row,
        in_plane, in_origin, out_row, out_plane, out_origin, in_size, out_size, activation[5];
  } s;
  while (fread(&s, sizeof s, 1, stdin) == 1) {
    const scl_kind_t kind = (scl_kind_t)s.kind;
    const uint32_t values = (uint32_t)(s.channels * s.out_h * s.out_w);
    void *x = take((size_t)s.in_size, kind == SCL_I16 ? 2 : 1);
    int16_t *e_out = take((size_t)s.out_size, sizeof *e_out);
    int16_t *e_max = take((size_t)s.in_size, sizeof *e_max);
    int16_t *e_avg = take((size_t)s.in_size, sizeof *e_avg);
    int16_t *out = clear((size_t)s.out_size, sizeof *out);
    uint8_t *arg = clear(values, 1);
    const scl_pool_t p = {.channels = (uint16_t)s.channels,
                          .in_h = (uint16_t)s.in_h,
                          .in_w = (uint16_t)s.in_w,
                          .out_h = (uint16_t)s.out_h,
                          .out_w = (uint16_t)s.out_w,
                          .kernel_h = (uint16_t)s.kernel_h,
                          .kernel_w = (uint16_t)s.kernel_w,
                          .stride_h = (uint16_t)s.stride_h,
                          .stride_w = (uint16_t)s.stride_w,
                          .top = (uint16_t)s.top,
                          .left = (uint16_t)s.left,
                          .in_row = (uint16_t)s.in_row,
                          .out_row = (uint16_t)s.out_row,
                          .in_plane = (uint32_t)s.in_plane,
                          .in_origin = (uint32_t)s.in_origin,
                          .out_plane = (uint32_t)s.out_plane,
                          .out_origin = (uint32_t)s.out_origin};
    give_u32(scl_max_pool(p, x, kind, out, arg, activation(s.activation)));
    give(out, (size_t)s.out_size * sizeof *out);
    scl_max_pool_back(p, arg, e_out, e_max);
    give(e_max, (size_t)s.in_size * sizeof *e_max);
    give_u32(scl_avg_pool(p, x, kind, out, activation(s.activation)));
    give(out, (size_t)s.out_size * sizeof *out);
    scl_avg_pool_back(p, e_out, e_avg);
    give(e_avg, (size_t)s.in_size * sizeof *e_avg);
    free(x), free(e_out), free(e_max), free(e_avg), free(out), free(arg);
  }
}

/* ---- whole tensors ---- */

typedef struct {
  int32_t channels, height, width, row, plane, origin, size;
} shape_t;

static scl_tensor_t tensor(const shape_t *s) {
  return (scl_tensor_t){(uint16_t)s->channels, (uint16_t)s->height, (uint16_t)s->width,
                        (uint32_t)s->row,      (uint32_t)s->plane,  (uint32_t)s->origin};
}

/* A tensor with margins of 8 and of 16 bits, a second one with other margins. */
static void tensors(void) {
  struct {
    shape_t from, to;
    int32_t shift_from, shift_to, high, first, rectified, fraction, activation[5];
  } s;
  while (fread(&s, sizeof s, 1, stdin) == 1) {
    const scl_tensor_t from = tensor(&s.from), to = tensor(&s.to);
    const size_t n_from = (size_t)s.from.size, n_to = (size_t)s.to.size;
    const size_t values = (size_t)(s.from.channels * s.from.height * s.from.width);
    uint8_t *sample = take(values, 1);
    int16_t *x = take(n_from, sizeof *x);
    int16_t *y = take(n_to, sizeof *y);
    int16_t *e = take(n_to, sizeof *e);
    int32_t *sums = take(n_to, sizeof *sums);
    uint8_t *out8 = clear(n_to, 1);
    uint8_t *bits = clear((n_to + 7u) / 8u, 1);
    int16_t *out = clear(n_to, sizeof *out);
    scl_latent_t *latent = clear(values, sizeof *latent);
    scl_pad((scl_tensor_t){0}, to, sample, SCL_U8, out8, 1);
    give(out8, n_to);
    scl_pad(from, to, x, SCL_I16, out, 0);
    give(out, n_to * sizeof *out);
    const scl_addend_t in[2] = {{x, from, SCL_I16, (int8_t)s.shift_from}, {y, to, SCL_I16, (int8_t)s.shift_to}};
    give_u32(scl_add(in, 2, to, out, activation(s.activation)));
    give(out, n_to * sizeof *out);
    scl_latent(from, x, s.shift_from, latent);
    give(latent, values * sizeof *latent);
    give_u32(scl_contribute_sums(to, sums, e, s.rectified ? y : NULL, s.fraction, s.first));
    give(e, n_to * sizeof *e);
    scl_copy_error(from, x, to, e, s.first);
    give(e, n_to * sizeof *e);
    scl_alive(y, (uint32_t)n_to, s.high, bits);
    scl_mask_error(e, (uint32_t)n_to, bits);
    give(e, n_to * sizeof *e);
    free(sample), free(x), free(y), free(e), free(sums), free(out8), free(bits), free(out), free(latent);
  }
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(void);
  } operations[] = {{"conv", conv}, {"pool", pool}, {"tensors", tensors}};
  for (size_t k = 0; argc == 2 && k < sizeof operations / sizeof operations[0]; k++) {
    if (strcmp(argv[1], operations[k].name) == 0) {
      operations[k].run();
      return 0;
    }
  }
  return 2;
}
