/* SPDX-License-Identifier: Apache-2.0 */
/* Start-up and main loop: restore the learner, then serve the line. */
#include "scl_port.h"
#include "scl_protocol.h"
#include "scl_store.h"

int main(void) {
  scl_port_init();
  scl_protocol_init(scl_store_recover());
  for (;;) {
    const int32_t byte = scl_port_read_byte();
    if (byte >= 0) {
      scl_protocol_take((uint8_t)byte);
    }
  }
}
