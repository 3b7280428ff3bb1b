#!/bin/sh
# Process 1 of an initramfs that boots a root file system: loads the modules of
# /lib/modules/load, mounts what root= of the kernel command line names, and runs its init.
# Heeds rootfstype=, rootflags=, ro, rw and init= as the kernel does for itself.

# The monitor's boot-timer port, 0x505: byte 1 says that init runs.
printf '\001' | dd of=/dev/port bs=1 seek=1285 count=1 conv=notrunc 2>/dev/null

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
WAIT_TENTHS=100

# With panic= on the command line, the end of process 1 is the end of the machine.
fail() {
	echo "init: root=$root: $1"
	exit 1
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

root='' type='' flags='' mode=ro init=''
read -r words </proc/cmdline
for word in $words; do
	case "$word" in
	root=*) root=${word#root=} ;;
	rootfstype=*) type=${word#rootfstype=} ;;
	rootflags=*) flags=,${word#rootflags=} ;;
	init=*) init=${word#init=} ;;
	ro | rw) mode=$word ;;
	esac
done
[ -n "$root" ] || fail "the kernel command line names no root; add one such as root=/dev/vda"

[ -e /lib/modules/load.sh ] && . /lib/modules/load.sh

# Disks come up in their own time.
tries=0
while :; do
	case "$root" in
	LABEL=* | UUID=*) device=$(findfs "$root" 2>/dev/null) ;;
	*) device=$root ;;
	esac
	[ -b "$device" ] && break
	tries=$((tries + 1))
	[ "$tries" -lt "$WAIT_TENTHS" ] || fail "no such disk came up within $((WAIT_TENTHS / 10)) s"
	sleep 0.1
done

# What mount says is worth more than a summary of it.
mount ${type:+-t "$type"} -o "$mode$flags" "$device" /mnt || fail "it cannot be mounted"

if [ -z "$init" ]; then
	for init in /sbin/init /etc/init /bin/init /bin/sh; do
		# A link in the file system may be absolute, and so lead astray from here.
		[ -x "/mnt$init" ] || [ -L "/mnt$init" ] && break
	done
fi
for place in proc sys dev; do
	mount -o move "/$place" "/mnt/$place" || fail "it has no directory /$place"
done
exec switch_root /mnt "$init" "$@"
