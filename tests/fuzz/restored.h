/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's records and snapshots checked by docs/spec/flash-format.md, without the engine's code. */
#ifndef FUZZ_RESTORED_H
#define FUZZ_RESTORED_H

#include <stdint.h>

#define FUZZ_HEADER 48u /* bytes of a sector's header that count */
enum { FUZZ_DATA = 1, FUZZ_STATE = 2 };

/* A sector's header; valid: magic and checksum fit. */
typedef struct {
  uint32_t sequence, snapshot, size, crc;
  uint16_t part, parts;
  uint8_t valid, kind, ours;
} fuzz_header_t;

fuzz_header_t fuzz_header(uint32_t sector);

/*
 * What digests a snapshot ends with is not looked at: a change of the flash shall reach what is behind them.  Else a
 * restored state has the digest that its snapshot says.
 */
extern int fuzz_any_digest;

/* Just after a start: the state is that of a snapshot whose parts are all there with right checksums, byte by byte. */
void fuzz_check_restored(void);

#endif
