/* SPDX-License-Identifier: Apache-2.0 */
/* What startup.c offers to the Cortex-M ports. */
#ifndef SCL_CORTEXM_H
#define SCL_CORTEXM_H

#include <stdbool.h>

#include "scl_port.h"

/*
 * Why the core started, concluded from two words of RAM that start-up does not
 * clear: they hold a mark while the firmware runs and another one while it
 * restarts itself.  RAM without either mark has lost its power.  A supply dip
 * too short to lose RAM therefore counts as SCL_RESET_PIN.  Ports whose chip
 * has a reset-reason register ask that first.
 */
scl_reset_reason_t scl_cortexm_reset_reason(void);

/*
 * The vector table's SysTick entry.  Does nothing unless a port defines it
 * (startup.c has the weak default).
 */
void scl_cortexm_systick(void);

/* Entry of the external interrupts 0 to 15, of which a port enables one. */
void scl_cortexm_interrupt(void);

/*
 * Whether the next reset will be the watchdog's: for a port to call where it
 * learns that the engine does not feed it any more, and when it does.
 */
void scl_cortexm_mark_watchdog(bool due);

/* The watchdog's reset, where SysTick is the watchdog; does not return. */
void scl_cortexm_restart_hung(void);

/* The non-maskable interrupt; the weak default takes it for a fault. */
void scl_cortexm_nmi(void);

#endif
