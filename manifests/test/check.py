#!/usr/bin/env python3
"""Tests what the chart renders. Called by `scripts/manifests test`, which has the tools.

Usage: check.py --helm HELM --admission ADMISSION --promtool PROMTOOL --plain DIR

Renders the chart with the sets of values below, validates every object against the
schemas of Kubernetes 1.25 to 1.37, and compares with the facts of
../shared/reference/istio-cni.md section 8, which are written down here. Runs the
admission policy through the API server's own code. The last line is
`N passed, N failed`.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import admission  # noqa: E402
import facts  # noqa: E402
import monitoring  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "manifests/chart"
NAMESPACE = "istio-system"
VAP_API = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
# Kinds that are not Kubernetes' own, so that it has no schema for them.
FOREIGN = {"PrometheusRule", "NetworkAttachmentDefinition"}
KUBERNETES = [f"1.{minor}" for minor in range(25, 38)]


class Suite:
    """Counts, and says what failed."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, problem):
        """One test: `problem` is empty or says what is wrong."""
        if problem:
            self.failed += 1
            print(f"FAIL {name}: {problem}")
        else:
            self.passed += 1

    def equal(self, name, got, want):
        self.check(name, "" if got == want else f"got {got!r}, want {want!r}")


class Rendered:
    """Objects of one rendering, by kind and name."""

    def __init__(self, text):
        self.objects = [document for document in yaml.safe_load_all(text) if document]
        self.by_name = {(o["kind"], o["metadata"]["name"]): o for o in self.objects}

    def get(self, kind, name):
        return self.by_name.get((kind, name))

    def names(self):
        return sorted(f"{kind}/{name}" for kind, name in self.by_name)

    @property
    def agent(self):
        return self.get("DaemonSet", "istio-cni-node")

    @property
    def pod(self):
        return self.agent["spec"]["template"]

    @property
    def container(self):
        return self.pod["spec"]["containers"][0]

    @property
    def config(self):
        return self.get("ConfigMap", "istio-cni-config")["data"]


