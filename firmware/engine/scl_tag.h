/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tags of what lies in flash, where the firmware was generated with a shared key: a MAC over its kind, its number or id
 * and its bytes, with a key of the journal's own.  docs/spec/flash-format.md "Tags".
 *
 * 8 bytes, as in a seal: whoever has no key has to try, each try takes a mount or a draw of the board's, and one in 2^64
 * succeeds.  Equal contents have equal tags, which harms nothing: there is no nonce to be used twice.
 */
#ifndef SCL_TAG_H
#define SCL_TAG_H

#include "scl_types.h"

#define SCL_TAG_BYTES (SCL_KEYED ? 8u : 0u)

/* What a tag covers; a record of one kind is never taken for one of another. */
typedef enum { SCL_TAG_SAMPLE = 1, SCL_TAG_LOGITS = 2, SCL_TAG_SNAPSHOT = 3 } scl_tag_kind_t;

#if SCL_KEYED
#include "scl_blake2s.h"

/* What is added from here on, up to scl_blake2s_end, which gives the tag. */
void scl_tag_begin(scl_blake2s_t *s, scl_tag_kind_t kind);

/* Tag of a record: over the first 8 bytes of its head, and its body. */
void scl_tag_record(scl_tag_kind_t kind, const uint8_t *head, const void *body, uint32_t size, uint8_t *tag);
int scl_tag_is_of_record(scl_tag_kind_t kind, const uint8_t *head, const void *body, uint32_t size, const uint8_t *tag);
#endif

#endif
