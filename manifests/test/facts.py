"""What the chart must render: the facts of the reference's section 8, and where Sluice
differs on purpose. check.py compares."""

# -- Defaults ----------------------------------------------------------------------

# 8.3.
COMMON_LABELS = (
    "release",
    "istio.io/rev",
    "install.operator.istio.io/owning-resource",
    "operator.istio.io/component",
    "app.kubernetes.io/name",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "helm.sh/chart",
)

OBJECTS = {
    "ServiceAccount/istio-cni",
    "ConfigMap/istio-cni-config",
    "DaemonSet/istio-cni-node",
    "ClusterRole/istio-cni",
    "ClusterRoleBinding/istio-cni",
    "ClusterRole/istio-cni-repair-role",
    "ClusterRoleBinding/istio-cni-repair-rolebinding",
    # Ours.
    "ValidatingAdmissionPolicy/istio-cni-istio-system",
    "ValidatingAdmissionPolicyBinding/istio-cni-istio-system",
}
NAMESPACED = {"ServiceAccount/istio-cni", "ConfigMap/istio-cni-config", "DaemonSet/istio-cni-node"}
REPAIR_OBJECTS = {"ClusterRole/istio-cni-repair-role", "ClusterRoleBinding/istio-cni-repair-rolebinding"}
AMBIENT_OBJECTS = {"ClusterRole/istio-cni-ambient", "ClusterRoleBinding/istio-cni-ambient"}

SELECTORS = """- podSelector:
    matchLabels:
      istio.io/dataplane-mode: ambient
- namespaceSelector:
    matchLabels:
      istio.io/dataplane-mode: ambient
  podSelector:
    matchExpressions:
    - key: istio.io/dataplane-mode
      operator: NotIn
      values:
      - none"""

# 8.3; None is an absent key.
CONFIG = {
    "CURRENT_AGENT_VERSION": "0.1.0",
    "AMBIENT_ENABLED": "false",
    "AMBIENT_ENABLEMENT_SELECTOR": SELECTORS,
    "AMBIENT_DNS_CAPTURE": "true",
    "AMBIENT_IPV6": "true",
    "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": "true",
    "ENABLE_AMBIENT_DETECTION_RETRY": "false",
    "CNI_CONF_NAME": None,
    # Istio: false.
    "ISTIO_OWNED_CNI_CONFIG": "true",
    # Istio writes ISTIO_OWNED_CNI_CONF_FILENAME (10.1 #1).
    "ISTIO_OWNED_CNI_CONFIG_FILENAME": None,
    "CHAINED_CNI_PLUGIN": "true",
    "EXCLUDE_NAMESPACES": "kube-system",
    "REPAIR_ENABLED": "true",
    "REPAIR_LABEL_PODS": "false",
    "REPAIR_DELETE_PODS": "false",
    "REPAIR_REPAIR_PODS": "true",
    "REPAIR_INIT_CONTAINER_NAME": "istio-validation",
    "REPAIR_BROKEN_POD_LABEL_KEY": "cni.istio.io/uninitialized",
    "REPAIR_BROKEN_POD_LABEL_VALUE": "true",
    "NATIVE_NFTABLES": "false",
    # Ours.
    "SLUICE_BACKEND": None,
    "MONITORING_PORT": "15014",
    "SLUICE_HEALTH_ADDRESS": "127.0.0.1:15018",
    "SLUICE_AGENT_HOST_NETWORK": "true",
}

