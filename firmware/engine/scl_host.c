/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_host.h"

static const sparcl_hooks_t no_hooks;
static const sparcl_port_t *port;
static const sparcl_hooks_t *hooks = &no_hooks;

void scl_host_connect(const sparcl_port_t *its_port, const sparcl_hooks_t *its_hooks) {
  port = its_port;
  hooks = its_hooks != NULL ? its_hooks : &no_hooks;
}

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

static scl_status_t check(int (*hook)(void)) { return hook != NULL ? (scl_status_t)hook() : SCL_OK; }

scl_status_t scl_host_before_save(void) { return check(hooks->before_save); }

scl_status_t scl_host_each_step(void) { return check(hooks->each_step); }

scl_status_t scl_host_before_masks(void) { return check(hooks->before_masks); }

void scl_host_masks_changed(void) {
  if (hooks->masks_changed != NULL) {
    hooks->masks_changed();
  }
}
