/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scl_port.h: everything the serial firmware needs from a board.
 *
 * A port implements the functions below in firmware/boards/<name>/port.c and
 * states its facts (flash geometry, RAM, timer) in board.toml, from which the
 * generator renders scl_board.h.  Nothing else in firmware/app touches hardware,
 * and nothing in firmware/engine does (sparcl.h).  Start-up, or the main of a
 * program for the host, calls scl_app_main (scl_app.h).  No function may be called from an
 * interrupt.
 */
#ifndef SCL_PORT_H
#define SCL_PORT_H

#include <stdint.h>

/* Why the board started; reported to the host in the next hello. */
typedef enum {
  SCL_RESET_UNKNOWN = 0,
  SCL_RESET_POWER_ON = 1,
  SCL_RESET_PIN = 2,
  SCL_RESET_SOFTWARE = 3,
  SCL_RESET_WATCHDOG = 4
} scl_reset_reason_t;

/* Called once, before anything else: clocks, serial line, timer, flash. */
void scl_port_init(void);

/*
 * Serial line.  read_byte waits about 20 ms (bounded, never more than 100 ms)
 * and returns -1 when nothing came, so that the engine never hangs on a partial
 * frame; otherwise the byte (0..255).  write returns when all bytes are in the
 * transmitter.
 */
int32_t scl_port_read_byte(void);
void scl_port_write(const uint8_t *data, uint32_t size);

/*
 * Free-running up-counter, wraps at 2^32 ticks; its unit is board.toml's
 * [timer].  Reading it must cost a bounded, small number of instructions.
 *
 * The Cortex-M ports begin a new tick in the first call after a byte was read
 * from the serial line.  A region that is measured while a request is worked on
 * therefore begins at the same fraction of a tick each time, and under QEMU's
 * -icount its ticks are the same in every run (not the same +-1).
 */
uint32_t scl_port_ticks(void);

/*
 * The journal's flash partition; addresses count from its beginning.
 * All return 0, or a negative number when the flash reports an error.
 *   read     any address, any size
 *   program  address and size are multiples of SCL_FLASH_PROGRAM_UNIT, data is
 *            aligned to nothing; only ever on erased bytes, once; returns when the
 *            data is in the flash
 *   erase    the sector that begins at address; returns when it is done
 */
int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size);
int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);
int32_t scl_port_flash_erase(uint32_t address);

scl_reset_reason_t scl_port_reset_reason(void);

/* Restarts the board as after power-on; does not return. */
void scl_port_restart(void);

/* A word that survives every restart but power-on, which makes it 0. */
void scl_port_keep(uint32_t word);
uint32_t scl_port_kept(void);

/*
 * Starts the watchdog, then keeps it from resetting the board for another
 * period (board.toml [watchdog]).  The engine calls it before each pass through
 * the network and each flash operation, and while it waits for bytes; never
 * from an interrupt, which would keep running when the engine hangs.  A program that
 * never calls it is never reset.  After the reset scl_port_reset_reason tells.
 */
void scl_port_watchdog_feed(void);

/*
 * Code and constants, which nothing writes: the size in bytes and the beginning
 * of one of at most SCL_PORT_IMAGES ranges; size 0 for a range that does not
 * exist.  The engine compares them with what they were at start.
 */
#define SCL_PORT_IMAGES 2U
uint32_t scl_port_image(uint32_t range, const void **begin);

/*
 * Deepest stack so far, in bytes: start-up paints the stack and this looks for
 * the lowest word that changed (a search over at most SCL_STACK_BYTES).
 * 0 where it is not known (native: the host gives the process its stack).
 */
uint32_t scl_port_stack_used(void);

#endif
