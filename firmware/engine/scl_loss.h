/* SPDX-License-Identifier: Apache-2.0 */
/* Losses and their errors at the logits, docs/spec/numerics.md "Loss". */
#ifndef SCL_LOSS_H
#define SCL_LOSS_H

#include "scl_types.h"

#define SCL_ALL_CLASSES (-1)

/*
 * Cross-entropy of the soft-max over the classes that `task` introduced
 * (SCL_ALL_CLASSES: over all).  z: SCL_N_CLASSES logits; e: SCL_LOGITS_PAD
 * errors, 14 fractional bits.  Returns the loss, 8 fractional bits.
 */
uint32_t scl_loss_cross_entropy(const int16_t *z, uint32_t label, const uint8_t *class_task, int32_t task, int16_t *e);

/* Error of the mean squared difference to the stored logits (DER++). */
void scl_loss_distil(const int16_t *z, const int16_t *stored, int16_t *e);

/*
 * Both terms of DER++ for one replayed sample: the error of the cross-entropy over all classes and that of
 * the squared difference, weighted by SCL_DISTIL_SHARE; no larger than the larger of the two.
 */
void scl_loss_shared(const int16_t *z, const int16_t *stored, uint32_t label, const uint8_t *class_task, int16_t *e);

/* Class with the largest logit, the lowest on ties. */
uint32_t scl_loss_predict(const int16_t *z);

#endif
