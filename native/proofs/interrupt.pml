/* How a driver comes to know of what a device has done (virtio 1.2, 4.2.2 and 4.2.3.4): a thread of the
 * device puts buffers in the used ring, and Python changes the configuration, both at any time. Each
 * sets its bit of InterruptStatus and then raises an edge of the line that all of it shares
 * (native/virtio/irq.c). The driver reads the bits, acknowledges those that it has read, and only then
 * looks at what they are of. An interrupt that is lost leaves it waiting for ever: a deadlock.
 *
 * With MEMSLOT the bits are read in memory that the guest can only read, and KVM swallows the
 * acknowledgement of a used buffer alone: that bit stands to the reset, and Python clears the other.
 * With EXITS every acknowledgement is Python's. Stores reach the vCPU at any later time but are there
 * before the bit, which is an atomic or with release. The other names do something in another way, and
 * make it fail: NO_RELEASE, the bit may be there first; EDGE_FIRST, so may the edge; NOT_ATOMIC, bits
 * are cleared by a load and a store; CLEARS_ALL, an acknowledgement clears both; LATE_ACK, somebody
 * reads of acknowledgements from an eventfd, and clears then. */

#define MOST 2 /* buffers, and changes */
#define USED 1
#define CONFIG 2

byte used, config; /* as the vCPU sees them */
byte bits;         /* InterruptStatus */
bool line;         /* an edge that the vCPU has not taken yet */
byte buffers, changes; /* there are so many in the end, */
bool chosen;           /* from now on */
chan late_used = [MOST] of { byte };
chan late_config = [MOST] of { byte };
#ifdef LATE_ACK
chan acknowledged = [1] of { byte };
#endif

active proctype memory()
{
end:
	do
	:: late_used ? used
	:: late_config ? config
	od
}

inline raise(flag, late)
{
#ifndef NO_RELEASE
	empty(late);
#endif
#ifdef EDGE_FIRST
	line = true;
	bits = bits | flag
#else
	bits = bits | flag;
	line = true
#endif
}

active proctype device()
{
	byte n;

	chosen;
	do
	:: n < buffers -> n++; late_used ! n; raise(USED, late_used)
	:: n == buffers -> break
	od
}

active proctype python()
{
	byte n;

	chosen;
	do
	:: n < changes -> n++; late_config ! n; raise(CONFIG, late_config)
	:: n == changes -> break
	od
}

/* What the bits are without those that are acknowledged. */
#ifdef CLEARS_ALL
#define LEFT(all, those) 0
#else
#define LEFT(all, those) ((all) & (3 - (those)))
#endif

inline clear(those)
{
#ifdef NOT_ATOMIC
	were = bits;
	bits = LEFT(were, those)
#else
	bits = LEFT(bits, those)
#endif
}

/* The vCPU goes on when it is done. */
inline acknowledge()
{
#ifdef LATE_ACK
	acknowledged ! seen
#else
#ifdef MEMSLOT
	if
	:: seen == USED
	:: else -> clear(CONFIG)
	fi
#else
	clear(seen)
#endif
#endif
}

#ifdef LATE_ACK
active proctype reader()
{
	byte those, were;

end:
	do
	:: acknowledged ? those -> clear(those)
	od
}
#endif

active proctype driver()
{
	byte seen, taken, known, were;

	if
	:: buffers = 1
	:: buffers = MOST
	fi;
	if
	:: changes = 0
	:: changes = MOST
	fi;
	chosen = true;
	do
	:: taken == buffers && known == changes -> break
	:: line ->
		line = false;
		seen = bits;
		if
		:: seen == 0
		:: else ->
			acknowledge();
			if
			:: seen & USED -> taken = used
			:: else
			fi;
			if
			:: seen & CONFIG -> known = config
			:: else
			fi
		fi
	od
}
