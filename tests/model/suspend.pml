// SPDX-License-Identifier: Apache-2.0
/*
 * Who may resume a VM that host 0 has suspended (docs/ARCHITECTURE.md, "Who may run it"): host 0 itself, and hosts 1 and 2, which ask it for the VM. Agents
 * and VMMs crash at any moment; requests and answers are lost, come late, and are asked for again. tests/model/check verifies it with spin.
 *
 * What is kept from the program: the order in which journal, record and note become durable and answers leave; that a VMM outlives its agent; what an agent
 * that starts makes of what it finds. Left out: --force, epochs, and what a move does (handoff.pml): a VM that runs may go on to another host, and the host
 * that it left may forget it.
 *
 * With one of the BREAK definitions a rule is broken, and the check must fail (tests/model/check proves that, too).
 */
#define ASKS 3                  /* that one host makes */
#define CRASHES 2               /* of agents, in all */

mtype = { NONE, SUSPENDED, HAS, MOVED };            /* records of agents: durable */
mtype = { IDLE, ASKING, GRANTED, ADDED, BRINGING }; /* what an agent does with the VM: lost in a crash */
mtype = { DEAD, LOADING, OWNED, RUNS };             /* VMMs */
mtype = { REFUSING, RELEASING, RECORDING, ANSWERING };

mtype record[3];
mtype op[3];
mtype vmm[3];
bool owner[3];                  /* the VMM's journal: OWNER, newer than the record */
bool taken[3];                  /* durable: it has taken the snapshot over once */
bool up[3];                     /* the agent */
byte released = 0;              /* host 0's journal: RELEASED to this host */
byte peer = 0;                  /* host 0's record, when MOVED: to this host */
byte asks[3];
byte crashes = 0;

chan ask = [2] of { byte, byte };       /* host, number of the request */
chan answer = [2] of { byte, byte };
byte serves = 0, number = 0;    /* whom host 0 answers just now, holding the VM's lock */
mtype stage;

byte owned = 0;                 /* how often somebody went on from the snapshot */

#define recorded_elsewhere(h) (record[h] == NONE || record[h] == MOVED)

/* An agent starts, and finds what the last one left. */
inline adopt(h)
{
	if
	:: h == 0 && record[0] == SUSPENDED && released != 0 ->
		record[0] = MOVED;
#ifndef BREAK_ADOPT_FOR_NOBODY
		peer = released
#endif
#ifndef BREAK_ADOPT_BY_RECORD
	:: record[h] == SUSPENDED && owner[h] -> record[h] = HAS
#endif
	:: record[h] == SUSPENDED && vmm[h] == LOADING -> vmm[h] = DEAD
	:: else -> skip
	fi;
	up[h] = true
}

/* Host 0 takes a request. */
inline take(h)
{
	ask?serves,number;
	if
#ifdef BREAK_ANSWER_ANYBODY
	:: record[0] == MOVED -> stage = ANSWERING
#else
#ifndef BREAK_ANSWER_ONCE
	:: record[0] == MOVED && peer == serves && released == serves -> stage = ANSWERING
#endif
#endif
#ifdef BREAK_RELEASE_WHILE_LOADING
	:: record[0] == SUSPENDED && op[0] != ADDED -> stage = RELEASING
#else
	:: record[0] == SUSPENDED && op[0] == IDLE && vmm[0] == DEAD -> stage = RELEASING
#endif
	:: else -> stage = REFUSING
	fi
}

