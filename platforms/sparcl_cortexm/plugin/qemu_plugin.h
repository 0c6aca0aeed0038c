/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of QEMU's plugin interface that the plugins here use.
 *
 * Distributions ship no headers for plugins, hence the declarations by hand
 * (QEMU's include/qemu/qemu-plugin.h).  One library serves all versions of the
 * interface: what a version lacks is declared weak, and is NULL there.
 *
 *   1      QEMU 4.2 to 8.2, which refuse a library of more
 *   2 - 6  QEMU 9.0 and later, which refuse one of less; numbers in scoreboards
 *   7      QEMU 11.1 (read, not tried): callbacks with other arguments
 *
 * SCL_PLUGIN_API in the environment replaces the version that is told to QEMU,
 * for one that raises the least it takes.
 */
#ifndef SCL_QEMU_PLUGIN_H
#define SCL_QEMU_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))
#define OPTIONAL __attribute__((weak))

typedef uint64_t qemu_plugin_id_t;
typedef struct {
  const char *target_name;
  struct {
    int min;
    int cur;
  } version;
  /* more follows */
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

/* The last parameter came with version 7; an argument too many does no harm. */
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*callback)(void), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

/* Version 1 only. */
OPTIONAL void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, enum qemu_plugin_op op,
                                                         void *value, uint64_t operand);

/* Version 2 and later: memory of QEMU's, of the same size for each virtual core, and a number in it. */
struct qemu_plugin_scoreboard;
typedef struct {
  struct qemu_plugin_scoreboard *score;
  size_t offset;
} qemu_plugin_u64;
OPTIONAL struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t bytes);
OPTIONAL void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned core);
OPTIONAL void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *insn, enum qemu_plugin_op op,
                                                                  qemu_plugin_u64 value, uint64_t operand);

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv);

/* QEMU reads the variable after it has loaded the library, so after constructors ran. */
EXPORT int qemu_plugin_version = 1;

__attribute__((constructor)) static void scl_choose_version(void) {
  const char *told = getenv("SCL_PLUGIN_API");
  if (qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu != NULL) {
    qemu_plugin_version = told == NULL ? 2 : atoi(told);
  }
}

static void (*scl_translated)(struct qemu_plugin_tb *tb);

static void scl_translated_before_7(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  scl_translated(tb);
}

static void scl_translated_since_7(struct qemu_plugin_tb *tb, void *data) {
  (void)data;
  scl_translated(tb);
}

/* Have `translated` called for each block of code before it runs for the first time. */
static void scl_on_translation(qemu_plugin_id_t id, const qemu_info_t *info,
                               void (*translated)(struct qemu_plugin_tb *tb)) {
  scl_translated = translated;
  qemu_plugin_register_vcpu_tb_trans_cb(
      id, info->version.cur < 7 ? (void (*)(void))scl_translated_before_7 : (void (*)(void))scl_translated_since_7,
      NULL);
}

#endif
