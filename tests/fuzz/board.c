/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* MAP_FIXED_NOREPLACE */
#include "board.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef SCL_COVERAGE
#include <gcov.h>
#endif

#include "edge.h"
#include "scl_app.h"
#include "scl_port.h"
#include "scl_protocol.h"
#include "scl_state.h"

/* More operations than any request takes: mount, the most costly, looks at all sectors for each snapshot. */
#define MOST_WRITES (64u * (SCL_FLASH_SIZE / 64u))
#define MOST_READS (64u * SCL_SECTORS * SCL_SECTORS + 64u * (SCL_FLASH_SIZE / 64u))

fuzz_faults_t fuzz_faults;
fuzz_operations_t fuzz_operations;
fuzz_said_t fuzz_said;

/* ---- the engine's variables ------------------------------------------------ */

typedef struct {
  uint64_t *begin;
  uint32_t size;
  uint64_t *kept;
} memory_t;

static memory_t memories[2];

/* Word by word: between the variables lies what the sanitizer lets no memcpy touch. */
__attribute__((no_sanitize("address", "undefined"))) static void copy(volatile uint64_t *to,
                                                                      const volatile uint64_t *from, uint32_t size) {
  for (uint32_t k = 0; k < size / sizeof *to; k++) {
    to[k] = from[k];
  }
}

static void keep(memory_t *m, uint64_t *begin, uint64_t *end) {
  m->begin = begin;
  m->size = (uint32_t)((uintptr_t)end - (uintptr_t)begin);
  m->kept = malloc(m->size);
  FUZZ_CHECK(m->kept != NULL, "no memory");
  copy(m->kept, m->begin, m->size);
}

static int holds(const memory_t *m, const void *variable) {
  const uintptr_t at = (uintptr_t)variable, begin = (uintptr_t)m->begin;
  return at >= begin && at < begin + m->size;
}

static void power_on_memory(void) {
  if (memories[0].begin == NULL) {
    keep(&memories[0], fuzz_bss_begin, fuzz_bss_end);
    keep(&memories[1], fuzz_data_begin, fuzz_data_end);
    FUZZ_CHECK(holds(&memories[0], &scl_journal), "link order: the engine has to lie between edge_begin and edge_end");
    FUZZ_CHECK(!holds(&memories[0], &fuzz_said), "link order: the board has to lie outside");
  }
#ifdef SCL_COVERAGE
  __gcov_dump(); /* the counters are among the variables */
#endif
  copy(memories[0].begin, memories[0].kept, memories[0].size);
  copy(memories[1].begin, memories[1].kept, memories[1].size);
#ifdef SCL_COVERAGE
  __gcov_reset();
#endif
}

/* ---- power ------------------------------------------------------------------ */

static jmp_buf power;
enum { STARTED = 1, RESTARTED };

void scl_port_init(void) {}
scl_reset_reason_t scl_port_reset_reason(void) { return SCL_RESET_POWER_ON; }
uint32_t scl_port_stack_used(void) { return 0; }
void scl_port_restart(void) { longjmp(power, RESTARTED); }
uint32_t scl_port_kept(void) { return 0; }
void scl_port_watchdog_feed(void) {}

/* Only a board that found its memory damaged keeps anything, and nothing damages it here. */
void scl_port_keep(uint32_t word) { FUZZ_CHECK(word == 0, "the board takes its memory for damaged"); }

uint32_t scl_port_image(uint32_t range, const void **begin) {
  (void)range;
  *begin = NULL;
  return 0;
}

/* The engine's main loop asks for a byte when it is ready: bytes then go to scl_protocol_take. */
int32_t scl_port_read_byte(void) { longjmp(power, STARTED); }

uint32_t scl_port_ticks(void) {
  static uint32_t now;
  return now += 7u;
}

void fuzz_boot(void) {
  for (;;) {
    power_on_memory();
    fuzz_said.size = 0;
    memset(&fuzz_operations, 0, sizeof fuzz_operations);
    switch (setjmp(power)) {
      case 0:
        (void)scl_app_main();
        fuzz_fail("main returned");
      case STARTED:
        (void)fuzz_check_said();
        return;
      default:
        break; /* the power failed in a mount that writes */
    }
  }
}

/* ---- line -------------------------------------------------------------------- */

void scl_port_write(const uint8_t *data, uint32_t size) {
  FUZZ_CHECK(size <= sizeof fuzz_said.bytes - fuzz_said.size, "the board says too much");
  memcpy(fuzz_said.bytes + fuzz_said.size, data, size);
  fuzz_said.size += size;
}

int fuzz_send(const uint8_t *bytes, uint32_t size) {
  static volatile uint32_t at;
  memset(&fuzz_operations, 0, sizeof fuzz_operations);
  fuzz_said.size = 0;
  if (setjmp(power) != 0) {
    fuzz_boot();
    return 1;
  }
  for (at = 0; at < size; at++) {
    scl_protocol_take(bytes[at]);
  }
  return 0;
}

/* ---- flash -------------------------------------------------------------------- */

uint8_t *fuzz_flash(void) {
  static uint8_t *flash;
  if (flash != NULL) {
    return flash;
  }
#if SCL_FLASH_MAPPED
  /* The engine reads it in place, where scl_board.h says; around it nothing is mapped. */
  void *const base = (void *)(uintptr_t)SCL_FLASH_MAPPED_BASE;
  flash = mmap(base, SCL_FLASH_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  FUZZ_CHECK(flash == base, "no memory where the flash is mapped");
#else
  flash = malloc(SCL_FLASH_SIZE);
  FUZZ_CHECK(flash != NULL, "no memory");
#endif
  return flash;
}

static int due(uint32_t *counter) { return *counter > 0 && --*counter == 0; }

static void check_range(uint32_t address, uint32_t size) {
  FUZZ_CHECK(address <= SCL_FLASH_SIZE && size <= SCL_FLASH_SIZE - address, "flash operation outside the partition");
  const fuzz_operations_t *done = &fuzz_operations;
  FUZZ_CHECK(done->reads < MOST_READS && done->programs + done->erases < MOST_WRITES, "too many flash operations");
}

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  check_range(address, size);
  fuzz_operations.reads++;
  memcpy(data, fuzz_flash() + address, size);
  return 0;
}

int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  check_range(address, size);
  FUZZ_CHECK((address | size) % SCL_FLASH_PROGRAM_UNIT == 0, "program: not whole units");
  fuzz_operations.programs++;
  if (due(&fuzz_faults.fail)) {
    return -1;
  }
  const int torn = due(&fuzz_faults.torn), weak = due(&fuzz_faults.weak);
  uint8_t *cells = fuzz_flash() + address;
  for (uint32_t k = 0; k < (torn ? size / 2u : size); k++) {
    FUZZ_CHECK(cells[k] == 0xFFu, "program: not erased");
    cells[k] = data[k];
  }
  if (weak && size > 0) {
    cells[size / 3u] ^= 0x10u;
  }
  if (torn) {
    longjmp(power, RESTARTED);
  }
  return 0;
}

int32_t scl_port_flash_erase(uint32_t address) {
  check_range(address, SCL_FLASH_SECTOR);
  FUZZ_CHECK(address % SCL_FLASH_SECTOR == 0, "erase: not a sector");
  fuzz_operations.erases++;
  if (due(&fuzz_faults.fail)) {
    return -1;
  }
  const int torn = due(&fuzz_faults.torn);
  memset(fuzz_flash() + address, 0xFF, torn ? SCL_FLASH_SECTOR / 2u : SCL_FLASH_SECTOR);
  if (torn) {
    longjmp(power, RESTARTED);
  }
  return 0;
}
