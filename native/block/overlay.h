/* What a guest writes to a disk whose image stays as it is: layers over the image.
 *
 * A layer is a sparse file with the sectors at their own places, and a map of those that are in it.
 * The map has a bit for each sector, so a write never has to bring the rest of some larger unit
 * along, and two of them never meet in one. The newest layer is the one that is written to. A
 * frozen one has its map behind its data and is nothing but its descriptor: it can be the lower
 * layer of any number of disks. */
#ifndef PV_BLOCK_OVERLAY_H
#define PV_BLOCK_OVERLAY_H

#include <stdint.h>

struct pv_overlay;

/* A layer that is empty, over `below` or, with NULL, the image. `fd` is an empty file, which
 * becomes as long as the disk, of `sectors` of 512 bytes; it and `below` are borrowed until
 * pv_overlay_free. -ENOMEM, or what ftruncate(2) and mmap(2) say. */
int pv_overlay_new(int fd, uint64_t sectors, const struct pv_overlay *below,
                   struct pv_overlay **out);

/* The same of a file that pv_overlay_freeze has completed, to be read alone. -EINVAL: it is none, or
 * one of a disk of another size. What is in it may be anybody's. */
int pv_overlay_thaw(int fd, uint64_t sectors, const struct pv_overlay *below,
                    struct pv_overlay **out);

/* Complete the file of a layer that is written to no more, nor is being. What pwrite(2) says: it
 * may go on. */
int pv_overlay_freeze(struct pv_overlay *overlay);

/* Whether nothing was written to it. Nothing is being. */
int pv_overlay_is_empty(const struct pv_overlay *overlay);

/* What the file takes of the host, in bytes; any thread. */
uint64_t pv_overlay_bytes(const struct pv_overlay *overlay);

/* No device uses it any more. */
void pv_overlay_free(struct pv_overlay *overlay);

#endif
