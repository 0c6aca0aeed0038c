/* SPDX-License-Identifier: Apache-2.0 */
/* Frames on the serial line, docs/spec/protocol.md "Frame". */
#ifndef SCL_FRAME_H
#define SCL_FRAME_H

#include "scl_board.h"
#include "scl_types.h"

#define SCL_FRAME_HEAD 4u
#define SCL_FRAME_BYTES (SCL_FRAME_HEAD + SCL_LINE_PAYLOAD + 4u)

/* A frame being received; decoded byte by byte as it arrives, so one buffer is enough. */
typedef struct {
  uint8_t bytes[SCL_FRAME_BYTES];
  uint32_t size;  /* decoded so far */
  uint8_t run;    /* bytes left of the current COBS run */
  uint8_t gap;    /* a zero is due before the next run */
  uint8_t too_long; /* longer than any frame since the last zero byte */
  uint8_t begun;  /* any byte since the last zero byte */
} scl_frame_t;

typedef enum {
  SCL_FRAME_MORE,
  SCL_FRAME_COMPLETE,
  SCL_FRAME_DAMAGED,
  SCL_FRAME_QUESTION,
  SCL_FRAME_TOO_LONG
} scl_frame_event_t;

/* Takes one byte of the line.  After COMPLETE, bytes[0 .. size-1] is a frame without its checksum until the next call. */
scl_frame_event_t scl_frame_take(scl_frame_t *frame, uint8_t byte);

/* Sends bytes[0 .. size-1] and their checksum; bytes has room for 4 more, which are overwritten. */
void scl_frame_send(uint8_t *bytes, uint32_t size);

#endif
