/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program around the engine: its port and hooks (sparcl.h), called the way the engine's modules call each other.
 * What a host leaves out does nothing.
 */
#ifndef SCL_HOST_H
#define SCL_HOST_H

#include "scl_types.h"
#include "sparcl.h"

/* Before anything else; hooks: NULL for none. */
void scl_host_connect(const sparcl_port_t *port, const sparcl_hooks_t *hooks);

/* Flash: 0, or a negative number. */
int32_t scl_host_read(uint32_t address, void *data, uint32_t size);
int32_t scl_host_program(uint32_t address, const void *data, uint32_t size);
int32_t scl_host_erase(uint32_t address);

uint32_t scl_host_ticks(void);
void scl_host_feed_watchdog(void);

/* Checks of the host; SCL_ERR_DAMAGED where it found a flipped bit. */
scl_status_t scl_host_before_save(void);
scl_status_t scl_host_each_step(void);
scl_status_t scl_host_before_masks(void);
void scl_host_masks_changed(void);

#endif
