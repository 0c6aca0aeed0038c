/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_host.h"

static const sparcl_hooks_t no_hooks;
const sparcl_port_t *scl_port;
const sparcl_hooks_t *scl_hooks = &no_hooks;

void scl_host_connect(const sparcl_port_t *port, const sparcl_hooks_t *hooks) {
  scl_port = port;
  scl_hooks = hooks != NULL ? hooks : &no_hooks;
}
