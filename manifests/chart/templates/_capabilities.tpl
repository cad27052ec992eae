{{/* What the kernel asks for, tried with each one taken away. Istio adds the same five in
     every mode; here a mode that does not need one does not get it. */}}
{{- define "cni.capabilities" -}}
# setns(2) into a pod's network namespace; unshare(2) for the scratch namespace in which
# the backend is proved; with iptables also a mount namespace for its lock, and the
# user namespace of a pod with hostUsers: false.
- SYS_ADMIN
# nftables, addresses, rules and routes over netlink in the pod's namespace.
- NET_ADMIN
# To be told by the kernel of changes in captured pods' namespaces. Istio's chart has it
# not: there the agent looks at them every 30 s alone.
- NET_BROADCAST
# The proof of a backend and of a pod connects as the proxy's user too, whose traffic
# must not be captured. Istio's chart has not these two: there the proof is made without.
- SETUID
- SETGID
# The directories of the host may belong to another user than root (OpenShift, some
# images of nodes), whose modes bind root too without it.
- DAC_OVERRIDE
{{- if ne .backend "nftables" }}
# iptables-legacy talks to the kernel through a raw socket. Not for nftables.
- NET_RAW
{{- end }}
{{- if include "cni.hostProc" . }}
# Opening /host/proc/PID/ns/net of a process that has capabilities which we have not.
- SYS_PTRACE
{{- end }}
{{- end -}}
