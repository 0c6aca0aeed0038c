/* SPDX-License-Identifier: Apache-2.0 */
/* The serial firmware, an application of the engine (sparcl.h) that serves the line.  docs/spec/protocol.md. */
#ifndef SCL_APP_H
#define SCL_APP_H

#include "sparcl.h"

/* Starts the engine with the board's functions, then serves the line; does not return.  A board's start-up calls it. */
int scl_app_main(void);

/* What the engine gets: the board's flash, clock and watchdog (scl_port.h), and the checks of scl_integrity.h. */
extern const sparcl_port_t scl_app_port;

#endif
