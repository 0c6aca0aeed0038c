/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BBC micro:bit v1: nRF51822, Cortex-M0.  Section numbers are those of the
 * nRF51 Series Reference Manual 3.0.
 */
#include <stdbool.h>
#include <stdint.h>

#include "cortexm/cortexm.h"
#include "scl_board.h"
#include "scl_port.h"
#include "scl_reg.h"

/* POWER and CLOCK, sections 12 and 13 */
#define POWER_RESETREAS 0x40000400U
#define RESETREAS_PIN 0x1U
#define RESETREAS_WATCHDOG 0x2U
#define RESETREAS_SOFTWARE 0x4U
#define CLOCK_HFCLKSTART 0x40000000U
#define CLOCK_HFCLKSTARTED 0x40000100U

/* GPIO, section 14; the interface chip's serial line is on P0.24 and P0.25 */
#define GPIO_OUTSET 0x50000508U
#define GPIO_PIN_CNF(pin) (0x50000700U + 4U * (pin))
#define PIN_CNF_OUTPUT 0x3U
#define PIN_CNF_INPUT 0x0U
#define PIN_TX 24U
#define PIN_RX 25U

/* UART, section 29 */
#define UART_STARTRX 0x40002000U
#define UART_STARTTX 0x40002008U
#define UART_RXDRDY 0x40002108U
#define UART_TXDRDY 0x4000211CU
#define UART_ENABLE 0x40002500U
#define UART_PSELTXD 0x4000250CU
#define UART_PSELRXD 0x40002514U
#define UART_RXD 0x40002518U
#define UART_TXD 0x4000251CU
#define UART_BAUDRATE 0x40002524U
#define UART_ENABLE_ON 4U
#define UART_BAUD_115200 0x01D7E000U

/* TIMER0, section 19: 16 MHz at prescaler 0 */
#define TIMER_START 0x40008000U
#define TIMER_STOP 0x40008004U
#define TIMER_CLEAR 0x4000800CU
#define TIMER_CAPTURE0 0x40008040U
#define TIMER_BITMODE 0x40008508U
#define TIMER_PRESCALER 0x40008510U
#define TIMER_CC0 0x40008540U
#define TIMER_BITMODE_32 3U

/* WDT, section 24: 32768 Hz; once started only a reset stops it */
#define WDT_START 0x40010000U
#define WDT_CRV 0x40010504U
#define WDT_RREN 0x40010508U
#define WDT_CONFIG 0x4001050CU
#define WDT_RR0 0x40010600U
#define WDT_RELOAD_KEY 0x6E524635U
#define WDT_RR0_ENABLE 1U
#define WDT_RUN_IN_SLEEP 1U /* and not while a debugger holds the core */
#define WDT_TICKS (SCL_WATCHDOG_MS * 4096U / 125U - 1U)

/* NVMC, section 6 */
#define NVMC_READY 0x4001E400U
#define NVMC_CONFIG 0x4001E504U
#define NVMC_ERASEPAGE 0x4001E508U
#define NVMC_CONFIG_READ 0U
#define NVMC_CONFIG_WRITE 1U
#define NVMC_CONFIG_ERASE 2U

/* A poll takes about 10 cycles at 16 MHz, hence 80 ms; under QEMU 20 ms, which a
 * busy host needs between two bytes of a frame. */
#define READ_POLLS 128000U

enum { ERROR_RANGE = -1, ERROR_VERIFY = -3 };

static scl_reset_reason_t reset_reason;
static uint32_t ticks_before_restart;
static bool byte_since_ticks;
static bool watchdog_runs;

/*
 * RESETREAS (section 12.2.2) keeps its bits until 1 is written to them.  QEMU's
 * machine answers 1 to every read of this block, so only a register that can
 * be cleared is believed.
 */
static scl_reset_reason_t find_reset_reason(void) {
  const uint32_t bits = SCL_REG32(POWER_RESETREAS);
  SCL_REG32(POWER_RESETREAS) = bits;
  if (bits == 0U || SCL_REG32(POWER_RESETREAS) != 0U) {
    return scl_cortexm_reset_reason();
  }
  if (bits & RESETREAS_WATCHDOG) {
    return SCL_RESET_WATCHDOG;
  }
  if (bits & RESETREAS_SOFTWARE) {
    return SCL_RESET_SOFTWARE;
  }
  return (bits & RESETREAS_PIN) ? SCL_RESET_PIN : SCL_RESET_UNKNOWN;
}

void scl_port_watchdog_feed(void) {
  if (!watchdog_runs) {
    watchdog_runs = true;
    SCL_REG32(WDT_CONFIG) = WDT_RUN_IN_SLEEP;
    SCL_REG32(WDT_CRV) = WDT_TICKS;
    SCL_REG32(WDT_RREN) = WDT_RR0_ENABLE;
    SCL_REG32(WDT_START) = 1;
  }
  SCL_REG32(WDT_RR0) = WDT_RELOAD_KEY;
}

