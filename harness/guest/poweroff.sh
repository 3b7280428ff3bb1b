#!/bin/sh
# poweroff, halt and reboot of pyvirt's initramfs, which has no init daemon to ask.
sync
# Without ACPI a kernel can halt but not power off; a reset ends the machine as well.
if [ "${0##*/}" != reboot ] && [ -d /sys/firmware/acpi ]; then
	poweroff -f
fi
exec reboot -f
