/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 16550 with its registers 4 bytes apart (National PC16550D data sheet, section
 * 8).  An interrupt moves what is received to a ring, so that requests that come
 * while the board works or writes flash are not lost; sending is polled.  The
 * baud rate and the pin functions stay as the chip's boot loader set them.
 */
#ifndef SCL_UART_16550_H
#define SCL_UART_16550_H

#include <stdbool.h>
#include <stdint.h>

#include "scl_board.h"
#include "scl_reg.h"

#define UART_16550_DATA 0x00U /* receive buffer and transmit holding register */
#define UART_16550_IER 0x04U
#define UART_16550_FCR 0x08U
#define UART_16550_LCR 0x0CU
#define UART_16550_LSR 0x14U

/* An interrupt as soon as there is a byte, which takes all that there are: with a higher level
 * the end of each request would wait until the line has paused for four bytes. */
#define UART_16550_FCR_ENABLE_CLEAR_LEVEL_1 0x07U
#define UART_16550_IER_RECEIVED 0x01U
#define UART_16550_LCR_8N1 0x03U
#define UART_16550_LSR_DATA_READY 0x01U
#define UART_16550_LSR_THR_EMPTY 0x20U

/* Armv7-M ARM B3.4.4: a bit for each interrupt */
#define NVIC_ISER0 0xE000E100U

/* Room for the requests behind the one that is worked on: payload, header, checksum, framing; and a little more. */
#define UART_16550_RING ((SCL_WINDOW - 1U) * (SCL_LINE_PAYLOAD + SCL_LINE_PAYLOAD / 254U + 12U) + 16U)

static struct {
  volatile uint8_t bytes[UART_16550_RING];
  volatile uint32_t head; /* where the next received byte goes; only the interrupt writes it */
  volatile uint32_t tail; /* the next byte to read; only uart_16550_read writes it */
  volatile bool full;     /* the interrupt is off until a byte is read */
} uart_16550;

static inline uint32_t uart_16550_next(uint32_t at) { return at + 1U == UART_16550_RING ? 0U : at + 1U; }

/* The body of the port's interrupt handler. */
static inline void uart_16550_interrupt(uint32_t base) {
  while (SCL_REG32(base + UART_16550_LSR) & UART_16550_LSR_DATA_READY) {
    const uint32_t next = uart_16550_next(uart_16550.head);
    if (next == uart_16550.tail) { /* the chip's buffer and, if it has one, the line's flow control hold the rest */
      uart_16550.full = true;
      SCL_REG32(base + UART_16550_IER) = 0;
      return;
    }
    uart_16550.bytes[uart_16550.head] = (uint8_t)SCL_REG32(base + UART_16550_DATA);
    uart_16550.head = next;
  }
}

static inline void uart_16550_init(uint32_t base, uint32_t interrupt) {
  SCL_REG32(base + UART_16550_LCR) = UART_16550_LCR_8N1;
  SCL_REG32(base + UART_16550_FCR) = UART_16550_FCR_ENABLE_CLEAR_LEVEL_1;
  SCL_REG32(base + UART_16550_IER) = UART_16550_IER_RECEIVED;
  SCL_REG32(NVIC_ISER0) = 1U << interrupt;
}

/* The byte, or -1 after `polls` looks at an empty ring. */
static inline int32_t uart_16550_read(uint32_t base, uint32_t polls) {
  for (uint32_t i = 0; i < polls; ++i) {
    const uint32_t tail = uart_16550.tail;
    if (tail != uart_16550.head) {
      const uint8_t byte = uart_16550.bytes[tail];
      uart_16550.tail = uart_16550_next(tail);
      if (uart_16550.full) {
        uart_16550.full = false;
        SCL_REG32(base + UART_16550_IER) = UART_16550_IER_RECEIVED;
      }
      return (int32_t)byte;
    }
  }
  return -1;
}

static inline void uart_16550_write(uint32_t base, const uint8_t *data, uint32_t size) {
  for (uint32_t i = 0; i < size; ++i) {
    while (!(SCL_REG32(base + UART_16550_LSR) & UART_16550_LSR_THR_EMPTY)) {
    }
    SCL_REG32(base + UART_16550_DATA) = data[i];
  }
}

#endif
