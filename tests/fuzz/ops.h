/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An input as a list of operations: requests with a valid frame, whose fields
 * are right unless the input wants them wrong, so that most bytes reach a
 * handler; raw bytes; faults of the flash; power cuts.
 */
#ifndef FUZZ_OPS_H
#define FUZZ_OPS_H

#include "board.h"

/* Bytes of the input; behind its end zeros come. */
typedef struct {
  const uint8_t *at;
  uint32_t left;
} fuzz_input_t;

uint8_t fuzz_u8(fuzz_input_t *in);
uint16_t fuzz_u16(fuzz_input_t *in);
uint32_t fuzz_u32(fuzz_input_t *in);

/* Power on, and the host asks hello: what was restored is what flash-format.md promises. */
void fuzz_start(void);

/* Runs the operations to the end of the input, at most `most`; checks what flash-format.md promises after each restart. */
void fuzz_operate(fuzz_input_t *in, uint32_t most);

/*
 * A board that saved comes back with what it saved; after a reset to factory it has the initial state, and learns as a
 * new one does.  fuzz_remember, called once with an erased flash, notes what a new one does.
 */
void fuzz_remember(void);
void fuzz_recover(void);

/*
 * Teaches a task, the same each time for the same seed, by so many requests as its phase asks for: begin, a sample each,
 * steps, end.  1 when it came to its end, or was refused.
 */
int fuzz_learn(uint8_t seed, uint8_t mode, uint32_t requests);
void fuzz_learn_all(uint8_t seed, uint8_t mode);

#endif
