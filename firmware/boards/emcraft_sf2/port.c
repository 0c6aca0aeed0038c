/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Emcraft SmartFusion2 SOM (M2S010), Cortex-M3.  Section names are those of
 * Microsemi UG0331, SmartFusion2 Microcontroller Subsystem.
 */
#include <stdbool.h>
#include <stdint.h>

#include "cortexm/cortexm.h"
#include "scl_board.h"
#include "scl_port.h"
#include "scl_reg.h"
#include "spi_nor.h"
#include "uart_16550.h"

#define MMUART0 0x40000000U
#define MMUART0_INTERRUPT 10U /* "Cortex-M3 Processor", table of interrupts */

/* "System Timer": timer 1, counts down */
#define TIM1_VAL 0x40004000U
#define TIM1_LOADVAL 0x40004004U
#define TIM1_CTRL 0x4000400CU
#define TIM_ENABLE 1U

/* "Serial Peripheral Interface Controller": MSS SPI 0 */
#define SPI_CONTROL 0x40001000U
#define SPI_DFSIZE 0x40001004U
#define SPI_STATUS 0x40001008U
#define SPI_RX 0x40001010U
#define SPI_TX 0x40001014U
#define CONTROL_ENABLE 0x00000001U
#define CONTROL_MASTER 0x00000002U
#define CONTROL_IDLE 0x00000102U      /* master, one frame, disabled: chip not selected */
#define CONTROL_KEEP_CS 0x04000000U   /* SPS: selected over all frames of a transfer */
#define CONTROL_BIG_FIFO 0x20000000U  /* 32 frames of 8 bits */
#define CONTROL_FRAMES_SHIFT 8U
#define STATUS_RX_FULL 0x00000010U
#define STATUS_RX_EMPTY 0x00000040U
#define FIFO_FRAMES 32U /* with CONTROL_BIG_FIFO, in each direction */

/*
 * "Watchdog Timer": its period and what it does are in the FPGA's flash bits, not in registers.  Where the design has it
 * off, SysTick (Armv7-M ARM B3.3, 24 bits) counts and restarts the chip.
 */
#define WDOG_REFRESH 0x4000500CU
#define WDOG_REFRESH_KEY 0xAC15DE42U
#define SYST_CSR 0xE000E010U
#define SYST_RVR 0xE000E014U
#define SYST_CVR 0xE000E018U
#define SYST_ENABLE_INTERRUPT_CORE_CLOCK 0x7U
#define CORE_KHZ 142000U
#define SYST_MS 100U
#define WRAPS_UNFED (SCL_WATCHDOG_MS / SYST_MS)

/* A poll takes about 10 cycles of the 142 MHz core: about 20 ms. */
#define READ_POLLS 284000U

/* S25FL128P: D8h erases 64 KiB.  Its status register has no error bits. */
static const scl_spi_nor_t flash = {.erase_opcode = 0xD8, .error_bits = 0};

static uint32_t ticks_before_restart;
static bool byte_since_ticks;
static bool watchdog_runs;
static volatile uint32_t unfed_wraps;

static void timer_start(void) {
  SCL_REG32(TIM1_CTRL) = 0;
  SCL_REG32(TIM1_LOADVAL) = UINT32_MAX;
  SCL_REG32(TIM1_CTRL) = TIM_ENABLE;
}

void scl_cortexm_systick(void) {
  unfed_wraps = unfed_wraps + 1U;
  if (unfed_wraps == WRAPS_UNFED) {
    scl_cortexm_restart_hung();
  }
}

void scl_port_watchdog_feed(void) {
  unfed_wraps = 0;
  SCL_REG32(WDOG_REFRESH) = WDOG_REFRESH_KEY;
  if (!watchdog_runs) {
    watchdog_runs = true;
    SCL_REG32(SYST_RVR) = CORE_KHZ * SYST_MS;
    SCL_REG32(SYST_CVR) = 0;
    SCL_REG32(SYST_CSR) = SYST_ENABLE_INTERRUPT_CORE_CLOCK;
  }
}

void scl_cortexm_interrupt(void) { uart_16550_interrupt(MMUART0); }

void scl_port_init(void) {
  uart_16550_init(MMUART0, MMUART0_INTERRUPT);
  timer_start();
  SCL_REG32(SPI_CONTROL) = CONTROL_IDLE;
  SCL_REG32(SPI_DFSIZE) = 8;
}

static uint32_t read_timer(void) { return ticks_before_restart + (UINT32_MAX - SCL_REG32(TIM1_VAL)); }

uint32_t scl_port_ticks(void) {
  if (byte_since_ticks) { /* see scl_port.h */
    byte_since_ticks = false;
    ticks_before_restart = read_timer();
    timer_start();
  }
  return read_timer();
}

int32_t scl_port_read_byte(void) {
  const int32_t byte = uart_16550_read(MMUART0, READ_POLLS);
  byte_since_ticks = byte_since_ticks || byte >= 0;
  return byte;
}

void scl_port_write(const uint8_t *data, uint32_t size) { uart_16550_write(MMUART0, data, size); }

void scl_spi_begin(uint32_t total) {
  SCL_REG32(SPI_CONTROL) =
      CONTROL_BIG_FIFO | CONTROL_KEEP_CS | CONTROL_MASTER | CONTROL_ENABLE | total << CONTROL_FRAMES_SHIFT;
}

void scl_spi_end(void) { SCL_REG32(SPI_CONTROL) = CONTROL_IDLE; }

/*
 * The controller clocks a frame in for each one it clocks out.  The FIFOs are empty between calls,
 * so a burst of as many frames as they hold is sent without a look at the status, and is in when
 * the receiving one is full.
 */
static inline void wait_for_full_burst(void) {
  while (!(SCL_REG32(SPI_STATUS) & STATUS_RX_FULL)) {
  }
}

static inline uint8_t next_received(void) {
  while (SCL_REG32(SPI_STATUS) & STATUS_RX_EMPTY) {
  }
  return (uint8_t)SCL_REG32(SPI_RX);
}

void scl_spi_write(const uint8_t *data, uint32_t size) {
  for (; size >= FIFO_FRAMES; size -= FIFO_FRAMES, data += FIFO_FRAMES) {
#pragma GCC unroll 32
    for (uint32_t i = 0; i < FIFO_FRAMES; ++i) {
      SCL_REG32(SPI_TX) = data[i];
    }
    wait_for_full_burst();
#pragma GCC unroll 32
    for (uint32_t i = 0; i < FIFO_FRAMES; ++i) {
      (void)SCL_REG32(SPI_RX);
    }
  }
  for (uint32_t i = 0; i < size; ++i) {
    SCL_REG32(SPI_TX) = data[i];
  }
  for (uint32_t i = 0; i < size; ++i) {
    (void)next_received();
  }
}

void scl_spi_read(uint8_t *data, uint32_t size) {
  for (; size >= FIFO_FRAMES; size -= FIFO_FRAMES, data += FIFO_FRAMES) {
#pragma GCC unroll 32
    for (uint32_t i = 0; i < FIFO_FRAMES; ++i) {
      SCL_REG32(SPI_TX) = 0;
    }
    wait_for_full_burst();
#pragma GCC unroll 32
    for (uint32_t i = 0; i < FIFO_FRAMES; ++i) {
      data[i] = (uint8_t)SCL_REG32(SPI_RX);
    }
  }
  for (uint32_t i = 0; i < size; ++i) {
    SCL_REG32(SPI_TX) = 0;
  }
  for (uint32_t i = 0; i < size; ++i) {
    data[i] = next_received();
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
