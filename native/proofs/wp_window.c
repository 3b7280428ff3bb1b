/* When a driver is interrupted, for every used_event and all indexes: of the entries that were
 * published since the last decision, is the one that it waits for among them? In whole numbers that
 * wrap, of which Eva's ranges know nothing. */
#include <stdint.h>

/* A driver that writes meanwhile is what Eva and Spin look at; here a place has one value. */
#define __FC_STDATOMIC
#define _Atomic
enum { memory_order_relaxed };
#define __atomic_load_n(place, order) (*(place))
#define __atomic_store_n(place, value, order) ((void)(*(place) = (value)))
#define __atomic_thread_fence(order) ((void)0)
#define __builtin_prefetch(place) ((void)(place))
#define atomic_load_explicit(place, order) (*(place))

#include "virtio/virtqueue_internal.h"

/* WP knows of a conversion that what is in range stays; the rest is C11, 6.3.1.3. */
/*@ logic integer wrapped(integer index) =
      index < 0 ? index + 65536 : index < 65536 ? index : index - 65536;
    axiomatic Conversion {
      axiom wraps: \forall integer index; -65536 <= index < 131072 ==>
        (uint16_t)index == wrapped(index);
    }
    predicate is_number(integer k, integer event, integer before, integer now) =
      0 <= k < wrapped(now - before) && event == wrapped(before + k);
*/

/*@ requires \valid_read(field);
    assigns \nothing;
    ensures \result == *field; */
static uint16_t load_relaxed(const uint16_t *field);

/*@ assigns \nothing; */
static void full_barrier(void);

/*@ requires \valid(queue);
    requires \valid_read(&queue->avail->flags) && \valid_read(queue->used_event);
    requires \separated(queue, &queue->avail->flags, queue->used_event);
    assigns queue->notified_used;
    ensures decided: queue->notified_used == queue->published_used;
    ensures nothing_new: \old(queue->notified_used) == queue->published_used ==> \result == 0;
    ensures by_flag: queue->event_idx == 0 && \old(queue->notified_used) != queue->published_used
      ==> (\result == 0 <==> (queue->avail->flags & PV_AVAIL_NO_INTERRUPT) != 0);
    ensures asked_for: queue->event_idx != 0 && \result != 0 ==>
      \let k = wrapped(*queue->used_event - \old(queue->notified_used));
      is_number(k, *queue->used_event, \old(queue->notified_used), queue->published_used);
    ensures none_lost: queue->event_idx != 0 ==> \forall integer k;
      is_number(k, *queue->used_event, \old(queue->notified_used), queue->published_used)
      ==> \result == 1; */
int pv_virtqueue_needs_notify(struct pv_virtqueue *queue);

#include "virtio/virtqueue.c"
