/* The world that proofs look at the code in (prove.py): what another thread or the driver may have
 * changed before each look, and buffers that a driver may have made.
 *
 * It comes before the file that is proved, which is included whole, so that its static functions
 * can be called; the functions of other files are modelled in the proof. */
#ifndef PV_PROOFS_MODEL_H
#define PV_PROOFS_MODEL_H

#include <__fc_builtin.h>
#include <stdint.h>

/* Instead of Frama-C's own stdatomic.h: what is read may be anything, each time anew. */
#define __FC_STDATOMIC
#define _Atomic
#define _Alignas(bytes)
typedef int atomic_int;
typedef _Bool atomic_bool;
#define PV_ANEW(place) (*(const volatile __typeof__(*(place)) *)(place))
#ifndef PV_SEEN
#define PV_SEEN(place) (*(place)) /* another thread's, where a proof is not about that */
#endif
#define __atomic_load_n(place, order) PV_ANEW(place)
#define __atomic_store_n(place, value, order) ((void)(*(place) = (value)))
#define __atomic_thread_fence(order) ((void)0)
#define __builtin_prefetch(place) ((void)(place))
#define atomic_init(place, value) ((void)(*(place) = (value)))
#define atomic_load(place) PV_SEEN(place)
#define atomic_load_explicit(place, order) PV_SEEN(place)
#define atomic_store(place, value) ((void)(*(place) = (value)))
#define atomic_store_explicit(place, value, order) ((void)(*(place) = (value)))
#define atomic_fetch_add_explicit(place, value, order) ((void)(*(place) += (value)))
#define atomic_fetch_add(place, value) ((void)(*(place) += (value)))

#define aligned_alloc(alignment, bytes) malloc(bytes)

#define PV_UNKNOWN(object) Frama_C_make_unknown((char *)&(object), sizeof(object))

/* A number from `least` to `most`, of which the analyzer knows no more. */
#define PV_ANY(least, most) Frama_C_unsigned_int_interval(least, most)

#define PV_ANY_BOOL() (Frama_C_interval(0, 1) != 0)

/* One of 0 to `most`, 7 at most, each looked at by itself. */
static inline unsigned pv_each(unsigned most)
{
	unsigned value = PV_ANY(0, most);

	switch (value) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return 2;
	case 3:
		return 3;
	case 4:
		return 4;
	case 5:
		return 5;
	case 6:
		return 6;
	default:
		return 7;
	}
}

#endif
