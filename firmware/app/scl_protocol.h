/* SPDX-License-Identifier: Apache-2.0 */
/* The board's side of docs/spec/protocol.md. */
#ifndef SCL_PROTOCOL_H
#define SCL_PROTOCOL_H

#include "scl_types.h"

/* Starts the protocol; restored: whether the state came from the journal. */
void scl_protocol_init(int restored);

/* Takes one byte of the line and, when it completes a request, executes and answers it. */
void scl_protocol_take(uint8_t byte);

#endif
