#!/bin/sh
# Process 1 of a guest whose root is a folder of the host, from where hostboot.sh leaves it. From
# the kernel command line:
#   pyvirt.modules=PATH|TAG   the kernel's modules: a folder in the root, or a file system
#   pyvirt.share=TAG,TAG      folders of the host, to be mounted below /mnt
#   pyvirt.cwd=, pyvirt.exec= where the shell, or this command in its place, runs; as \0OCTAL
#   hostname=NAME, init=PATH  as the kernel takes them

bb=/run/pyvirt/busybox
set -f
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root USER=root LOGNAME=root TERM="${TERM:-linux}"

name=pyvirt init='' modules='' shares='' directory=/ command=''
read -r words </proc/cmdline
for word in $words; do
	case "$word" in
	hostname=*) name=${word#*=} ;;
	init=*) init=${word#*=} ;;
	pyvirt.modules=*) modules=${word#*=} ;;
	pyvirt.share=*) shares=$(echo "${word#*=}" | $bb tr , ' ') ;;
	pyvirt.cwd=*) directory=$(printf '%b' "${word#*=}") ;;
	pyvirt.exec=*) command=$(printf '%b' "${word#*=}") ;;
	esac
done

$bb hostname "$name"
$bb ip link set lo up 2>/dev/null
[ -d /tmp ] || $bb mkdir -m 1777 /tmp
for tag in $shares; do
	$bb mkdir -p "/mnt/$tag"
	$bb mount -t virtiofs "$tag" "/mnt/$tag" || echo "init: share $tag was not mounted"
done
if [ -n "$modules" ]; then
	place=/lib/modules/$($bb uname -r)
	$bb mkdir -p "$place"
	case $modules in
	/*) $bb mount -o bind "$modules" "$place" ;;
	*) $bb mount -t virtiofs -o ro "$modules" "$place" ;;
	esac || echo "init: the kernel's modules are not in $place"
	# Drivers of devices that are there already: nobody else asks for them.
	set +f
	modprobe -qa $($bb cat /sys/bus/virtio/devices/*/modalias) 2>/dev/null
	set -f
fi
if [ -n "$init" ]; then
	exec "$init" "$@"
fi

# There is no init daemon for the root's own to ask. A link would lead to another program.
$bb mkdir -p /sbin
for program in poweroff halt reboot; do
	$bb rm -f "/sbin/$program"
	how=poweroff
	[ "$program" != reboot ] && [ -d /sys/firmware/acpi ] || how=reboot
	printf '#!%s sh\n%s sync\nexec %s %s -f\n' $bb $bb $bb $how >"/sbin/$program"
	$bb chmod 755 "/sbin/$program"
done
# A user without privileges shares no more than what they can read.
$bb ls /root >/dev/null 2>&1 || { HOME=/run/root && $bb mkdir $HOME; }
cd "$directory" 2>/dev/null || cd /

if [ -n "$command" ]; then
	$bb setsid $bb cttyhack /bin/sh -c "$command"
	status=$?
	$bb sync
	# The byte that the debug exit takes, port 0xf4 and address 0xc0000010, is the exit status.
	if [ -c /dev/port ]; then
		printf "\\$(printf %03o $status)" |
			$bb dd of=/dev/port bs=1 seek=244 count=1 conv=notrunc 2>/dev/null
	else
		$bb devmem 0xc0000010 8 $status 2>/dev/null
	fi
	echo "init: command ended with status $status"
else
	echo "Linux $($bb uname -r) under pyvirt, on files of the host; poweroff or Ctrl-A X leaves."
	SHELL=$($bb awk -F : '$1 == "root" { print $7 }' /etc/passwd 2>/dev/null)
	[ -x "$SHELL" ] || SHELL=/bin/sh
	export SHELL
	$bb setsid $bb cttyhack "$SHELL" -l
fi
exec /sbin/poweroff
