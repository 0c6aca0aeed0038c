/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_host.h"

static const sparcl_port_t *port;

void scl_host_connect(const sparcl_port_t *its_port) { port = its_port; }

int32_t scl_host_read(uint32_t address, void *data, uint32_t size) {
  return port->read(port->context, address, data, size);
}

int32_t scl_host_program(uint32_t address, const void *data, uint32_t size) {
  return port->program(port->context, address, data, size);
}

int32_t scl_host_erase(uint32_t address) { return port->erase(port->context, address); }

uint32_t scl_host_ticks(void) { return port->ticks != NULL ? port->ticks(port->context) : 0u; }

void scl_host_feed_watchdog(void) {
  if (port->feed_watchdog != NULL) {
    port->feed_watchdog(port->context);
  }
}

scl_status_t scl_host_check(sparcl_event_t event) {
  return port->check != NULL ? (scl_status_t)port->check(port->context, event) : SCL_OK;
}
