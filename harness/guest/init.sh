#!/bin/sh
# Process 1 of pyvirt's initramfs: mounts what programs expect, loads the modules of
# /lib/modules/load, runs /script or a shell on the console, and powers the machine off.

# The monitor's boot-timer port, 0x505: byte 1 says that init runs. Where the kernel has no
# /dev/port, or locks it down, nothing is told.
printf '\001' | dd of=/dev/port bs=1 seek=1285 count=1 conv=notrunc 2>/dev/null

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

# Without ACPI a kernel can halt but not power off; a reset ends the machine as well.
power_off() {
	sync
	[ -d /sys/firmware/acpi ] && poweroff -f
	reboot -f
}

restart() {
	sync
	reboot -f
}

# What the poweroff, halt and reboot commands send to process 1.
trap power_off USR1 USR2
trap restart TERM

if [ -s /lib/modules/load ]; then
	while read -r module soft; do
		if [ -n "$soft" ]; then
			insmod "$module" 2>/dev/null
		else
			insmod "$module" || echo "init: module $module was not loaded"
		fi
	done </lib/modules/load
fi

# In the background, for a shell acts on signals while it waits, not while it runs a command.
if [ -e /script ]; then
	/script </dev/console &
	wait $!
	echo "init: script ended with status $?"
else
	[ -e /etc/motd ] && cat /etc/motd
	setsid cttyhack sh -l </dev/console &
	wait $!
fi
power_off
