// SPDX-License-Identifier: Apache-2.0
/* cmocka with the headers that it wants before itself. */
#ifndef GW_TESTS_UNIT_CMOCKA_ALL_H
#define GW_TESTS_UNIT_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "patience.h"

#endif
