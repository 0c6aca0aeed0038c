/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A board inside this process, for fuzzing: flash in RAM, the line in two
 * buffers, the engine's variables put back at each power-on.  Whatever the
 * engine does against its contracts ends the process with a message.
 */
#ifndef FUZZ_BOARD_H
#define FUZZ_BOARD_H

#include "base.h"
#include "scl_board.h"
#include "scl_journal.h"

#define FUZZ_FRAME (SCL_MAX_PAYLOAD + 8u)

/* The flash: SCL_FLASH_SIZE bytes, with memory around that nothing may touch. */
uint8_t *fuzz_flash(void);

/* Faults of the flash; the counters fall with each operation that writes, at 0 it happens. */
typedef struct {
  uint32_t fail; /* reports an error, having done nothing */
  uint32_t torn; /* is done in part, and the power fails */
  uint32_t weak; /* a programmed byte does not take */
} fuzz_faults_t;

extern fuzz_faults_t fuzz_faults;

/* Flash operations since they were last cleared. */
typedef struct {
  uint32_t reads, programs, erases;
} fuzz_operations_t;

extern fuzz_operations_t fuzz_operations;

/* Power on: the engine starts with the flash as it is. */
void fuzz_boot(void);

/* What the board said since the last call that clears it. */
typedef struct {
  uint8_t bytes[8u * FUZZ_FRAME];
  uint32_t size;
} fuzz_said_t;

extern fuzz_said_t fuzz_said;

/* Sends bytes as they are; 1 when the board restarted, which throws the rest away. */
int fuzz_send(const uint8_t *bytes, uint32_t size);

/* One request and its reply, which has to be well formed and its own; `restarted` as fuzz_send says. */
typedef struct {
  int restarted;
  uint8_t status;
  uint32_t size;
  uint8_t payload[FUZZ_FRAME];
} fuzz_reply_t;

const fuzz_reply_t *fuzz_request(uint8_t kind, uint8_t sequence, uint8_t command, const uint8_t *payload,
                                 uint32_t size);

/* All that was said is well-formed replies and lines of text; returns how many replies. */
uint32_t fuzz_check_said(void);

#endif
