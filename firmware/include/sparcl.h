/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sparcl.h: a sparse network that keeps learning, in integers.
 *
 * There is one learner.  It has no heap; its RAM and flash are those of the
 * generated memory plan.  Functions return 0 or more, or one of the negative
 * errors; the learner is then as before, or as last saved.  None may be called
 * from an interrupt.
 */
#ifndef SPARCL_H
#define SPARCL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  SPARCL_OK = 0,
  SPARCL_ERR_STATE = -4,      /* not in this phase of a task */
  SPARCL_ERR_RANGE = -5,      /* a number that the generated firmware has no room for */
  SPARCL_ERR_LABEL = -6,      /* the label is not a class of this task */
  SPARCL_ERR_FULL = -8,       /* the flash partition has no room */
  SPARCL_ERR_FLASH = -9,      /* the flash failed: the learner is the one last saved */
  SPARCL_ERR_TOO_MANY = -10,  /* more samples than were announced */
  SPARCL_ERR_SELF_TEST = -17, /* the compiled kernels compute something else: nothing may be learned */
  SPARCL_ERR_DAMAGED = -18    /* the port's check found a flipped bit */
} sparcl_error_t;

/* When the port's check is called. */
typedef enum {
  SPARCL_BEFORE_SAVE,
  SPARCL_EACH_STEP,
  SPARCL_BEFORE_MASKS, /* before a mask update changes which weights exist */
  SPARCL_MASKS_CHANGED
} sparcl_event_t;

/*
 * What the engine needs of the program.  read, program and erase return 0, or a negative number where the flash fails;
 * addresses count from the beginning of the partition, whose geometry was given to the generator.  program gets
 * multiples of the program unit, on erased bytes, once.  The others may be NULL: ticks (any unit, wraps), feed_watchdog,
 * and check, with which a program looks for flipped bits; an error of its own ends the call that it is made in.
 */
typedef struct {
  void *context;
  int32_t (*read)(void *context, uint32_t address, void *data, uint32_t size);
  int32_t (*program)(void *context, uint32_t address, const void *data, uint32_t size);
  int32_t (*erase)(void *context, uint32_t address);
  uint32_t (*ticks)(void *context);
  void (*feed_watchdog)(void *context);
  int (*check)(void *context, sparcl_event_t event);
} sparcl_port_t;

typedef struct {
  uint32_t step;        /* training steps so far */
  uint16_t epoch, left; /* of the task: epochs done, steps left in this one */
  uint16_t wrong;       /* misclassified in this call */
  uint8_t task, done;   /* done: the task is trained to its end */
} sparcl_progress_t;

/* Restores the learner that was saved last, 1; or begins with the initial model, 0.  The port has to stay. */
int sparcl_start(const sparcl_port_t *port);

/* A task: announce its classes and number of samples, add these, train until done, end.  end saves the learner. */
int sparcl_begin_task(const uint8_t *classes, uint32_t n_classes, uint32_t n_samples);
int sparcl_add(uint8_t label, const void *sample);
int sparcl_train(uint32_t steps, sparcl_progress_t *progress); /* up to the end of the epoch */
int sparcl_end_task(void);

/* The class of a sample; its logits, one a class, unless NULL. */
int sparcl_predict(const void *sample, int16_t *logits);

int sparcl_save(void);
int sparcl_forget(void);      /* back to the initial model */
uint32_t sparcl_digest(void); /* equal digests are equal learners, on any board */

#ifdef __cplusplus
}
#endif

#endif
