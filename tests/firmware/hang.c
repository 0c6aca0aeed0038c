/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine that hangs: for ever in the SCL_HANG_AT-th offer (environment) to
 * the replay buffer, unless the watchdog has reset the board before.  Linked
 * with --wrap=scl_replay_offer.
 */
#include <stdlib.h>

#include "scl_port.h"
#include "scl_replay.h"

scl_status_t __real_scl_replay_offer(const scl_sample_t *sample, scl_address_t address, const int16_t *logits);
scl_status_t __wrap_scl_replay_offer(const scl_sample_t *sample, scl_address_t address, const int16_t *logits);

scl_status_t __wrap_scl_replay_offer(const scl_sample_t *sample, scl_address_t address, const int16_t *logits) {
  static unsigned long offers;
  static volatile int for_ever = 1;
  const char *at = getenv("SCL_HANG_AT");
  if (at != NULL && ++offers == strtoul(at, NULL, 10) && scl_port_reset_reason() != SCL_RESET_WATCHDOG) {
    while (for_ever) {
    }
  }
  return __real_scl_replay_offer(sample, address, logits);
}
