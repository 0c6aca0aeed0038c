/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_app.h"

#include "scl_integrity.h"
#include "scl_journal.h"
#include "scl_port.h"
#include "scl_protocol.h"

/* The stack bound knows these by how their names begin (platforms/common/stack_bound.py). */

static int32_t port_read(void *context, uint32_t address, void *data, uint32_t size) {
  (void)context;
  return scl_port_flash_read(address, data, size);
}

static int32_t port_program(void *context, uint32_t address, const void *data, uint32_t size) {
  (void)context;
  return scl_port_flash_program(address, data, size);
}

static int32_t port_erase(void *context, uint32_t address) {
  (void)context;
  return scl_port_flash_erase(address);
}

static uint32_t port_ticks(void *context) {
  (void)context;
  return scl_port_ticks();
}

static void port_feed(void *context) {
  (void)context;
  scl_port_watchdog_feed();
}

static int port_check(void *context, sparcl_event_t event) {
  (void)context;
  switch (event) {
    case SPARCL_BEFORE_SAVE:
      return scl_integrity_check_state();
    case SPARCL_EACH_STEP:
      return scl_integrity_step();
    case SPARCL_BEFORE_MASKS:
      return scl_integrity_check_masks();
    default:
      scl_integrity_masks_changed();
      return SCL_OK;
  }
}

const sparcl_port_t scl_app_port = {NULL, port_read, port_program, port_erase, port_ticks, port_feed, port_check};

int scl_app_main(void) {
  scl_port_init();
  scl_port_watchdog_feed();
  if (sparcl_start(&scl_app_port) == SPARCL_ERR_SELF_TEST) {
    scl_health.health |= SCL_HEALTH_SELF_TEST;
  }
  scl_integrity_start();
  scl_protocol_init(scl_journal.snapshot != 0);
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
