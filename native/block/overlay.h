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

#define PV_OVERLAY_MARK 16       /* bytes */
#define PV_OVERLAY_SPAN 16777216 /* bytes of the disk that a page of the map is of */

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

/* Copy what a layer and those below it have of the disk's bytes from `start` to `end`, both multiples
 * of PV_OVERLAY_SPAN, to the same places of an empty file, and `written` is how many more bytes that
 * takes. Nothing is written to the layer meanwhile. When all of the disk was seen to,
 * pv_overlay_complete makes of the file a layer that stands for all of them, the last bytes of which
 * are `mark`, PV_OVERLAY_MARK of them. What lseek(2), sendfile(2) and pwrite(2) say. */
int pv_overlay_copy(const struct pv_overlay *top, int fd, uint64_t start, uint64_t end,
                    uint64_t *written);
int pv_overlay_complete(const struct pv_overlay *top, int fd, const uint8_t *mark);

/* Whether nothing was written to it. Nothing is being. */
int pv_overlay_is_empty(const struct pv_overlay *overlay);

/* What the file takes of the host, in bytes; any thread. */
uint64_t pv_overlay_bytes(const struct pv_overlay *overlay);

/* No device uses it any more. */
void pv_overlay_free(struct pv_overlay *overlay);

#endif
