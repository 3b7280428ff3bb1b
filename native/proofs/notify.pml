/* Notification between the two sides of a ring (virtio 1.2, 2.7.7 and 2.7.10), for kicks and
 * interrupts alike: the producer offers entries and notifies where it is asked to, the consumer asks,
 * looks once more and waits (pv_virtqueue_needs_notify, pv_virtqueue_enable_kicks). Each side's stores
 * reach the other through a buffer, in order and at any later time, as on x86; a full barrier waits
 * until it is empty. A notification that is lost leaves the consumer waiting for ever: a deadlock.
 *
 * With FLAGS it is the flag that asks, without it the event index. NO_PRODUCER_BARRIER,
 * NO_CONSUMER_BARRIER and NO_SECOND_LOOK leave something out, and make it fail. */

#define ENTRIES 4
#define MODULO 16

byte offered;  /* the ring's idx */
byte event;    /* the entry that the consumer waits for */
bool asks_not; /* the flag */
bool notified; /* the eventfd */
chan from_producer = [2] of { byte };
chan from_consumer = [2] of { byte };

active proctype memory()
{
end:
	do
	:: from_producer ? offered
#ifdef FLAGS
	:: from_consumer ? asks_not
#else
	:: from_consumer ? event
#endif
	od
}

/* One decision for all that was offered since the last. */
inline decide()
{
#ifndef NO_PRODUCER_BARRIER
	empty(from_producer);
#endif
#ifdef FLAGS
	notified = notified || !asks_not;
#else
	wanted = event;
	notified = notified || (wanted + MODULO - before) % MODULO < now - before;
#endif
	before = now
}

active proctype producer()
{
	byte before, now, wanted;

	do
	:: now < ENTRIES -> now++; from_producer ! now
	:: now > before -> decide()
	:: now == ENTRIES && now == before -> break
	od
}

active proctype consumer()
{
	byte next, seen;

	do
	:: next == ENTRIES -> break
	:: else ->
#ifdef FLAGS
		from_consumer ! true;
#endif
		seen = offered;
		do
		:: next < seen -> next++
		:: else -> break
		od;
#ifdef FLAGS
		from_consumer ! false;
#else
		from_consumer ! next;
#endif
#ifndef NO_CONSUMER_BARRIER
		empty(from_consumer);
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
