#!/bin/sh
# Process 1 of an initramfs that boots a folder of the host: loads the modules of
# /lib/modules/load, mounts the file system whose tag pyvirt.overlay= of the kernel command line
# names, read-only, a tmpfs above it for all that is written, and goes on there with /inside.

# Tell the monitor's boot timer, port 0x505 and address 0xc0000000, that init runs (1).
printf '\001' | dd of=/dev/port bs=1 seek=1285 count=1 conv=notrunc 2>/dev/null ||
	devmem 0xc0000000 8 1 2>/dev/null

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
set -f

# The monitor ends with status 1: a byte for its debug exit, port 0xf4 and address 0xc0000010. Where
# the kernel has neither device, and with panic= on the command line, the end of process 1 is the
# end of the machine.
fail() {
	echo "init: $1"
	if [ -c /dev/port ]; then
		printf '\001' | dd of=/dev/port bs=1 seek=244 count=1 conv=notrunc 2>/dev/null
	else
		devmem 0xc0000010 8 1 2>/dev/null
	fi
	exit 1
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts 2>/dev/null
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr

[ -e /lib/modules/load.sh ] && . /lib/modules/load.sh

tag=''
read -r words </proc/cmdline
for word in $words; do
	case "$word" in pyvirt.overlay=*) tag=${word#*=} ;; esac
done
# What mount says is worth more than a summary of it.
mkdir -p /lower /upper
mount -t virtiofs -o ro "$tag" /lower || fail "the root $tag cannot be mounted"
mount -t tmpfs -o mode=755 tmpfs /upper && mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /mnt ||
	fail "nothing can be put above the root: has this kernel no overlay file system?"
umount -l /lower /upper

for place in proc sys dev run; do
	mkdir -p "/mnt/$place" && mount -o move "/$place" "/mnt/$place" || fail "no /$place in the root"
done
# What goes on there finds nothing that it can rely on but this.
mkdir /mnt/run/pyvirt && cp /bin/busybox /inside /mnt/run/pyvirt || fail "no room in /run"
exec switch_root /mnt /run/pyvirt/busybox sh /run/pyvirt/inside "$@"
