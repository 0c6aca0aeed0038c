/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start-up of every Cortex-M board: vector table, RAM initialisation, stack
 * painting, restart.  Armv6-M (Cortex-M0) to Armv8.1-M; no vendor code.
 */
#include <stdbool.h>
#include <stdint.h>

#include "cortexm.h"
#include "scl_app.h"
#include "scl_port.h"
#include "scl_reg.h"

/* Application Interrupt and Reset Control Register, Armv7-M ARM B3.2.6
 * (Armv6-M ARM B3.2.6): writes need the key; SYSRESETREQ is bit 2. */
#define SCB_AIRCR 0xE000ED0CU
#define AIRCR_SYSRESETREQ 0x05FA0004U

/* Armv8-M ARM (DDI 0553), registers CPACR and CCR: Helium's instructions are
 * coprocessors 10 and 11, off after reset; LOB is the cache of hardware loops. */
#define SCB_CPACR 0xE000ED88U
#define CPACR_CP10_CP11_FULL 0x00F00000U
#define SCB_CCR 0xE000ED14U
#define CCR_LOB 0x00080000U

#define STACK_PAINT 0xA5A5A5A5U

/* Two words each, so that RAM's random content after power-on is not taken
 * for a mark. */
#define MARK_CHECK 0x5C1A3C7EU
#define MARK_RUNNING 0x52554E21U
#define MARK_RESTART 0x52535421U
#define MARK_WATCHDOG 0x57444F47U

/* From cortexm.ld. */
extern uint32_t scl_stack_bottom[], scl_stack_top[];
extern const uint32_t scl_text_begin[], scl_text_end[];
extern uint32_t scl_data_begin[], scl_data_end[];
extern const uint32_t scl_data_load[];
extern uint32_t scl_hot_begin[], scl_hot_end[];
extern const uint32_t scl_hot_load[];
extern uint32_t scl_bss_begin[], scl_bss_end[];

void scl_reset_handler(void) __attribute__((noreturn));

static volatile uint32_t mark[2] __attribute__((section(".noinit")));
static volatile uint32_t kept[2] __attribute__((section(".noinit")));
static scl_reset_reason_t reason;

static void set_mark(uint32_t value) {
  mark[0] = value;
  mark[1] = value ^ MARK_CHECK;
}

static scl_reset_reason_t read_mark(void) {
  if (mark[1] != (mark[0] ^ MARK_CHECK)) {
    return SCL_RESET_POWER_ON;
  }
  if (mark[0] == MARK_RESTART) {
    return SCL_RESET_SOFTWARE;
  }
  if (mark[0] == MARK_WATCHDOG) {
    return SCL_RESET_WATCHDOG;
  }
  return mark[0] == MARK_RUNNING ? SCL_RESET_PIN : SCL_RESET_POWER_ON;
}

/* Only below the current stack pointer: the caller's frame is in use.  Volatile
 * keeps the compiler from calling memset, which would paint its own frame. */
__attribute__((always_inline)) static inline void paint_stack(void) {
  volatile uint32_t *end;
  __asm volatile("mov %0, sp" : "=r"(end));
  for (volatile uint32_t *word = scl_stack_bottom; word < end; ++word) {
    *word = STACK_PAINT;
  }
}

static void enable_helium(void) {
#ifdef __ARM_FEATURE_MVE
  SCL_REG32(SCB_CPACR) |= CPACR_CP10_CP11_FULL;
  SCL_REG32(SCB_CCR) |= CCR_LOB;
  __asm volatile("dsb\n\tisb" ::: "memory");
#endif
}

/* What the loader has put in place already is left alone: data where code and
 * data share one RAM, hot functions that stay in flash (board.toml). */
static void load(uint32_t *to, const uint32_t *end, const uint32_t *from) {
  while (to != from && to < end) {
    *to++ = *from++;
  }
  __asm volatile("dsb\n\tisb" ::: "memory"); /* before any of it is executed */
}

