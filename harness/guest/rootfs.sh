# Makes a freshly unpacked Debian tree, in $1, a guest; mmdebstrap runs it as a hook.
set -eu
cd "$1"

# Only for the way here: what apt and dpkg of the guest itself should not take over.
rm -f etc/apt/apt.conf.d/99mmdebstrap
sed -i '/^force-unsafe-io$/d' etc/dpkg/dpkg.cfg.d/99mmdebstrap

sed -i 's/^root:[^:]*:/root::/' etc/shadow
echo guest >etc/hostname
printf '127.0.0.1\tlocalhost\n127.0.1.1\tguest\n::1\tlocalhost\n' >etc/hosts
: >etc/resolv.conf
ln -sf ../proc/self/mounts etc/mtab
# By label, for the disk may be any of the machine's.
echo 'LABEL=root / ext4 defaults 0 0' >etc/fstab

# Another init than sysvinit brings its own ways, a prompt on the kernel's console among them.
[ -e usr/share/sysvinit/inittab ] || exit 0

cat >etc/inittab <<'END'
# A guest with one console. The scripts of /etc/rcS.d serve any machine there is, and take most
# of a small guest's boot; /etc/init.d/guest does what this one needs. Services of packages start
# as usual, from /etc/rc2.d.
id:2:initdefault:
si::sysinit:/etc/init.d/guest start
l2:2:wait:/etc/init.d/rc 2
l0:0:wait:/etc/init.d/guest poweroff
l6:6:wait:/etc/init.d/guest reboot
~~:1S:wait:/sbin/sulogin --force
ca::ctrlaltdel:/sbin/shutdown -r now
T0:2:respawn:/sbin/agetty --local-line 115200 ttyS0 vt102
END
# init complains of its absence.
mkdir -p etc/inittab.d
rm -f etc/rc2.d/S*bootlogs etc/rc2.d/S*rmnologin
# Plans for a concurrent boot, in the order in which a directory was read: no two are alike. The
# numbers of the links do for the few that are left.
rm -f etc/init.d/.depend.*

cat >etc/init.d/guest <<'END'
#!/bin/sh
# First and last steps of a guest: file systems, host name, loopback; the end of all processes.
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# An initramfs may have mounted it already.
mounted() {
	mountpoint -q "$1" || mount -t "$2" -o "$3" "$2" "$1"
}

case "$1" in
start)
	mounted /proc proc nosuid,noexec,nodev
	mounted /sys sysfs nosuid,noexec,nodev
	mounted /dev devtmpfs nosuid,mode=755
	mounted /run tmpfs nosuid,nodev,mode=755
	mkdir -p /dev/pts /dev/shm /run/lock
	mounted /dev/pts devpts nosuid,noexec,gid=5,mode=620,ptmxmode=666
	mounted /dev/shm tmpfs nosuid,nodev,mode=1777
	[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
	: >/run/utmp
	hostname -F /etc/hostname
	# On a disk that is read-only the guest does without.
	mount -o remount / 2>/dev/null
	mount -a
	swapon -a
	ip link set lo up 2>/dev/null
	;;
poweroff | reboot)
	killall5 -15
	n=0
	while killall5 -18 && [ "$n" -lt 20 ]; do
		sleep 0.1
		n=$((n + 1))
	done
	killall5 -9
	swapoff -a
	umount -a -t noproc,nosysfs,nodevtmpfs,nodevpts,notmpfs 2>/dev/null
	mount -o remount,ro /
	# Without ACPI a kernel can halt but not power off; a reset ends the machine as well.
	[ -d /sys/firmware/acpi ] || exec reboot -d -f
	exec "$1" -d -f
	;;
esac
END
chmod 755 etc/init.d/guest
