/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program around the engine: its port and hooks (sparcl.h), called the way the engine's modules call each other.
 * What a host leaves out does nothing.
 */
#ifndef SCL_HOST_H
#define SCL_HOST_H

#include "scl_types.h"
#include "sparcl.h"

extern const sparcl_port_t *scl_port;
extern const sparcl_hooks_t *scl_hooks;

/* Before anything else; hooks: NULL for none. */
void scl_host_connect(const sparcl_port_t *port, const sparcl_hooks_t *hooks);

static inline int32_t scl_host_read(uint32_t address, void *data, uint32_t size) {
  return scl_port->read(scl_port->context, address, data, size);
}

static inline int32_t scl_host_program(uint32_t address, const void *data, uint32_t size) {
  return scl_port->program(scl_port->context, address, data, size);
}

static inline int32_t scl_host_erase(uint32_t address) { return scl_port->erase(scl_port->context, address); }

static inline uint32_t scl_host_ticks(void) { return scl_port->ticks == NULL ? 0u : scl_port->ticks(scl_port->context); }

static inline void scl_host_feed_watchdog(void) {
  if (scl_port->feed_watchdog != NULL) {
    scl_port->feed_watchdog(scl_port->context);
  }
}

static inline scl_status_t scl_host_check(int (*hook)(void)) {
  return hook == NULL ? SCL_OK : (scl_status_t)hook();
}

static inline scl_status_t scl_host_before_save(void) { return scl_host_check(scl_hooks->before_save); }

static inline scl_status_t scl_host_each_step(void) { return scl_host_check(scl_hooks->each_step); }

static inline scl_status_t scl_host_before_masks(void) { return scl_host_check(scl_hooks->before_masks); }

static inline void scl_host_masks_changed(void) {
  if (scl_hooks->masks_changed != NULL) {
    scl_hooks->masks_changed();
  }
}

#endif