void scl_reset_handler(void) {
  enable_helium();
  paint_stack();
  load(scl_data_begin, scl_data_end, scl_data_load);
  load(scl_hot_begin, scl_hot_end, scl_hot_load);
  for (uint32_t *word = scl_bss_begin; word < scl_bss_end; ++word) {
    *word = 0;
  }

  reason = read_mark();
  if (reason == SCL_RESET_POWER_ON || kept[1] != (kept[0] ^ MARK_CHECK)) {
    scl_port_keep(0);
  }
  set_mark(MARK_RUNNING);
  (void)scl_app_main();
  scl_port_restart();
  for (;;) {
  }
}

static void restart(uint32_t value) {
  set_mark(value);
  __asm volatile("dsb" ::: "memory");
  SCL_REG32(SCB_AIRCR) = AIRCR_SYSRESETREQ;
  for (;;) {
    __asm volatile("dsb" ::: "memory");
  }
}

void scl_port_keep(uint32_t word) {
  kept[0] = word;
  kept[1] = word ^ MARK_CHECK;
}

uint32_t scl_port_kept(void) { return kept[0]; }

void scl_cortexm_mark_watchdog(bool due) { set_mark(due ? MARK_WATCHDOG : MARK_RUNNING); }

uint32_t scl_port_image(uint32_t range, const void **begin) {
  if (range == 0U) {
    *begin = scl_text_begin;
    return (uint32_t)((uintptr_t)scl_text_end - (uintptr_t)scl_text_begin);
  }
  *begin = scl_hot_begin; /* in the other range's memory, or a copy of its own */
  return range == 1U ? (uint32_t)((uintptr_t)scl_hot_end - (uintptr_t)scl_hot_begin) : 0U;
}

void scl_port_restart(void) { restart(MARK_RESTART); }

void scl_cortexm_restart_hung(void) { restart(MARK_WATCHDOG); }

scl_reset_reason_t scl_cortexm_reset_reason(void) { return reason; }

uint32_t scl_port_stack_used(void) {
  /* volatile: words that nothing in this program's C semantics ever wrote. */
  const volatile uint32_t *word = scl_stack_bottom;
  while (word < scl_stack_top && *word == STACK_PAINT) {
    ++word;
  }
  return (uint32_t)((uintptr_t)scl_stack_top - (uintptr_t)word);
}

__attribute__((weak)) void scl_cortexm_systick(void) {}

/* A learning device is left alone for weeks: start again from the journal
 * rather than hang. */
static void fault(void) { scl_port_restart(); }

__attribute__((weak)) void scl_cortexm_nmi(void) { fault(); }

__attribute__((weak)) void scl_cortexm_interrupt(void) {}

/* The system exceptions and, for one handler, the first external interrupts: a port enables at most one. */
#define SYSTEM_EXCEPTIONS 16
#define EXTERNAL_INTERRUPTS 16
#define FOUR(vector) vector, vector, vector, vector
typedef void (*vector_t)(void);
extern const vector_t scl_vectors[SYSTEM_EXCEPTIONS + EXTERNAL_INTERRUPTS];
__attribute__((section(".vectors"), used)) const vector_t scl_vectors[SYSTEM_EXCEPTIONS + EXTERNAL_INTERRUPTS] = {
    (vector_t)(uintptr_t)scl_stack_top,
    scl_reset_handler,
    scl_cortexm_nmi,
    fault, /* HardFault */
    fault, /* MemManage; reserved on Armv6-M, as are the next two */
    fault, /* BusFault */
    fault, /* UsageFault */
    0,
    0,
    0,
    0,
    fault, /* SVCall */
    fault, /* DebugMonitor */
    0,
    fault, /* PendSV */
    scl_cortexm_systick,
    FOUR(scl_cortexm_interrupt),
    FOUR(scl_cortexm_interrupt),
    FOUR(scl_cortexm_interrupt),
    FOUR(scl_cortexm_interrupt),
};
