/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of QEMU as the plugin count.c sees, with version API of the plugin interface: stands for versions that are
 * not installed here.  Loads the plugin, "translates" a block of two instructions and runs it three times.
 *
 *   host PLUGIN IMAGE API      (compiled with -DAPI=1, 2 or 7)
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct insn {
  uint64_t address;
  void *value; /* what running it adds to */
  uint64_t operand;
};
struct tb {
  struct insn at[2];
};
static struct tb block = {{{0x100, NULL, 0}, {0x104, NULL, 0}}};

static void (*translated)(void);
static void *translated_data;

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(void), void *data) {
  (void)id;
  translated = callback;
  translated_data = data;
}

size_t qemu_plugin_tb_n_insns(const struct tb *tb) {
  if (tb != &block) {
    abort(); /* the callback was given other arguments than it expects */
  }
  return 2;
}

struct insn *qemu_plugin_tb_get_insn(struct tb *tb, size_t index) { return &tb->at[index]; }
uint64_t qemu_plugin_insn_vaddr(const struct insn *insn) { return insn->address; }

#if API == 1
#define LEAST 0
void qemu_plugin_register_vcpu_insn_exec_inline(struct insn *insn, int op, void *value, uint64_t operand) {
  (void)op;
  insn->value = value;
  insn->operand = operand;
}
#else
#define LEAST (API == 7 ? 7 : 2)
struct score {
  char *data;
};
typedef struct {
  struct score *score;
  size_t offset;
} number;
static int cores; /* as in QEMU, a scoreboard has a part only for a core that runs */

struct score *qemu_plugin_scoreboard_new(size_t bytes) {
  struct score *score = malloc(sizeof *score);
  score->data = (char *)calloc(16, bytes) + 16; /* on no page */
  return score;
}

void *qemu_plugin_scoreboard_find(struct score *score, unsigned core) {
  if ((int)core >= cores) {
    abort();
  }
  return score->data;
}

void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct insn *insn, int op, number value, uint64_t operand) {
  (void)op;
  insn->value = value.score->data + value.offset;
  insn->operand = operand;
}
#endif

int main(int argc, char **argv) {
  struct {
    const char *target;
    int min, cur;
    char more[32];
  } info = {"arm", LEAST, API, {0}};
  void *plugin = dlopen(argv[1], RTLD_NOW);
  if (argc != 3 || plugin == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const int version = *(int *)dlsym(plugin, "qemu_plugin_version");
  if (version < LEAST || version > API) {
    fprintf(stderr, "plugin requires API version %d, but this QEMU supports %d to %d\n", version, LEAST, API);
    return 3;
  }
  int (*install)(uint64_t, void *, int, char **) =
      (int (*)(uint64_t, void *, int, char **))dlsym(plugin, "qemu_plugin_install");
  char range[] = "range=0x100:0x8";
  char *arguments[] = {argv[2], range};
  if (install(1, &info, 2, arguments) != 0) {
    return 4;
  }
#if API > 1
  cores = 1;
#endif
#if API >= 7
  ((void (*)(struct tb *, void *))translated)(&block, translated_data);
#else
  ((void (*)(uint64_t, struct tb *))translated)(1, &block);
#endif
  for (int run = 0; run < 3; ++run) {
    for (size_t i = 0; i < 2; ++i) {
      *(uint64_t *)block.at[i].value += block.at[i].operand;
    }
  }
  return 0;
}
