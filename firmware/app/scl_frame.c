/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_frame.h"

#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_port.h"

static void restart(scl_frame_t *f) {
  f->size = 0;
  f->run = 0;
  f->gap = 0;
  f->too_long = 0;
  f->begun = 0;
}

static scl_frame_event_t finish(scl_frame_t *f) {
  const uint32_t size = f->size;
  const int begun = f->begun;
  const int too_long = f->too_long;
  const int whole = f->run == 0;
  restart(f);
  if (!begun) {
    return SCL_FRAME_MORE; /* zeros between frames */
  }
  if (too_long) {
    return SCL_FRAME_TOO_LONG;
  }
  if (!whole || size < SCL_FRAME_HEAD + 4u || scl_crc32(0, f->bytes, size - 4u) != scl_get_u32(f->bytes + size - 4u)) {
    return SCL_FRAME_DAMAGED;
  }
  f->size = size - 4u;
  return SCL_FRAME_COMPLETE;
}

static void store(scl_frame_t *f, uint8_t byte) {
  if (f->size < SCL_FRAME_BYTES) {
    f->bytes[f->size++] = byte;
  } else {
    f->too_long = 1;
  }
}

scl_frame_event_t scl_frame_take(scl_frame_t *f, uint8_t byte) {
  if (byte == 0) {
    return finish(f);
  }
  if (!f->begun) {
    restart(f);
    f->begun = 1;
    f->run = (uint8_t)(byte - 1u);
    f->gap = byte != 0xFFu;
    f->bytes[0] = byte;
    return SCL_FRAME_MORE;
  }
  /* '?' is the code of a run of 62 bytes, of which the first would be the frame's kind: a line end is neither kind. */
  if (f->size == 0 && f->bytes[0] == '?' && (byte == '\r' || byte == '\n')) {
    restart(f);
    return SCL_FRAME_QUESTION;
  }
  if (f->run == 0) {
    if (f->gap) {
      store(f, 0);
    }
    f->run = (uint8_t)(byte - 1u);
    f->gap = byte != 0xFFu;
    return SCL_FRAME_MORE;
  }
  f->run--;
  store(f, byte);
  return SCL_FRAME_MORE;
}

void scl_frame_send(uint8_t *bytes, uint32_t size) {
  static const uint8_t end = 0;
  scl_put_u32(bytes + size, scl_crc32(0, bytes, size));
  size += 4u;
  uint32_t from = 0;
  for (;;) {
    uint32_t run = 0;
    while (from + run < size && run < 254u && bytes[from + run] != 0) {
      run++;
    }
    const uint8_t code = (uint8_t)(run + 1u);
    scl_port_write(&code, 1);
    if (run > 0) {
      scl_port_write(bytes + from, run);
    }
    from += run;
    if (from == size) {
      break;
    }
    if (run < 254u) {
      from++; /* the zero that the code stands for */
    }
  }
  scl_port_write(&end, 1);
}
