/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program executed is written when it ends; this writes it as well when
 * it is ended, or executes itself again.  Linked with --wrap=execve.
 */
#include <gcov.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

int __real_execve(const char *path, char *const *arguments, char *const *environment);
int __wrap_execve(const char *path, char *const *arguments, char *const *environment);

int __wrap_execve(const char *path, char *const *arguments, char *const *environment) {
  __gcov_dump();
  return __real_execve(path, arguments, environment);
}

static void end(int number) {
  (void)number;
  __gcov_dump();
  _exit(EXIT_SUCCESS);
}

__attribute__((constructor)) static void begin(void) { (void)signal(SIGTERM, end); }
