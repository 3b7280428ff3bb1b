"""The nested lab: a TCG machine with AMD SVM in which pyvirt finds a real KVM."""
