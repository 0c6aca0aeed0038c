/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ASPEED AST1030 evaluation board: Cortex-M4F at 200 MHz, code and data in one
 * SRAM.  Register names are those of the AST1030 data sheet's chapters
 * "UART" and "Firmware SPI Memory Controller (FMC)".
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "cortexm/cortexm.h"
#include "scl_board.h"
#include "scl_port.h"
#include "scl_reg.h"
#include "spi_nor.h"
#include "uart_16550.h"

#define UART5 0x7E784000U
#define UART5_INTERRUPT 8U

#define FMC_CONFIG 0x7E620000U /* FMC00 */
#define FMC_CE0_CONTROL 0x7E620010U /* FMC10 */
#define FMC_CE0_WINDOW 0x80000000U
#define CONFIG_CE0_WRITABLE 0x00010000U
#define CONTROL_USER_MODE 0x3U   /* bus under program control, chip selected */
#define CONTROL_CE_INACTIVE 0x4U /* with user mode: chip deselected */

/* SysTick, Armv7-M ARM B3.3: 24 bits, counts down */
#define SYST_CSR 0xE000E010U
#define SYST_RVR 0xE000E014U
#define SYST_CVR 0xE000E018U
#define SYST_ENABLE_INTERRUPT_CORE_CLOCK 0x7U
#define SYST_BITS 24U
#define SYST_MAX 0x00FFFFFFU

/* "Watchdog Timer" 1: counts down with 1 MHz and resets the chip at 0 */
#define WDT_RELOAD 0x7E785004U
#define WDT_RESTART 0x7E785008U
#define WDT_CONTROL 0x7E78500CU
#define WDT_RESTART_KEY 0x4755U
#define WDT_ENABLE_RESET 0x3U
#define WDT_TICKS_PER_MS 1000U

/* Wraps of SysTick, half the watchdog's period, after which a reset is taken for its own. */
#define WRAPS_UNFED (SCL_WATCHDOG_MS * 200U / (SYST_MAX / 1000U) / 2U)

/* A poll takes about 10 cycles of the 200 MHz core: about 20 ms. */
#define READ_POLLS 400000U

/* SST25VF032B: 20h erases 4 KiB.  Its status register has no error bits. */
static const scl_spi_nor_t flash = {.erase_opcode = 0x20, .error_bits = 0};

static uint32_t ticks_before_restart;
static bool byte_since_ticks;
static volatile uint32_t systick_wraps;
static volatile uint32_t unfed_wraps;
static bool watchdog_runs;

void scl_cortexm_systick(void) {
  systick_wraps = systick_wraps + 1U;
  unfed_wraps = unfed_wraps + 1U;
  if (watchdog_runs && unfed_wraps == WRAPS_UNFED) {
    scl_cortexm_mark_watchdog(true);
  }
}

void scl_port_watchdog_feed(void) {
  unfed_wraps = 0;
  scl_cortexm_mark_watchdog(false);
  if (!watchdog_runs) {
    watchdog_runs = true;
    SCL_REG32(WDT_RELOAD) = SCL_WATCHDOG_MS * WDT_TICKS_PER_MS;
    SCL_REG32(WDT_RESTART) = WDT_RESTART_KEY;
    SCL_REG32(WDT_CONTROL) = WDT_ENABLE_RESET;
  }
  SCL_REG32(WDT_RESTART) = WDT_RESTART_KEY;
}

void scl_cortexm_interrupt(void) { uart_16550_interrupt(UART5); }

void scl_port_init(void) {
  uart_16550_init(UART5, UART5_INTERRUPT);

  SCL_REG32(SYST_RVR) = SYST_MAX;
  SCL_REG32(SYST_CVR) = 0;
  SCL_REG32(SYST_CSR) = SYST_ENABLE_INTERRUPT_CORE_CLOCK;
  while (SCL_REG32(SYST_CVR) == 0U) { /* reloads at the first tick */
  }

  SCL_REG32(FMC_CONFIG) |= CONFIG_CE0_WRITABLE;
  (void)scl_spi_nor_unlock(&flash); /* SST25 powers up write-protected */
}

/* Again when the counter wrapped between the reads. */
static uint32_t read_timer(void) {
  uint32_t wraps, elapsed;
  do {
    wraps = systick_wraps;
    elapsed = SYST_MAX - SCL_REG32(SYST_CVR);
  } while (wraps != systick_wraps);
  return ticks_before_restart + (wraps << SYST_BITS) + elapsed;
}

uint32_t scl_port_ticks(void) {
  if (byte_since_ticks) { /* see scl_port.h */
    byte_since_ticks = false;
    ticks_before_restart = read_timer();
    SCL_REG32(SYST_CVR) = 0;
    systick_wraps = 0;
    while (SCL_REG32(SYST_CVR) == 0U) { /* reloads at the first tick */
    }
  }
  return read_timer();
}

int32_t scl_port_read_byte(void) {
  const int32_t byte = uart_16550_read(UART5, READ_POLLS);
  byte_since_ticks = byte_since_ticks || byte >= 0;
  return byte;
}

void scl_port_write(const uint8_t *data, uint32_t size) { uart_16550_write(UART5, data, size); }

void scl_spi_begin(uint32_t total) {
  (void)total;
  SCL_REG32(FMC_CE0_CONTROL) = CONTROL_USER_MODE | CONTROL_CE_INACTIVE;
  SCL_REG32(FMC_CE0_CONTROL) = CONTROL_USER_MODE;
}

void scl_spi_end(void) { SCL_REG32(FMC_CE0_CONTROL) = CONTROL_USER_MODE | CONTROL_CE_INACTIVE; }

/*
 * In user mode an access of 4 bytes to the window moves 4 bytes, lowest first: a quarter of the bus
 * accesses.  Word by word, not by a load of many registers: one that an interrupt cuts short may be
 * done again from its beginning, and what it had read is gone.
 */
static inline void send_word(const uint8_t *data) {
  uint32_t word;
  memcpy(&word, data, sizeof word);
  SCL_REG32(FMC_CE0_WINDOW) = word;
}

static inline void receive_word(uint8_t *data) {
  const uint32_t word = SCL_REG32(FMC_CE0_WINDOW);
  memcpy(data, &word, sizeof word);
}

#define BURST 32U /* bytes moved without a look at how many are left */

void scl_spi_write(const uint8_t *data, uint32_t size) {
  for (; size >= BURST; size -= BURST, data += BURST) {
#pragma GCC unroll 8
    for (uint32_t i = 0; i < BURST; i += 4U) {
      send_word(data + i);
    }
  }
  for (; size >= 4U; size -= 4U, data += 4) {
    send_word(data);
  }
  for (; size > 0U; --size) {
    SCL_REG8(FMC_CE0_WINDOW) = *data++;
  }
}

void scl_spi_read(uint8_t *data, uint32_t size) {
  for (; size >= BURST; size -= BURST, data += BURST) {
#pragma GCC unroll 8
    for (uint32_t i = 0; i < BURST; i += 4U) {
      receive_word(data + i);
    }
  }
  for (; size >= 4U; size -= 4U, data += 4) {
    receive_word(data);
  }
  for (; size > 0U; --size) {
    *data++ = SCL_REG8(FMC_CE0_WINDOW);
  }
}

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  return scl_spi_nor_read(address, data, size);
}

int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  return scl_spi_nor_program(&flash, address, data, size);
}

int32_t scl_port_flash_erase(uint32_t address) { return scl_spi_nor_erase(&flash, address); }

scl_reset_reason_t scl_port_reset_reason(void) { return scl_cortexm_reset_reason(); }
