// SPDX-License-Identifier: Apache-2.0
/*
 * The two-party hand-over of a VM (migrate/move.h), with a crash of either VMM and a cut of the network at any moment, and the agents
 * that settle a doubt from the journals. Journals outlive their processes. tests/model/check verifies it with spin.
 *
 * What is kept from the program: the order of journalling, sending and running on each side; that a failure before COMMIT makes
 * the source run on; that a destination without COMMIT aborts for good; that a source after COMMIT waits. Left out: pages.
 *
 * With one of the BREAK definitions a rule is broken, and the check must fail (tests/model/check proves that, too).
 */
mtype = { STATE, READY, COMMIT, RUNNING, ABORTED, ABORT };
mtype = { J_NONE, J_OWNER, J_INCOMING, J_COMMITTING, J_RELEASED, J_ABORTED };

chan s2d = [3] of { mtype };
chan d2s = [3] of { mtype };

bool cut = false;       /* connections are lost; what was on its way may or may not have arrived */
bool s_alive = true, d_alive = true;
bool s_runs = true, d_runs = false;
bool s_ended = false;   /* the source's process is done with the move */
bool d_ended = false;
mtype j_s = J_OWNER, j_d = J_NONE;
bool effect = false;    /* the VM at the destination acted on the outside: survives the process */
bool doubt = false;
bool told_here = false, told_there = false;

/* A message is sent if the connection is there; the sender does not learn whether it arrives. */
inline send(c, m)
{
	if
	:: !cut -> c!m
	:: cut -> skip
	fi
}

active proctype source() provided (s_alive)
{
	/* Copying; then the stop. */
	if
	:: true -> goto failed          /* cancelled, timed out, refused */
	:: cut -> goto failed
	:: true -> skip
	fi;
	s_runs = false;
	send(s2d, STATE);
	j_s = J_COMMITTING;             /* written while the destination loads */
	if
	:: d2s?READY -> skip
	:: d2s?ABORTED -> goto failed
	:: cut -> goto failed
	:: true -> goto failed          /* time-out, cancel, digests differ */
	fi;
	/* Past the point of no return. */
	send(s2d, COMMIT);
#ifdef BREAK_RUN_AFTER_COMMIT
	if
	:: cut -> goto failed
	:: else -> skip
	fi;
#endif
	if
	:: d2s?RUNNING -> goto released
	:: d2s?ABORTED -> goto back
	:: cut && empty(d2s) -> skip
	:: true -> skip                 /* no answer in time: it may still come */
	fi;
	doubt = true;
	if
	:: d2s?RUNNING -> goto released
	:: d2s?ABORTED -> goto back
	:: told_here -> goto back
	:: told_there -> goto released
	fi;
failed:
	send(s2d, ABORT);
	j_s = J_OWNER;
	s_runs = true;
	s_ended = true;
	goto done;
back:
	doubt = false;
	j_s = J_OWNER;
	s_runs = true;
	s_ended = true;
	goto done;
released:
	doubt = false;
	j_s = J_RELEASED;
	s_ended = true;
done:
	skip
}

active proctype destination() provided (d_alive)
{
	mtype m;

	j_d = J_INCOMING;
	if
	:: s2d?m ->
		if
		:: m == STATE -> skip
		:: else -> goto aborted
		fi
	:: cut && empty(s2d) -> goto aborted
	:: true -> goto aborted         /* a stream that makes no sense, a state that does not load, cancel */
	fi;
	send(d2s, READY);
#ifdef BREAK_RUN_BEFORE_COMMIT
	goto own;
#endif
	if
	:: s2d?m ->
		if
		:: m == COMMIT -> skip
		:: else -> goto aborted
		fi
	:: cut && empty(s2d) -> goto aborted
	:: true -> goto aborted         /* no COMMIT in time, cancel */
	fi;
	if
	:: true -> goto aborted         /* the journal cannot be written */
	:: true -> skip
	fi;
own:
#ifdef BREAK_RUN_BEFORE_JOURNAL
	d_runs = true;
	effect = true;
	j_d = J_OWNER;
#else
	j_d = J_OWNER;
	d_runs = true;
	effect = true;                  /* the guest's first packet or disk write, some time after it runs */
#endif
	send(d2s, RUNNING);
	d_ended = true;
	goto done;
aborted:
	j_d = J_ABORTED;
	send(d2s, ABORTED);
	d_ended = true;
done:
	skip
}

/* The network: at one moment it may be cut, and takes along any part of what is under way. */
active proctype network()
{
	if
	:: true ->
		atomic {
			cut = true;
			do
			:: nempty(s2d) -> s2d?_
			:: nempty(d2s) -> d2s?_
			:: break
			od
		}
	:: true -> skip
	fi
}

/* SIGKILL, of either side, at any moment: its connections are lost, its VM stops, its journal stays. */
active proctype killer()
{
	if
	:: true -> atomic { s_alive = false; s_runs = false; s_ended = true; doubt = false; cut = true }
	:: true -> atomic { d_alive = false; d_runs = false; d_ended = true; cut = true }
	:: true -> skip
	fi
}

/* The agents together: the source's asks the destination's, which reads the journal. */
active proctype agents()
{
end:
	do
	:: doubt && !told_here && !told_there ->
		atomic {
			if
			:: j_d == J_ABORTED -> told_here = true
			/* Dead below OWNER, or owner without any effect: ABORTED is written, then the source may run. */
			:: !d_alive && j_d != J_OWNER && j_d != J_ABORTED -> j_d = J_ABORTED; told_here = true
#ifdef BREAK_UNDO_WITH_EFFECT
			:: !d_alive && j_d == J_OWNER -> j_d = J_ABORTED; told_here = true
#else
			:: !d_alive && j_d == J_OWNER && !effect -> j_d = J_ABORTED; told_here = true
			:: !d_alive && j_d == J_OWNER && effect -> told_there = true
#endif
			:: d_alive && j_d == J_OWNER -> told_there = true
			:: d_alive && j_d != J_OWNER && j_d != J_ABORTED -> skip /* it lives: ask again */
			fi
		}
	:: s_ended && d_ended -> break
	od
}

/* At every moment. */
active proctype never_two()
{
end:
	atomic { s_runs && d_runs -> assert(false) }
}

/* When nothing can happen any more. */
active proctype at_the_end()
{
	timeout ->
	/* No live side waits for ever: not even in doubt, since journals tell. */
	assert(!s_alive || s_ended);
	assert(!d_alive || d_ended);
	if
	:: s_alive && d_alive -> assert(s_runs || d_runs)
	/* The destination's VMM died: the VM is back at the source, or it had lived there and died with it. */
	:: s_alive && !d_alive -> assert(s_runs || j_d == J_OWNER)
	:: else -> skip
	fi;
	/* Each runs only by right of both journals, and the source never after an effect of the destination's. */
	assert(!s_runs || (j_s == J_OWNER && j_d != J_OWNER && !effect));
	assert(!d_runs || (j_d == J_OWNER && (j_s == J_COMMITTING || j_s == J_RELEASED)))
}
