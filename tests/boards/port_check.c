/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firmware that puts every function of scl_port.h at the host's disposal; see
 * test_ports.py for the other side.  Numbers are little-endian.
 *
 *   I nonce           'i' nonce reason stack_used(4)
 *   E n(2) bytes      the n bytes
 *   e address(4)      result(4)
 *   p address(4) n(2) bytes   result(4)
 *   r address(4) n(2)         result(4) bytes
 *   t n(4)            ticks(4) result(4) of n rounds of a fixed integer loop
 *   k word(4)         keeps a word; 'K' gives it back
 *   W nonce           feeds the watchdog, once, and echoes the nonce; 'w' feeds until a byte comes, which it echoes
 *   H                 hangs
 *   R                 restarts; so does 'F', by an undefined instruction (Cortex-M)
 *
 * At start it sends '!'.
 */
#include <stdint.h>

#include "scl_app.h"
#include "scl_board.h"
#include "scl_hot.h"
#include "scl_port.h"

static uint8_t buffer[1024];
static uint32_t constant = 0x12345678U; /* in .data: shows that it is initialised */

static uint32_t get(uint32_t size) {
  uint32_t value = 0;
  for (uint32_t i = 0; i < size; ++i) {
    int32_t byte;
    do {
      byte = scl_port_read_byte();
    } while (byte < 0);
    value |= (uint32_t)byte << (8U * i);
  }
  return value;
}

static void get_bytes(uint32_t size) {
  for (uint32_t i = 0; i < size; ++i) {
    buffer[i % sizeof buffer] = (uint8_t)get(1);
  }
}

static void put(uint32_t value) {
  const uint8_t bytes[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24)};
  scl_port_write(bytes, sizeof bytes);
}

static void info(void) {
  const uint8_t head[3] = {'i', (uint8_t)get(1), (uint8_t)scl_port_reset_reason()};
  scl_port_write(head, sizeof head);
  put(scl_port_stack_used());
}

static void echo(void) {
  const uint32_t size = get(2);
  get_bytes(size);
  scl_port_write(buffer, size);
}

static void program(void) {
  const uint32_t address = get(4), size = get(2);
  get_bytes(size);
  put((uint32_t)scl_port_flash_program(address, buffer, size));
}

static void read(void) {
  const uint32_t address = get(4), size = get(2);
  put((uint32_t)scl_port_flash_read(address, buffer, size));
  scl_port_write(buffer, size);
}

void measure(void);

__attribute__((noinline)) SCL_HOT void measure(void) {
  uint32_t rounds = get(4), state = constant;
  const uint32_t begin = scl_port_ticks();
  for (; rounds > 0; --rounds) { /* xorshift32 */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
  }
  const uint32_t end = scl_port_ticks();
  put(end - begin);
  put(state);
}

static void feed(void) {
  const uint8_t nonce = (uint8_t)get(1);
  scl_port_watchdog_feed();
  scl_port_write(&nonce, 1);
}

static void feed_on(void) {
  int32_t byte;
  do {
    scl_port_watchdog_feed();
    byte = scl_port_read_byte();
  } while (byte < 0);
  const uint8_t echo = (uint8_t)byte;
  scl_port_write(&echo, 1);
}

static volatile uint32_t for_ever = 1;

static void hang(void) {
  while (for_ever != 0U) {
  }
}

int scl_app_main(void) {
  scl_port_init();
  const uint8_t hello = '!';
  scl_port_write(&hello, 1);
  for (;;) {
    switch (get(1)) {
      case 'I':
        info();
        break;
      case 'E':
        echo();
        break;
      case 'e':
        put((uint32_t)scl_port_flash_erase(get(4)));
        break;
      case 'p':
        program();
        break;
      case 'r':
        read();
        break;
      case 't':
        measure();
        break;
      case 'k':
        scl_port_keep(get(4));
        break;
      case 'K':
        put(scl_port_kept());
        break;
      case 'W':
        feed();
        break;
      case 'w':
        feed_on();
        break;
      case 'H':
        hang();
        break;
      case 'R':
        scl_port_restart();
        break;
#if SCL_HAS_FAULTS
      case 'F':
        __asm volatile("udf #0");
        break;
#endif
      default:
        break;
    }
  }
}
