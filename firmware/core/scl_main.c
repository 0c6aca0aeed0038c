/* SPDX-License-Identifier: Apache-2.0 */
/* Start-up and main loop: test the kernels, restore the learner, then serve the line. */
#include "scl_integrity.h"
#include "scl_port.h"
#include "scl_protocol.h"
#include "scl_state.h"
#include "scl_store.h"
#include "scl_train.h"

#ifdef SCL_BENCH_EVERY_INPUT
/* Benchmarks of kernels that draw other random numbers on purpose. */
static void test_kernels(void) {}
#else
static void test_kernels(void) {
  if (scl_train_golden() != scl_golden_digest) {
    scl_health.health |= SCL_HEALTH_SELF_TEST;
  }
}
#endif

int main(void) {
  scl_port_init();
  scl_port_watchdog_feed();
  scl_state_reset();
  test_kernels();
  const int restored = scl_store_recover();
  scl_integrity_start();
  scl_protocol_init(restored);
  for (uint8_t bytes = 0;; bytes++) {
    const int32_t byte = scl_port_read_byte();
    if (byte < 0 || bytes == 0) {
      scl_port_watchdog_feed();
    }
    if (byte >= 0) {
      scl_protocol_take((uint8_t)byte);
    } else if (scl_integrity_idle() != SCL_OK) {
      scl_integrity_restart();
    }
  }
}
