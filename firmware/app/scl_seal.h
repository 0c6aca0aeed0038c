/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tells a genuine request from a stray or a forged one: by the nonce of a start and, where the firmware was generated
 * with a key shared with the host, by a seal.  docs/spec/protocol.md "Nonce" and "Shared key".
 */
#ifndef SCL_SEAL_H
#define SCL_SEAL_H

#include "scl_types.h"

#define SCL_NONCE_BYTES 8u
#define SCL_SEAL_TAG 8u
#define SCL_SEAL_BYTES (SCL_KEYED ? 4u + SCL_SEAL_TAG : 0u)

/* Returns the present nonce; the first call after a start makes its number. */
void scl_seal_nonce(uint8_t *nonce);

/* Whether these 8 bytes are the present nonce; false until a host has asked for it. */
int scl_seal_is_nonce(const uint8_t *nonce);

/* Uses up the nonce: a request that needed it was executed. */
void scl_seal_use_nonce(void);

#if SCL_KEYED
/*
 * Checks the seal at the end of a request, frame[0 .. size-1] without its checksum.  SCL_OK, and the counter is used
 * up; SCL_ERR_NOT_SEALED; SCL_ERR_REPLAYED.
 */
scl_status_t scl_seal_check(const uint8_t *frame, uint32_t size, uint32_t *counter);

/* Notes that the request with this counter was executed. */
void scl_seal_use(uint32_t counter);

/* Appends a seal to frame[0 .. size-1], the reply to the request with this counter. */
void scl_seal_close(uint8_t *frame, uint32_t size, uint32_t counter);
#endif

#endif
