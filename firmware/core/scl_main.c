/* SPDX-License-Identifier: Apache-2.0 */
/* Start-up and main loop: restore the learner, then serve the line. */
#include "scl_port.h"
#include "scl_protocol.h"
#include "scl_state.h"
#include "scl_store.h"

int main(void) {
  int restored = 0;
  scl_port_init();
  scl_state_reset();
  if (scl_store_mount(&restored) != SCL_OK) {
    scl_state_reset(); /* a snapshot that cannot be read leaves the initial model */
  }
  scl_protocol_init(restored);
  for (;;) {
    const int32_t byte = scl_port_read_byte();
    if (byte >= 0) {
      scl_protocol_take((uint8_t)byte);
    }
  }
}