void scl_port_init(void) {
  reset_reason = find_reset_reason();

  /* The RC oscillator's 1 % is not enough for a serial line. */
  SCL_REG32(CLOCK_HFCLKSTARTED) = 0;
  SCL_REG32(CLOCK_HFCLKSTART) = 1;
  while (SCL_REG32(CLOCK_HFCLKSTARTED) == 0U) {
  }

  SCL_REG32(GPIO_OUTSET) = 1U << PIN_TX; /* idle level before it is an output */
  SCL_REG32(GPIO_PIN_CNF(PIN_TX)) = PIN_CNF_OUTPUT;
  SCL_REG32(GPIO_PIN_CNF(PIN_RX)) = PIN_CNF_INPUT;
  SCL_REG32(UART_PSELTXD) = PIN_TX;
  SCL_REG32(UART_PSELRXD) = PIN_RX;
  SCL_REG32(UART_BAUDRATE) = UART_BAUD_115200;
  SCL_REG32(UART_ENABLE) = UART_ENABLE_ON;
  SCL_REG32(UART_RXDRDY) = 0;
  SCL_REG32(UART_STARTRX) = 1;
  SCL_REG32(UART_STARTTX) = 1;

  SCL_REG32(TIMER_BITMODE) = TIMER_BITMODE_32;
  SCL_REG32(TIMER_PRESCALER) = 0;
  SCL_REG32(TIMER_CLEAR) = 1;
  SCL_REG32(TIMER_START) = 1;
}

static uint32_t read_timer(void) {
  SCL_REG32(TIMER_CAPTURE0) = 1;
  return ticks_before_restart + SCL_REG32(TIMER_CC0);
}

uint32_t scl_port_ticks(void) {
  if (byte_since_ticks) { /* see scl_port.h */
    byte_since_ticks = false;
    ticks_before_restart = read_timer();
    SCL_REG32(TIMER_STOP) = 1;
    SCL_REG32(TIMER_CLEAR) = 1;
    SCL_REG32(TIMER_START) = 1;
  }
  return read_timer();
}

int32_t scl_port_read_byte(void) {
  for (uint32_t i = 0; i < READ_POLLS; ++i) {
    if (SCL_REG32(UART_RXDRDY) != 0U) {
      /* Cleared before RXD is read (section 29.5): reading moves the next
       * byte of the FIFO up, which sets the event again. */
      SCL_REG32(UART_RXDRDY) = 0;
      const uint32_t byte = SCL_REG32(UART_RXD) & 0xFFU;
      byte_since_ticks = true;
      return (int32_t)byte;
    }
  }
  return -1;
}

void scl_port_write(const uint8_t *data, uint32_t size) {
  for (uint32_t i = 0; i < size; ++i) {
    SCL_REG32(UART_TXDRDY) = 0;
    SCL_REG32(UART_TXD) = data[i];
    while (SCL_REG32(UART_TXDRDY) == 0U) {
    }
  }
}

static void nvmc_set(uint32_t mode) {
  SCL_REG32(NVMC_CONFIG) = mode;
  while (!(SCL_REG32(NVMC_READY) & 1U)) {
  }
}

static int32_t outside(uint32_t address, uint32_t size) {
  return address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address;
}

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  if (outside(address, size)) {
    return ERROR_RANGE;
  }
  const volatile uint8_t *from = &SCL_REG8(SCL_FLASH_MAPPED_BASE + address);
  for (uint32_t i = 0; i < size; ++i) {
    data[i] = from[i];
  }
  return 0;
}

int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  if (outside(address, size) || (address | size) % SCL_FLASH_PROGRAM_UNIT != 0U) {
    return ERROR_RANGE;
  }
  int32_t error = 0;
  nvmc_set(NVMC_CONFIG_WRITE);
  for (uint32_t i = 0; i < size; i += 4U) {
    const uint32_t word =
        (uint32_t)data[i] | (uint32_t)data[i + 1U] << 8 | (uint32_t)data[i + 2U] << 16 | (uint32_t)data[i + 3U] << 24;
    volatile uint32_t *cell = &SCL_REG32(SCL_FLASH_MAPPED_BASE + address + i);
    *cell = word;
    while (!(SCL_REG32(NVMC_READY) & 1U)) {
    }
    if (*cell != word) { /* NVMC has no error bit; a cell that was not erased shows here */
      error = ERROR_VERIFY;
    }
  }
  nvmc_set(NVMC_CONFIG_READ);
  return error;
}

int32_t scl_port_flash_erase(uint32_t address) {
  if (outside(address, SCL_FLASH_SECTOR) || address % SCL_FLASH_SECTOR != 0U) {
    return ERROR_RANGE;
  }
  nvmc_set(NVMC_CONFIG_ERASE);
  SCL_REG32(NVMC_ERASEPAGE) = SCL_FLASH_MAPPED_BASE + address;
  while (!(SCL_REG32(NVMC_READY) & 1U)) {
  }
  nvmc_set(NVMC_CONFIG_READ);
  return 0;
}

scl_reset_reason_t scl_port_reset_reason(void) { return reset_reason; }