# 8.4.
POD_LABELS = {"k8s-app": "istio-cni-node", "sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none"}
APPARMOR = "container.apparmor.security.beta.kubernetes.io/install-cni"
POD_ANNOTATIONS = {
    "sidecar.istio.io/inject": "false",
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "15014",
    "prometheus.io/path": "/metrics",
    APPARMOR: "unconfined",
}
POD_SPEC = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "affinity": None,
    "tolerations": [
        {"effect": "NoSchedule", "operator": "Exists"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"effect": "NoExecute", "operator": "Exists"},
    ],
    "priorityClassName": "system-node-critical",
    "serviceAccountName": "istio-cni",
    "terminationGracePeriodSeconds": 30,
    "hostPID": None,
    # Istio: the pod network. values.yaml says why not.
    "hostNetwork": True,
    "dnsPolicy": "ClusterFirstWithHostNet",
}
POD_NETWORK = {"hostNetwork": None, "dnsPolicy": None}
IMAGE = "localhost/sluice/install-cni:0.1.0"
RESOURCES = {"requests": {"cpu": "100m", "memory": "100Mi"}}
# Istio's also sets GOMEMLIMIT, which is for Go programs.
ENVIRONMENT = {
    "REPAIR_NODE_NAME": "spec.nodeName",
    "REPAIR_RUN_AS_DAEMON": "true",
    "REPAIR_SIDECAR_ANNOTATION": "sidecar.istio.io/status",
    "NODE_NAME": "spec.nodeName",
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
}
READINESS = {"httpGet": {"path": "/readyz", "port": 15018, "host": "127.0.0.1"}}
LIVENESS = {"path": "/healthz", "port": 15018, "host": "127.0.0.1"}
CONTEXT = {"privileged": False, "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
# SETUID and SETGID are ours: the proof connects as the proxy's user. NET_BROADCAST too:
# the kernel's notifications of pods' namespaces.
OURS = ["SETUID", "SETGID", "NET_BROADCAST"]
CAPABILITIES = ["NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE", *OURS]

HOST_PROC = ("/proc", "Directory", "readOnly=True")
OPTIONAL_MOUNTS = ("/host/proc", "/host/root", "/host/opt/cni/bin", "/host/etc/cni/net.d", "/host/var/run/netns", "/var/run/ztunnel")
MOUNTS = {
    "/host/opt/cni/bin": ("/opt/cni/bin", None),
    "/host/etc/cni/net.d": ("/etc/cni/net.d", None),
    # Istio's has no type: without the directory its pod does not start on some runtimes.
    "/var/run/istio-cni": ("/var/run/istio-cni", "DirectoryOrCreate"),
    "/host/proc": HOST_PROC,
    "/host/root": None,
    "/host/var/run/netns": None,
    "/var/run/ztunnel": None,
}
AMBIENT_MOUNTS = {
    "/host/var/run/netns": ("/var/run/netns", "DirectoryOrCreate", "mountPropagation=HostToContainer"),
    "/var/run/ztunnel": ("/var/run/ztunnel", "DirectoryOrCreate"),
}


def directories(bin_dir, conf_dir):
    return {"/host/opt/cni/bin": (bin_dir, None), "/host/etc/cni/net.d": (conf_dir, None)}


# 8.5, less what nothing uses: nodes, daemonsets, the update verbs, patches of events, pods twice.
READ = ([""], ["pods", "namespaces"], None, ["get", "list", "watch"])
EVENTS = ([""], ["events"], None, ["create"])
STATUS = ([""], ["pods/status"], None, ["patch"])
SCC = (["security.openshift.io"], ["securitycontextconstraints"], ["privileged"], ["use"])
RBAC = {"istio-cni": [READ], "istio-cni-repair-role": [EVENTS], "istio-cni-ambient": None}

# -- Sets of values ------------------------------------------------------------------
# Name, values, where the result differs from the defaults.

CASES = [
    ("default", {}, {"rbac": RBAC}),
    (
        "ambient",
        {"profile": "ambient"},
        {
            "more_objects": AMBIENT_OBJECTS,
            "config": {"AMBIENT_ENABLED": "true"},
            "mounts": AMBIENT_MOUNTS,
            "rbac": {**RBAC, "istio-cni-ambient": [EVENTS, STATUS]},
        },
    ),
    (
        "repair: delete",
        {"repair": {"repairPods": False, "deletePods": True, "labelPods": True}},
        {
            "config": {"REPAIR_REPAIR_PODS": "false", "REPAIR_DELETE_PODS": "true", "REPAIR_LABEL_PODS": "true"},
            "capabilities": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "DAC_OVERRIDE", *OURS],
            "mounts": {"/host/proc": None},
            "rbac": {**RBAC, "istio-cni-repair-role": [EVENTS, ([""], ["pods"], None, ["delete"])]},
        },
    ),
    (
        "repair: label",
        {"cni": {"repair": {"repairPods": False, "labelPods": True, "brokenPodLabelKey": "x/y", "brokenPodLabelValue": "z"}}},
        {
            "config": {
                "REPAIR_REPAIR_PODS": "false",
                "REPAIR_LABEL_PODS": "true",
                "REPAIR_BROKEN_POD_LABEL_KEY": "x/y",
                "REPAIR_BROKEN_POD_LABEL_VALUE": "z",
            },
            "capabilities": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "DAC_OVERRIDE", *OURS],
            "mounts": {"/host/proc": None},
            "rbac": {**RBAC, "istio-cni-repair-role": [EVENTS, STATUS]},
        },
    ),
    (
        "repair: off",
        {"repair": {"enabled": False}},
        {
            "no_objects": REPAIR_OBJECTS,
            "config": {"REPAIR_ENABLED": "false"},
            "capabilities": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "DAC_OVERRIDE", *OURS],
            "mounts": {"/host/proc": None},
            "rbac": {"istio-cni": [READ], "istio-cni-repair-role": None},
        },
    ),
    (
        "the primary's file edited in place",
        {"istioOwnedCNIConfig": False, "cniConfFileName": "10-calico.conflist", "excludeNamespaces": ["kube-system", "b"]},
        {"config": {"ISTIO_OWNED_CNI_CONFIG": "false", "CNI_CONF_NAME": "10-calico.conflist", "EXCLUDE_NAMESPACES": "kube-system,b"}},
    ),
    (
        "owned file with a name",
        {"istioOwnedCNIConfigFileName": "00-mesh.conflist"},
        {"config": {"ISTIO_OWNED_CNI_CONFIG_FILENAME": "00-mesh.conflist"}},
    ),
    (
        "gke",
        {"global": {"platform": "gke"}},
        {"more_objects": {"ResourceQuota/istio-cni-resource-quota"}},
    ),
    (
        "openshift",
        {"global": {"platform": "openshift"}},
        {
            "more_objects": {"NetworkAttachmentDefinition/istio-cni"},
            "config": {"CHAINED_CNI_PLUGIN": "false", "CNI_CONF_NAME": "istio-cni.conf", "ISTIO_OWNED_CNI_CONFIG": "false"},
            "mounts": directories("/var/lib/cni/bin", "/etc/cni/multus/net.d"),
            "selinux": {"type": "spc_t"},
            "rbac": {**RBAC, "istio-cni": [READ, SCC]},
        },
    ),
    ("k3s", {"platform": "k3s"}, {"mounts": directories("/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d")}),
    ("k3d", {"platform": "k3d"}, {"mounts": directories("/bin", "/var/lib/rancher/k3s/agent/etc/cni/net.d")}),
    (
        "microk8s",
        {"platform": "microk8s"},
        {"mounts": directories("/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network")},
    ),
    (
        "minikube, ambient",
        {"platform": "minikube", "profile": "ambient"},
        {
            "more_objects": AMBIENT_OBJECTS,
            "config": {"AMBIENT_ENABLED": "true"},
            "mounts": {**AMBIENT_MOUNTS, "/host/var/run/netns": ("/var/run/docker/netns", "DirectoryOrCreate", "mountPropagation=HostToContainer")},
        },
    ),
    (
        "nftables",
        {"global": {"nativeNftables": True}, "backend": "nftables"},
        {
            "config": {"NATIVE_NFTABLES": "true", "SLUICE_BACKEND": "nftables"},
            "capabilities": ["NET_ADMIN", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE", *OURS],
        },
    ),
    (
        "own directories",
        {"cniBinDir": "/srv/bin", "cniConfDir": "/srv/net.d"},
        {"mounts": directories("/srv/bin", "/srv/net.d")},
    ),
    (
        "directories asked of the runtime",
        {"findCniDirs": True},
        {
            "config": {"SLUICE_HOST_ROOT": "/host/root"},
            "mounts": {
                "/host/root": ("/", "Directory", "mountPropagation=HostToContainer"),
                "/host/opt/cni/bin": None,
                "/host/etc/cni/net.d": None,
            },
        },
    ),
    (
        "pod network, as Istio",
        {"hostNetwork": False, "global": {"networkPolicy": {"enabled": True}}, "repair": {"enabled": False}, "revision": "r1"},
        {
            "more_objects": {"NetworkPolicy/istio-cni-r1"},
            "no_objects": REPAIR_OBJECTS,
            "config": {"REPAIR_ENABLED": "false", "SLUICE_HEALTH_ADDRESS": ":8000", "SLUICE_AGENT_HOST_NETWORK": "false"},
            "spec": POD_NETWORK,
            "environment": {"ALLOW_SWITCH_TO_HOST_NS": "true"},
            "readiness": {"httpGet": {"path": "/readyz", "port": 8000}},
            "liveness": {"path": "/healthz", "port": 8000},
        },
    ),
    (
        "pod network, ambient, shared by its own value (1.25)",
        {"hostNetwork": False, "compatibilityVersion": "1.25", "profile": "ambient"},
        {
            "more_objects": AMBIENT_OBJECTS,
            "config": {"AMBIENT_ENABLED": "true", "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": "false"},
            "mounts": AMBIENT_MOUNTS,
        },
    ),
    (
        "scheduling and size",
        {
            "tolerations": [],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "mesh", "operator": "Exists"}]}]}}},
            "resources": {"requests": {"cpu": None, "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": "10%"}},
            "terminationGracePeriodSeconds": 7,
            "livenessProbe": {"enabled": False},
        },
        {
            "spec": {
                "tolerations": None,
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "mesh", "operator": "Exists"}]}]}}},
                "terminationGracePeriodSeconds": 7,
            },
            "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}},
            "liveness": None,
        },
    ),
    (
        "image, logs and environment",
        {
            "hub": "r.example/mesh",
            "tag": 7,
            "variant": "iptables",
            "pullPolicy": "Always",
            "logging": {"level": "all:debug"},
            "global": {"logAsJson": True, "imagePullSecrets": ["key"]},
            "env": {"SLUICE_X": 1, "Y": True},
            "seLinuxOptions": {"level": "s0"},
            "seccompProfile": {"type": "Unconfined"},
            "useAppArmorAnnotation": False,
            "podAnnotations": {"a": "b"},
            "monitoringPort": 15099,
            "healthPort": 15098,
        },
        {
            "image": "r.example/mesh/install-cni:7-iptables",
            "pull_policy": "Always",
            "args": ["--log_output_level=all:debug", "--log_as_json"],
            "config": {"SLUICE_X": "1", "Y": "true", "MONITORING_PORT": "15099", "SLUICE_HEALTH_ADDRESS": "127.0.0.1:15098"},
            "environment": {"SLUICE_X": "1", "Y": "true"},
            "selinux": {"level": "s0", "type": "spc_t"},
            "annotations": {"a": "b", "prometheus.io/port": "15099", APPARMOR: None},
            "readiness": {"httpGet": {"path": "/readyz", "port": 15098, "host": "127.0.0.1"}},
            "liveness": {"path": "/healthz", "port": 15098, "host": "127.0.0.1"},
        },
    ),
    ("a whole image reference", {"image": "r.example/other:1", "global": {"variant": "distroless"}}, {"image": "r.example/other:1"}),
    ("cluster scope", {"global": {"resourceScope": "cluster"}}, {"no_objects": NAMESPACED}),
    ("namespace scope", {"global": {"resourceScope": "namespace"}}, {"no_objects": OBJECTS - NAMESPACED}),
    ("no policy", {"admissionPolicy": {"enabled": False}}, {"no_objects": {n for n in OBJECTS if "Admission" in n}}),
]

