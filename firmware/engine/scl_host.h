/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program around the engine: its port (sparcl.h), called the way the engine's modules call each other.
 * What a host leaves out does nothing.
 */
#ifndef SCL_HOST_H
#define SCL_HOST_H

#include "scl_types.h"
#include "sparcl.h"

/* Before anything else. */
void scl_host_connect(const sparcl_port_t *port);

/* Flash: 0, or a negative number. */
int32_t scl_host_read(uint32_t address, void *data, uint32_t size);
int32_t scl_host_program(uint32_t address, const void *data, uint32_t size);
int32_t scl_host_erase(uint32_t address);

uint32_t scl_host_ticks(void);
void scl_host_feed_watchdog(void);

/* SCL_ERR_DAMAGED where the host found a flipped bit. */
scl_status_t scl_host_check(sparcl_event_t event);

#endif