proctype agent(byte h)
{
	byte whom, which;

end:
	do
	/* Recorded here as suspended: resumed by its operator. */
	:: atomic { up[h] && op[h] == IDLE && record[h] == SUSPENDED && vmm[h] == DEAD && !(h == 0 && serves != 0) -> op[h] = ADDED }
	:: atomic { up[h] && op[h] == ADDED ->
#ifndef BREAK_NOTE_NOTHING
			taken[h] = (h != 0);
#endif
			vmm[h] = LOADING; op[h] = BRINGING }
	:: atomic { up[h] && op[h] == BRINGING && (vmm[h] != LOADING) ->
			if
			:: owner[h] -> record[h] = HAS
			:: else -> skip /* suspended as before */
			fi;
			op[h] = IDLE }
	:: atomic { up[h] && op[h] == BRINGING && vmm[h] == LOADING -> vmm[h] = DEAD } /* not in time: killed */

	/* Not recorded here: host 0 is asked for it. */
	:: atomic { h != 0 && up[h] && op[h] == IDLE && recorded_elsewhere(h) && !taken[h] && asks[h] < ASKS ->
			asks[h]++;
			op[h] = ASKING;
			if
			:: nfull(ask) -> ask!h,asks[h]
			:: true -> skip /* lost */
			fi }
	:: atomic { h != 0 && up[h] && op[h] == ASKING && answer??[eval(h),eval(asks[h])] -> answer??eval(h),eval(asks[h]); op[h] = GRANTED }
	:: atomic { up[h] && op[h] == ASKING -> op[h] = IDLE } /* no answer, or no; one that comes late finds no connection */
	:: atomic { up[h] && op[h] == GRANTED -> record[h] = SUSPENDED; op[h] = ADDED }

	/* Host 0 answers. */
	:: atomic { h == 0 && up[0] && serves == 0 && nempty(ask) -> take(0) }
#ifdef BREAK_ANSWER_FIRST
	:: atomic { h == 0 && up[0] && serves != 0 && stage == RELEASING && nfull(answer) -> answer!serves,number; stage = RECORDING }
	:: atomic { h == 0 && up[0] && serves != 0 && stage == RECORDING -> released = serves; peer = serves; record[0] = MOVED; stage = REFUSING }
#else
	:: atomic { h == 0 && up[0] && serves != 0 && stage == RELEASING -> released = serves; stage = RECORDING }
	:: atomic { h == 0 && up[0] && serves != 0 && stage == RECORDING -> peer = serves; record[0] = MOVED; stage = ANSWERING }
#endif
	:: atomic { h == 0 && up[0] && serves != 0 && stage == ANSWERING && nfull(answer) -> answer!serves,number; stage = REFUSING }
	:: atomic { h == 0 && up[0] && serves != 0 && (stage == REFUSING || stage == ANSWERING) -> serves = 0 } /* or the answer is lost */
	:: atomic { h == 0 && full(answer) -> answer?whom,which } /* to who does not wait for it any more */

	/* It runs, and goes on to another host; who has no VMM of it any more may be made to forget it. */
	:: atomic { up[h] && op[h] == IDLE && record[h] == HAS && vmm[h] == RUNS ->
			whom = (h + 1) % 3;
			if
			:: up[whom] && op[whom] == IDLE && recorded_elsewhere(whom) && !(whom == 0 && serves != 0) ->
				record[h] = MOVED; vmm[h] = DEAD; owner[h] = false;
				if
#ifdef BREAK_ANSWER_AFTER_A_MOVE
				:: h == 0 -> peer = whom; released = whom
#else
				:: h == 0 -> peer = whom; released = 0 /* in no snapshot: the journal has the move's id */
#endif
				:: else -> skip
				fi;
				record[whom] = HAS; vmm[whom] = RUNS; owner[whom] = true
			:: else -> skip
			fi }
	:: atomic { h != 0 && up[h] && op[h] == IDLE && record[h] == MOVED -> record[h] = NONE }

	/* SIGKILL, alone or with its VMM (a host that loses power). */
	:: atomic { up[h] && crashes < CRASHES ->
			crashes++;
			up[h] = false;
			op[h] = IDLE;
			if
			:: h == 0 -> serves = 0
			:: else -> skip
			fi;
			if
			:: true -> vmm[h] = DEAD
			:: true -> skip
			fi }
	:: atomic { !up[h] -> adopt(h) }
	od
}

proctype machine(byte h)
{
end:
	do
	:: atomic { vmm[h] == LOADING -> owner[h] = true; owned++; vmm[h] = OWNED }
	:: atomic { vmm[h] == OWNED -> vmm[h] = RUNS }
	:: atomic { vmm[h] == LOADING -> vmm[h] = DEAD } /* the snapshot cannot be read, or SIGKILL */
	od
}

init {
	atomic {
		record[0] = SUSPENDED; record[1] = NONE; record[2] = NONE;
		op[0] = IDLE; op[1] = IDLE; op[2] = IDLE;
		vmm[0] = DEAD; vmm[1] = DEAD; vmm[2] = DEAD;
		up[0] = true; up[1] = true; up[2] = true;
		stage = REFUSING;
		run agent(0); run agent(1); run agent(2);
		run machine(0); run machine(1); run machine(2)
	}
}

/* Nobody goes on from the snapshot a second time: so never do two run, nor does the VM fall back behind what it did. */
active proctype never_twice()
{
end:
	atomic { owned > 1 -> assert(false) }
}

/* Whatever has become of it, some host has it or may resume it, once its agent runs. */
#ifdef BREAK_ANSWER_ONCE /* then only what is still on its way helps */
#define may_ask(h) (released == h && !taken[h] && (record[0] == SUSPENDED || serves == h || answer??[h,eval(asks[h])] || op[h] == GRANTED))
#else
#define may_ask(h) (released == h && !taken[h] && (record[0] == SUSPENDED || peer == h))
#endif
#define somebody_has (record[0] == HAS || record[1] == HAS || record[2] == HAS || owner[0] || owner[1] || owner[2])

active proctype never_none()
{
end:
	atomic { record[0] != 0 && !somebody_has && !(record[0] == SUSPENDED && released == 0) && record[1] != SUSPENDED && record[2] != SUSPENDED &&
		 !may_ask(1) && !may_ask(2) -> assert(false) }
}
