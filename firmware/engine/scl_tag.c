/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_tag.h"

#if SCL_KEYED
#include "scl_bytes.h"
#include "scl_key.h"

static const uint8_t key[] = SCL_JOURNAL_KEY;

void scl_tag_begin(scl_blake2s_t *s, scl_tag_kind_t kind) {
  const uint8_t first = (uint8_t)kind;
  scl_blake2s_begin(s, key, sizeof key, SCL_TAG_BYTES);
  scl_blake2s_add(s, &first, 1);
}

void scl_tag_record(scl_tag_kind_t kind, const uint8_t *head, const void *body, uint32_t size, uint8_t *tag) {
  scl_blake2s_t s;
  scl_tag_begin(&s, kind);
  scl_blake2s_add(&s, head, 8);
  scl_blake2s_add(&s, body, size);
  scl_blake2s_end(&s, tag);
}

int scl_tag_is_of_record(scl_tag_kind_t kind, const uint8_t *head, const void *body, uint32_t size,
                         const uint8_t *tag) {
  uint8_t right[SCL_TAG_BYTES];
  scl_tag_record(kind, head, body, size, right);
  return scl_equal(right, tag, sizeof right);
}
#endif
