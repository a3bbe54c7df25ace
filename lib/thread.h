// SPDX-License-Identifier: Apache-2.0
/* Threads: all signals blocked, since those meant for the process are the main thread's. */
#ifndef GW_LIB_THREAD_H
#define GW_LIB_THREAD_H

#include <pthread.h>

/* 0 or negative errno. The stack is small: none of our threads needs the usual 8 MiB. */
int gw_thread_create(pthread_t *thread, void *(*fn)(void *arg), void *arg);

#endif
