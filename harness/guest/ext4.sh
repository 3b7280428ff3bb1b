#!/bin/sh
# ext4.sh TREE.tar.zst IMAGE BYTES UUID LABEL: makes IMAGE an ext4 file system of BYTES with the
# files of the archive. Needs no mount and no device, but has to own files: as root of a user
# namespace, if not as root.
set -eu
tree=$1 image=$2 size=$3 uuid=$4 label=$5

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
# Device nodes are root's alone to make; those that a kernel needs are added below.
zstd -dcq "$tree" | tar -x -C "$work" --numeric-owner --same-permissions --same-owner \
	--xattrs --xattrs-include='*' --exclude='./dev/*'
truncate -s "$size" "$image"
# The sparse file reads as zeros: nothing is left for the guest's kernel to initialize, which
# would be I/O that nobody asked for.
mke2fs -q -F -t ext4 -b 4096 -m 0 -L "$label" -U "$uuid" -d "$work" \
	-E "assume_storage_prezeroed=1,hash_seed=$uuid,root_owner=0:0" "$image"
debugfs -w -f - "$image" >/dev/null 2>&1 <<'END'
cd dev
mknod console c 5 1
set_inode_field console mode 020600
mknod null c 1 3
set_inode_field null mode 020666
END
e2fsck -fn "$image" >/dev/null 2>&1
