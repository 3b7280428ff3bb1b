/* The protocol of notify.pml on a processor with weak order, as Arm's: a side's stores reach the other
 * at any later time and those to different places in any order, and a load may be carried out before
 * an earlier one. What holds them in order is what native/virtio/virtqueue.c has: a store with release
 * waits for those before it, a load with acquire is before those that follow, a full barrier waits for
 * all. Beside the notification that is not lost it is asserted that no entry is taken before what is in
 * it is there.
 *
 * With FLAGS it is the flag that asks, without it the event index. The other names leave something out,
 * and make it fail. */

#define ENTRIES 3
#define MODULO 16

byte offered;         /* the ring's idx */
bool filled[ENTRIES]; /* the entries */
byte event;           /* the entry that the consumer waits for */
bool asks_not;        /* the flag */
bool notified;        /* the eventfd */
/* What each side has stored and the other does not see yet: a place is a queue of its own. */
chan late_offered = [2] of { byte };
bool late_filled[ENTRIES];
byte late_fills; /* how many of these */
chan late_event = [2] of { byte };

#define FILL(n) d_step { late_filled[n] -> late_filled[n] = false; late_fills--; filled[n] = true }

active proctype memory()
{
end:
	do
	:: late_offered ? offered
#ifdef FLAGS
	:: late_event ? asks_not
#else
	:: late_event ? event
#endif
	:: FILL(0)
	:: FILL(1)
	:: FILL(2)
	od
}

/* One decision for all that was offered since the last. */
inline decide()
{
#ifndef NO_PRODUCER_BARRIER
	empty(late_offered) && late_fills == 0;
#endif
#ifdef FLAGS
	notified = notified || !asks_not;
#else
	wanted = event;
	notified = notified || (wanted + MODULO - before) % MODULO < now - before;
#endif
	before = now
}

inline offer()
{
	d_step { late_filled[now] = true; late_fills++ }
	now++;
#ifndef NO_RELEASE
	late_fills == 0;
#endif
	late_offered ! now
}

active proctype producer()
{
	byte before, now, wanted;

	do
	:: now < ENTRIES -> offer()
	:: now > before -> decide()
	:: now == ENTRIES && now == before -> break
	od
}

/* Look at the idx; without acquire the next entry may have been read before. */
inline look()
{
#ifdef NO_ACQUIRE
	if
	:: next < ENTRIES -> early = filled[next]; is_early = true
	:: is_early = false
	fi;
#endif
	seen = offered
}

inline take()
{
	assert(is_early -> early : filled[next]);
	is_early = false;
	next++
}

active proctype consumer()
{
	byte next, seen;
	bool early, is_early;

	do
	:: next == ENTRIES -> break
	:: else ->
#ifdef FLAGS
		late_event ! true;
#endif
		look();
		do
		:: next < seen -> take()
		:: else -> break
		od;
#ifdef FLAGS
		late_event ! false;
#else
		late_event ! next;
#endif
#ifndef NO_CONSUMER_BARRIER
		empty(late_event);
#endif
#ifndef NO_SECOND_LOOK
		seen = offered;
#endif
		if
		:: seen != next || next == ENTRIES
		:: else -> notified -> notified = false
		fi
	od
}
