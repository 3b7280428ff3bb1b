#!/bin/busybox sh
# The lab's first process: the host's root file system, the modules, then the agent.
exec </dev/console >/dev/console 2>&1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
fail() { echo "lab: $1"; poweroff -f; }

mount -t proc proc /proc
while read -r module soft; do
  insmod "$module" || [ -n "$soft" ] || fail "$module was not loaded"
done </lib/modules/load
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose root /root || fail "no root"
cd /root
mount -t proc proc proc
mount -t sysfs sysfs sys
# The TSC is measured anew after KVM has loaded. Where the two differ by more than this many ppm (250
# by default), KVM wants to scale the guests' TSC, cannot, and their deadlines are never met.
echo 100000 >sys/module/kvm/parameters/tsc_tolerance_ppm || fail "no KVM"
mount -t debugfs debugfs sys/kernel/debug
mount -t devtmpfs devtmpfs dev || fail "no /dev"
mkdir dev/pts dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for pair in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
  ln -s "${pair#*:}" "dev/${pair%%:*}"
done
hostname lab
ifconfig lo up
# A way out: the emulator's own router, with the addresses that it documents.
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 && route add default gw 10.0.2.2 || fail "no network"
agent /root/dev/vport0p1 /root || fail "the agent failed"
poweroff -f
