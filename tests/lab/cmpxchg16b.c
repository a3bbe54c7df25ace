// SPDX-License-Identifier: Apache-2.0
/* Whether cmpxchg16b leaves the flags alone that are not its own (all but ZF): says with how many of 1000 it did not. */
#include <stdint.h>
#include <stdio.h>

#define RESERVED 0xfffffffffffff000ull /* nothing up there is set here */

int main(void)
{
	static uint64_t memory[2] __attribute__((aligned(16)));
	unsigned wrong = 0;

	for (unsigned i = 0; i < 1000; i++) {
		uint64_t low = memory[0], high = memory[1], flags, a = 0x55b7500, b = a + (i & 1);

		/* The comparison is what a translator may not have worked out yet; the jump makes it start anew. */
		__asm__ volatile("pushq $0x202; popfq; jmp 1f; 1: cmpq %[a], %[b]; cmpxchg16b %[m]; pushfq; popq %[f]"
				 : [f] "=&r"(flags), [m] "+m"(memory), "+a"(low), "+d"(high)
				 : [a] "r"(a), [b] "r"(b), "b"(memory[0]), "c"(memory[1])
				 : "cc", "memory");
		wrong += (flags & RESERVED) != 0;
	}
	printf("%u\n", wrong);
	return wrong ? 1 : 0;
}
