/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arm MPS3 with FPGA image AN547: Cortex-M55 at 32 MHz, Corstone SSE-300.  The
 * core starts in Secure state, so every address is the Secure alias of its
 * region (Application Note AN547, "Memory map").
 *
 * The board has no flash that a program can write under QEMU: a part of the
 * internal SRAM is used like NOR flash.  The emulator keeps it in a file; on
 * the real board it is lost with the power.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "cortexm/cortexm.h"
#include "scl_board.h"
#include "scl_port.h"
#include "scl_reg.h"

/* UART0, Cortex-M System Design Kit TRM (DDI 0479) "APB UART"; clocked with 25 MHz */
#define UART_DATA 0x59303000U
#define UART_STATE 0x59303004U
#define UART_CTRL 0x59303008U
#define UART_BAUDDIV 0x59303010U
#define STATE_TX_FULL 0x1U
#define STATE_RX_FULL 0x2U
#define CTRL_TX_RX_ENABLE 0x3U
#define BAUDDIV_115200 217U

/* Control frame of the System Counter, SSE-123 TRM (101370) "System counter":
 * 64 bits at the core's 32 MHz, of which the lower half is asked for. */
#define COUNTER_CNTCR 0x58100000U
#define COUNTER_CNTCV_LOW 0x58100008U
#define CNTCR_ENABLE 0x1U

/* Watchdog on the 32.768 kHz clock, DDI 0479 "APB watchdog": at 0 the non-maskable interrupt, at the next 0 a reset */
#define WDOG_LOAD 0x5802E000U
#define WDOG_CONTROL 0x5802E008U
#define WDOG_INTCLR 0x5802E00CU
#define WDOG_INTERRUPT_RESET_ENABLE 0x3U
#define WDOG_TICKS (SCL_WATCHDOG_MS * 32768U / 1000U / 2U)

/* A poll takes about 10 cycles at 32 MHz: 40 ms; under QEMU 20 ms, which a busy
 * host needs between two bytes of a frame. */
#define READ_POLLS 128000U

enum { ERROR_RANGE = -1, ERROR_VERIFY = -3 };

static bool byte_since_ticks;
static bool watchdog_runs;

/* Half the period without a feed; the second half ends with the reset. */
void scl_cortexm_nmi(void) { scl_cortexm_mark_watchdog(true); }

void scl_port_watchdog_feed(void) {
  scl_cortexm_mark_watchdog(false);
  if (!watchdog_runs) {
    watchdog_runs = true;
    SCL_REG32(WDOG_LOAD) = WDOG_TICKS;
    SCL_REG32(WDOG_CONTROL) = WDOG_INTERRUPT_RESET_ENABLE;
  }
  SCL_REG32(WDOG_INTCLR) = 1; /* loads the counter again */
}

void scl_port_init(void) {
  SCL_REG32(UART_BAUDDIV) = BAUDDIV_115200;
  SCL_REG32(UART_CTRL) = CTRL_TX_RX_ENABLE;
  SCL_REG32(COUNTER_CNTCR) = CNTCR_ENABLE;
}

uint32_t scl_port_ticks(void) {
  if (byte_since_ticks) { /* see scl_port.h; a stopped counter keeps its value */
    byte_since_ticks = false;
    SCL_REG32(COUNTER_CNTCR) = 0;
    SCL_REG32(COUNTER_CNTCR) = CNTCR_ENABLE;
  }
  return SCL_REG32(COUNTER_CNTCV_LOW);
}

int32_t scl_port_read_byte(void) {
  for (uint32_t i = 0; i < READ_POLLS; ++i) {
    if (SCL_REG32(UART_STATE) & STATE_RX_FULL) {
      byte_since_ticks = true;
      return (int32_t)(SCL_REG32(UART_DATA) & 0xFFU);
    }
  }
  return -1;
}

void scl_port_write(const uint8_t *data, uint32_t size) {
  for (uint32_t i = 0; i < size; ++i) {
    while (SCL_REG32(UART_STATE) & STATE_TX_FULL) {
    }
    SCL_REG32(UART_DATA) = data[i];
  }
}

static bool outside(uint32_t address, uint32_t size) {
  return address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address;
}

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  if (outside(address, size)) {
    return ERROR_RANGE;
  }
  memcpy(data, (const uint8_t *)(uintptr_t)(SCL_FLASH_MAPPED_BASE + address), size);
  return 0;
}

/* As NOR flash does it: bits are only cleared, and what was not erased shows. */
int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  if (outside(address, size) || (address | size) % SCL_FLASH_PROGRAM_UNIT != 0U) {
    return ERROR_RANGE;
  }
  int32_t error = 0;
  for (uint32_t i = 0; i < size; i += SCL_FLASH_PROGRAM_UNIT) {
    uint32_t word;
    memcpy(&word, data + i, sizeof word);
    volatile uint32_t *cell = &SCL_REG32(SCL_FLASH_MAPPED_BASE + address + i);
    *cell &= word;
    if (*cell != word) {
      error = ERROR_VERIFY;
    }
  }
  return error;
}

int32_t scl_port_flash_erase(uint32_t address) {
  if (outside(address, SCL_FLASH_SECTOR) || address % SCL_FLASH_SECTOR != 0U) {
    return ERROR_RANGE;
  }
  for (uint32_t i = 0; i < SCL_FLASH_SECTOR; i += 4U) {
    SCL_REG32(SCL_FLASH_MAPPED_BASE + address + i) = 0xFFFFFFFFU;
  }
  return 0;
}

scl_reset_reason_t scl_port_reset_reason(void) { return scl_cortexm_reset_reason(); }
