/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Polled 16550 with its registers 4 bytes apart (National PC16550D data sheet,
 * section 8).  The baud rate and the pin functions stay as the chip's boot
 * loader set them.
 */
#ifndef SCL_UART_16550_H
#define SCL_UART_16550_H

#include <stdint.h>

#include "scl_reg.h"

#define UART_16550_DATA 0x00U /* receive buffer and transmit holding register */
#define UART_16550_FCR 0x08U
#define UART_16550_LCR 0x0CU
#define UART_16550_LSR 0x14U

/* Trigger level 14 although no interrupt is used: QEMU hands over that many
 * bytes at once, seven times faster than at level 1. */
#define UART_16550_FCR_ENABLE_CLEAR_LEVEL_14 0xC7U
#define UART_16550_LCR_8N1 0x03U
#define UART_16550_LSR_DATA_READY 0x01U
#define UART_16550_LSR_THR_EMPTY 0x20U

static inline void uart_16550_init(uint32_t base)
{
  SCL_REG32(base + UART_16550_LCR) = UART_16550_LCR_8N1;
  SCL_REG32(base + UART_16550_FCR) = UART_16550_FCR_ENABLE_CLEAR_LEVEL_14;
}

/* The byte, or -1 after `polls` looks at an empty receiver. */
static inline int32_t uart_16550_read(uint32_t base, uint32_t polls)
{
  for (uint32_t i = 0; i < polls; ++i) {
    if (SCL_REG32(base + UART_16550_LSR) & UART_16550_LSR_DATA_READY) {
      return (int32_t)(SCL_REG32(base + UART_16550_DATA) & 0xFFU);
    }
  }
  return -1;
}

static inline void uart_16550_write(uint32_t base, const uint8_t *data, uint32_t size)
{
  for (uint32_t i = 0; i < size; ++i) {
    while (!(SCL_REG32(base + UART_16550_LSR) & UART_16550_LSR_THR_EMPTY)) {
    }
    SCL_REG32(base + UART_16550_DATA) = data[i];
  }
}

#endif
