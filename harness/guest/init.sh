#!/bin/sh
# Process 1 of pyvirt's initramfs: mounts what programs expect, loads the modules of
# /lib/modules/load, mounts folders of the host below /mnt, runs /script or a shell on the console,
# and powers the machine off.

# Tell the monitor's boot timer, port 0x505 and address 0xc0000000, that init runs (1). Where the
# kernel has neither device, or locks both down, nothing is told.
printf '\001' | dd of=/dev/port bs=1 seek=1285 count=1 conv=notrunc 2>/dev/null ||
	devmem 0xc0000000 8 1 2>/dev/null

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-linux}"

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
ip link set lo up 2>/dev/null

[ -e /lib/modules/load.sh ] && . /lib/modules/load.sh

# Folders of the host: pyvirt.share=TAG,TAG of the kernel's command line.
for word in $(cat /proc/cmdline); do
	case $word in pyvirt.share=*) ;; *) continue ;; esac
	for tag in $(echo "${word#*=}" | tr , ' '); do
		mkdir -p "/mnt/$tag"
		mount -t virtiofs "$tag" "/mnt/$tag" || echo "init: share $tag was not mounted"
	done
done

if [ -e /script ]; then
	# What busybox's poweroff, halt and reboot send to process 1. The script runs in the
	# background, for a shell heeds signals while it waits, not while it runs a command.
	trap 'exec /sbin/poweroff' USR1 USR2
	trap 'exec /sbin/reboot' TERM
	# Its input goes by way of another number: a background command's own is /dev/null.
	exec 3<&0
	/script <&3 3<&- &
	wait $!
	echo "init: script ended with status $?"
else
	# The power button, as system_powerdown presses it; a script heeds what it likes.
	for event in /sys/class/input/event*; do
		[ -e "$event" ] && acpid -l /dev/null -p /run/acpid.pid && break
	done
	# In the foreground: a shell's background commands would ignore Ctrl-C for good.
	[ -e /etc/motd ] && cat /etc/motd
	setsid cttyhack sh -l
fi
exec /sbin/poweroff
