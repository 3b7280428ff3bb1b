# Loads the modules of /lib/modules/load, a path a line, with "soft" after one that the kernel may
# refuse. The inits read it in, where there is one.
while read -r module soft; do
	if [ -n "$soft" ]; then
		insmod "$module" 2>/dev/null
	else
		insmod "$module" || echo "init: module $module was not loaded"
	fi
done </lib/modules/load
