"""pytest's side: the plugin and its fixtures, markers, KTAP subtests, the result file."""