FAILURES = [
    ({"profile": "openshift-ambien"}, "want one of ambient, demo, preview, remote, stable"),
    ({"platform": "eks"}, "want one of gke, k3d, k3s, microk8s, minikube, openshift"),
    ({"compatibilityVersion": "1.2"}, "want one of 1.25, 1.26, 1.27, 1.28, 1.29, 1.30"),
    ({"defaults": {"cniBinDir": "/x"}}, "`defaults` may not be set"),
    ({"uninstall": {"hook": "sometimes"}}, "want auto, always or never"),
    ({"admissionPolicy": {"enabled": "maybe"}}, "want auto, true or false"),
    ({"global": {"resourceScope": "some"}}, "want all, cluster or namespace"),
    ({"backend": "ebpff"}, "want auto, nftables or iptables"),
]

# Values, key of the ConfigMap, its value.
RESOLUTION = [
    ({"profile": "ambient", "ambient": {"enabled": False}}, "AMBIENT_ENABLED", "false"),
    ({"profile": "ambient", "cni": {"ambient": {"enabled": False}}}, "AMBIENT_ENABLED", "false"),
    ({"global": {"profile": "ambient"}}, "AMBIENT_ENABLED", "true"),
    ({"compatibilityVersion": "1.28"}, "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "false"),
    ({"compatibilityVersion": "1.29"}, "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "true"),
    ({"compatibilityVersion": "1.28", "ambient": {"reconcileIptablesOnStartup": True}}, "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "true"),
    ({"platform": "openshift", "cniConfFileName": "mine.conf"}, "CNI_CONF_NAME", "mine.conf"),
    ({"ambient": {"ipv6": False}}, "AMBIENT_IPV6", "false"),
    ({"ambient": {"dnsCapture": False}}, "AMBIENT_DNS_CAPTURE", "false"),
    ({"ambient": {"enablementSelectors": []}}, "AMBIENT_ENABLEMENT_SELECTOR", "[]"),
    ({"excludeNamespaces": []}, "EXCLUDE_NAMESPACES", ""),
]

HOOKS = [
    (-20, "Role", "istio-cni-cleanup"),
    (-20, "ServiceAccount", "istio-cni-cleanup"),
    (-15, "RoleBinding", "istio-cni-cleanup"),
    (-10, "DaemonSet", "istio-cni-node-cleanup"),
    (0, "Job", "istio-cni-node-cleanup-wait"),
]

# 1.7; then the kubelet's.
METRICS = {
    "istio_cni_installs_total",
    "istio_cni_install_ready",
    "istio_cni_repair_pods_repaired_total",
    "istio_cni_plugin_requests_total",
    "nodeagent_reconcile_events_total",
    "ztunnel_connected",
    "container_memory_working_set_bytes",
    # Ours.
    "sluice_stuck_pods",
}