class Helm:
    def __init__(self, program):
        self.program = program

    def run(self, *arguments):
        return subprocess.run([self.program, *arguments], capture_output=True, text=True, timeout=120, check=False)

    def template(self, values, kubernetes="1.37", *arguments):
        """Runs `helm template`; values are a dict, given as a values file.

        As JSON: a key such as Y, bare, is a truth value in Helm's YAML.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump(values, file)
            file.flush()
            api = ["--api-versions", VAP_API] if int(kubernetes.split(".")[1].split("-")[0]) >= 30 else []
            version = kubernetes if kubernetes.count(".") > 1 else f"{kubernetes}.0"
            return self.run(
                "template", "istio-cni", str(CHART), "--namespace", NAMESPACE, "--values", file.name,
                "--kube-version", f"v{version}", *api, *arguments,
            )

    def render(self, values, kubernetes="1.37", *arguments):
        result = self.template(values, kubernetes, *arguments)
        if result.returncode:
            raise SystemExit(f"helm template failed with {values}:\n{result.stderr}")
        return Rendered(result.stdout)


def validate(suite, name, rendered, versions):
    """Every object against the schemas of these versions; one test an object."""
    for obj in rendered.objects:
        kind = obj["kind"]
        if kind in FOREIGN:
            continue
        problems = []
        for version in versions:
            try:
                kubernetes_validate.validate(obj, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{version}: {'.'.join(map(str, error.path))}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError:
                problems.append(f"{version}: no {obj['apiVersion']} {kind}")
        suite.check(f"{name}: schema of {kind}/{obj['metadata']['name']}", "; ".join(problems[:2]))


def check_generic(suite, name, rendered):
    """What holds for every rendering."""
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in rendered.objects]
    suite.equal(f"{name}: no object twice", len(names), len(set(names)))
    for obj in rendered.objects:
        label = f"{name}: {obj['kind']}/{obj['metadata']['name']}"
        missing = sorted(set(facts.COMMON_LABELS) - set(obj["metadata"].get("labels", {})))
        suite.check(f"{label}: labels", f"missing {missing}" if missing else "")
        wild = [rule for rule in obj.get("rules") or [] if "*" in str(rule)]
        suite.check(f"{label}: no wildcard", str(wild) if wild else "")
    for obj in rendered.objects:
        if obj["kind"] not in ("DaemonSet", "Job"):
            continue
        spec = obj["spec"]["template"]["spec"]
        declared, used = {volume["name"] for volume in spec.get("volumes", [])}, set()
        for container in spec["containers"] + spec.get("initContainers", []):
            label = f"{name}: {obj['metadata']['name']}/{container['name']}"
            used |= {mount["name"] for mount in container.get("volumeMounts", [])}
            context = container["securityContext"]
            suite.equal(f"{label}: not privileged", context.get("privileged", False), False)
            suite.equal(f"{label}: drops all", context["capabilities"]["drop"], ["ALL"])
            suite.equal(f"{label}: read-only root", context["readOnlyRootFilesystem"], True)
        suite.equal(f"{name}: {obj['metadata']['name']}: volumes, all used", used, declared)
    bound = {(o["roleRef"]["kind"], o["roleRef"]["name"]) for o in rendered.objects if o["kind"].endswith("Binding") and "roleRef" in o}
    roles = {(o["kind"], o["metadata"]["name"]) for o in rendered.objects if o["kind"] in ("Role", "ClusterRole")}
    suite.equal(f"{name}: every role is bound", bound, roles)


def check_agent(suite, name, rendered, want):
    """The facts of one set of values; `want` says where it differs from the defaults."""
    objects = (facts.OBJECTS | set(want.get("more_objects", ()))) - set(want.get("no_objects", ()))
    suite.equal(f"{name}: objects", rendered.names(), sorted(objects))
    if not rendered.agent:
        return
    config = {**facts.CONFIG, **want.get("config", {})}
    suite.equal(f"{name}: ConfigMap", rendered.config, {key: value for key, value in config.items() if value is not None})
    pod, container = rendered.pod, rendered.container
    spec = pod["spec"]
    suite.equal(f"{name}: selector", rendered.agent["spec"]["selector"], {"matchLabels": {"k8s-app": "istio-cni-node"}})
    for key, value in facts.POD_LABELS.items():
        suite.equal(f"{name}: pod label {key}", pod["metadata"]["labels"].get(key), value)
    annotations = dict(pod["metadata"]["annotations"])
    suite.check(f"{name}: checksum", "" if re.fullmatch("[0-9a-f]{64}", annotations.pop("checksum/config", "")) else "none")
    wanted = {**facts.POD_ANNOTATIONS, **want.get("annotations", {})}
    suite.equal(f"{name}: pod annotations", annotations, {key: value for key, value in wanted.items() if value is not None})
    suite.equal(f"{name}: pod", {key: spec.get(key) for key in facts.POD_SPEC}, {**facts.POD_SPEC, **want.get("spec", {})})
    suite.equal(f"{name}: names", (container["name"], container["command"]), ("install-cni", ["install-cni"]))
    suite.equal(f"{name}: image", container["image"], want.get("image", facts.IMAGE))
    suite.equal(f"{name}: pull policy", container.get("imagePullPolicy"), want.get("pull_policy"))
    suite.equal(f"{name}: arguments", container["args"], want.get("args", ["--log_output_level=info"]))
    suite.equal(f"{name}: environment", environment(container), {**facts.ENVIRONMENT, **want.get("environment", {})})
    suite.equal(f"{name}: envFrom", container["envFrom"], [{"configMapRef": {"name": "istio-cni-config"}}])
    suite.equal(f"{name}: resources", container.get("resources"), want.get("resources", facts.RESOURCES))
    suite.equal(f"{name}: readiness", container["readinessProbe"], want.get("readiness", facts.READINESS))
    liveness = container.get("livenessProbe")
    suite.equal(f"{name}: liveness", liveness and liveness["httpGet"], want.get("liveness", facts.LIVENESS))
    suite.equal(f"{name}: capabilities", sorted(container["securityContext"]["capabilities"]["add"]), sorted(want.get("capabilities", facts.CAPABILITIES)))
    context = {key: container["securityContext"].get(key) for key in facts.CONTEXT}
    suite.equal(f"{name}: user", context, facts.CONTEXT)
    suite.equal(f"{name}: seLinuxOptions", container["securityContext"].get("seLinuxOptions"), want.get("selinux"))
    suite.equal(f"{name}: appArmorProfile", container["securityContext"].get("appArmorProfile"), want.get("apparmor", {"type": "Unconfined"}))
    suite.equal(f"{name}: mounts", mounts(spec, container), {**facts.MOUNTS, **want.get("mounts", {})})


def environment(container):
    out = {}
    for variable in container["env"]:
        out[variable["name"]] = variable.get("value") or variable["valueFrom"]["fieldRef"]["fieldPath"]
    return out


def mounts(spec, container):
    """mountPath -> (path on the host, its type, options)."""
    volumes = {volume["name"]: volume["hostPath"] for volume in spec["volumes"]}
    out = {}
    for mount in container["volumeMounts"]:
        host = volumes[mount["name"]]
        options = sorted(f"{k}={v}" for k, v in mount.items() if k not in ("name", "mountPath"))
        out[mount["mountPath"]] = (host["path"], host.get("type"), *options)
    # A mode without a mount says None.
    return {**dict.fromkeys(facts.OPTIONAL_MOUNTS), **out}


def check_rbac(suite, name, rendered, want):
    """Every rule, as (groups, resources, names, verbs)."""
    for role, rules in want.items():
        found = rendered.get("ClusterRole", role)
        got = found and [
            (r["apiGroups"], r["resources"], r.get("resourceNames"), r["verbs"]) for r in found["rules"]
        ]
        suite.equal(f"{name}: rules of {role}", got, rules)


def check_hook(suite, helm):
    """The uninstall hook: there when a cluster is, never in what could be applied as it is."""
    for values in ({}, {"uninstall": {"hook": "never"}}):
        rendered = helm.render(values)
        hooks = [o["metadata"]["name"] for o in rendered.objects if "helm.sh/hook" in o["metadata"].get("annotations", {})]
        suite.equal(f"helm template with {values} has no hook", hooks, [])
    rendered = helm.render({"uninstall": {"hook": "always"}})
    hooks = sorted(
        (int(o["metadata"]["annotations"]["helm.sh/hook-weight"]), o["kind"], o["metadata"]["name"])
        for o in rendered.objects
        if o["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"
    )
    suite.equal("hook: objects in Helm's order", hooks, facts.HOOKS)
    for weight, kind, name in hooks:
        policy = rendered.get(kind, name)["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        suite.equal(f"hook: {kind}/{name} goes when it has worked", policy, "before-hook-creation,hook-succeeded")
    nodes = rendered.get("DaemonSet", "istio-cni-node-cleanup")["spec"]["template"]["spec"]
    suite.equal("hook: no token on the nodes", nodes["automountServiceAccountToken"], False)
    suite.equal("hook: on every node", (nodes["tolerations"], nodes.get("affinity")), ([{"operator": "Exists"}], None))
    suite.equal("hook: needs no CNI", nodes["hostNetwork"], True)
    first, hold = nodes["initContainers"][0], nodes["containers"][0]
    suite.equal("hook: cleans before it counts as ready", first["command"], ["/usr/local/bin/sluice", "cleanup"])
    suite.equal("hook: holds", hold["command"], ["/usr/local/bin/sluice", "cleanup", "--hold"])
    # What holds takes out again what a restarted agent installs: it needs the same.
    for container in (first, hold):
        who = f"hook: {container['name']}"
        suite.equal(f"{who}: power on the nodes", container["securityContext"]["capabilities"], {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]})
        suite.equal(f"{who}: what it writes to", mounts(nodes, container), facts.MOUNTS | {"/host/proc": None})
        suite.equal(f"{who}: knows how it was installed", container["envFrom"], [{"configMapRef": {"name": "istio-cni-config", "optional": True}}])
    role = rendered.get("Role", "istio-cni-cleanup")["rules"]
    suite.equal(
        "hook: the Job reads one DaemonSet", role,
        [{"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["istio-cni-node-cleanup"], "verbs": ["get"]}],
    )
    job = rendered.get("Job", "istio-cni-node-cleanup-wait")["spec"]
    wait = job["template"]["spec"]["containers"][0]
    suite.equal("hook: the Job's limit is after its program's", (job["activeDeadlineSeconds"], wait["command"][-1]), (180, "--timeout=120s"))
    context = wait["securityContext"]
    got = context["runAsNonRoot"], context["capabilities"], wait.get("volumeMounts")
    suite.equal("hook: what waits has no power", got, (True, {"drop": ["ALL"]}, None))
    # Found by the plugin as the agent's own, whose pods always pass (reference 2.4).
    for name in ("istio-cni-node-cleanup", "istio-cni-node-cleanup-wait"):
        suite.check(f"hook: {name} passes the plugin", "" if name.startswith("istio-cni-node-") else "another name")


def check_failures(suite, helm):
    """Values that must not render, and what the message must say."""
    for values, part in facts.FAILURES:
        result = helm.template(values)
        said = part in result.stderr
        suite.check(f"{values} fails", "" if result.returncode and said else f"status {result.returncode}: {result.stderr[-300:]}")


def check_resolution(suite, helm):
    """Which value wins (reference 8.1)."""
    rolls = [helm.render(v).pod["metadata"]["annotations"]["checksum/config"] for v in ({}, {}, {"excludeNamespaces": ["a"]})]
    suite.equal("equal values, equal checksum", rolls[0], rolls[1])
    suite.check("a change of the ConfigMap rolls the DaemonSet", "" if rolls[0] != rolls[2] else "same checksum")
    root = helm.render({"ambient": {"enabled": True}, "tolerations": []})
    below = helm.render({"cni": {"ambient": {"enabled": True}, "tolerations": []}})
    suite.equal("cni.x is x", root.objects, below.objects)
    suite.equal("an empty list is a value", root.pod["spec"].get("tolerations"), None)
    for values, key, want in facts.RESOLUTION:
        suite.equal(f"{values}: {key}", helm.render(values).config.get(key), want)
    gke = helm.render({"platform": "gke"}, "1.35.1-gke.100")
    suite.equal("gke: bin dir by version", mounts(gke.pod["spec"], gke.container)["/host/opt/cni/bin"][0], "/home/kubernetes/bin")
    one = helm.render({"platform": "gke"}, "1.35")
    suite.equal("gke elsewhere: bin dir", mounts(one.pod["spec"], one.container)["/host/opt/cni/bin"][0], "/opt/cni/bin")
    notes = helm.run("install", "istio-cni", str(CHART), "--dry-run=client", "--namespace", NAMESPACE, "--set", "ambiant.enabled=true,repair.podz=1")
    suite.check("a typing error is pointed at", "" if "nothing reads these values: ambiant, repair.podz" in notes.stdout else notes.stdout[-300:] + notes.stderr)


def check_plain(suite, fresh):
    """What is committed is what the chart renders."""
    committed = ROOT / "manifests/plain"
    names = sorted(path.name for path in Path(fresh).iterdir())
    suite.equal("plain: files", sorted(path.name for path in committed.glob("*.yaml")), names)
    for name in names:
        same = (committed / name).exists() and (committed / name).read_text() == (Path(fresh) / name).read_text()
        suite.check(f"plain/{name} is up to date", "" if same else "run scripts/manifests plain and commit it")
    for name in ("install.yaml", "ambient.yaml"):
        suite.check(f"plain/{name} uninstalls nothing", "" if "cleanup" not in (Path(fresh) / name).read_text() else "cleanup in it")
    overlay = yaml.safe_load((ROOT / "manifests/istioctl-overlay.yaml").read_text())
    suite.equal("istioctl overlay changes the image alone", overlay["spec"], {"components": {"cni": {"enabled": True}}, "values": {"cni": {"image": facts.IMAGE}}})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", required=True)
    parser.add_argument("--admission", required=True)
    parser.add_argument("--promtool", required=True)
    parser.add_argument("--plain", required=True)
    arguments = parser.parse_args()
    suite, helm = Suite(), Helm(arguments.helm)

    lint = helm.run("lint", "--strict", str(CHART))
    suite.check("helm lint", "" if lint.returncode == 0 else lint.stdout + lint.stderr)
    for name, values, want in facts.CASES:
        # The chart renders otherwise from 1.30 on, where the admission policy is served.
        for versions in (KUBERNETES[:5], KUBERNETES[5:]):
            rendered = helm.render(values, versions[-1])
            case = f"{name} ({versions[0]}-{versions[-1]})"
            validate(suite, case, rendered, versions)
            check_generic(suite, case, rendered)
        check_agent(suite, name, rendered, want)
        check_rbac(suite, name, rendered, want.get("rbac", {}))
    old = helm.render({}, "1.29")
    suite.equal("no policy before 1.30", [n for n in old.names() if "Admission" in n], [])
    suite.equal("no appArmorProfile before 1.30", old.container["securityContext"].get("appArmorProfile"), None)
    check_hook(suite, helm)
    check_failures(suite, helm)
    check_resolution(suite, helm)
    monitoring.check(suite, arguments.promtool, helm)
    check_plain(suite, arguments.plain)
    policy = helm.render({}).get("ValidatingAdmissionPolicy", f"istio-cni-{NAMESPACE}")
    admission.check(suite, arguments.admission, policy)

    print(f"{suite.passed} passed, {suite.failed} failed")
    return 1 if suite.failed else 0


if __name__ == "__main__":
    sys.exit(main())
