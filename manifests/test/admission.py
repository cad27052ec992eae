"""Cases for the admission policy, decided by the API server's own code (admission/)."""

import copy
import json
import subprocess
import tempfile
from pathlib import Path

AGENT = "system:serviceaccount:istio-system:istio-cni"
OWN = "ambient.istio.io/redirection"
LABEL = "cni.istio.io/uninitialized"


def pod(node="node-a", labels=None, annotations=None, phase="Running", finalizers=None):
    metadata = {"name": "p", "namespace": "shop", "uid": "u"}
    for key, value in (("labels", labels), ("annotations", annotations), ("finalizers", finalizers)):
        if value is not None:
            metadata[key] = value
    spec = {"containers": [{"name": "app", "image": "i"}]}
    if node:
        spec["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": phase}}


# What the agent writes, as one of its own tests has it.
STUCK = json.loads(Path(__file__).with_name("condition.json").read_text())
READY = {"type": "Ready", "status": "True", "lastProbeTime": None, "lastTransitionTime": "2026-11-20T08:00:00Z"}


def conditions(pod, *conditions, **status):
    """The pod with these conditions, and what else its status has."""
    return {**pod, "status": {**pod["status"], **status, "conditions": list(conditions)}}


def case(name, old, new, refused=None, **more):
    """`refused`: part of the message, or None for an allowed request."""
    return {
        "name": name, "operation": "UPDATE", "resource": "pods", "subresource": "status", "user": AGENT, "node": "node-a",
        "allowed": refused is None, "message": refused or "", "old": old, "new": new, **more,
    }


def cases():
    plain = pod(labels={"app": "x"}, annotations={"a": "1"})
    enrolled = pod(labels={"app": "x"}, annotations={"a": "1", OWN: "enabled"})
    bare = pod()
    other = pod("node-b")
    annotation, label, where = "no annotation but " + OWN, "no label but " + LABEL, "'node-a' may not write to pods of another node"
    verb, status = "patch a pod's status subresource or delete a pod", "nor its status but for the condition " + STUCK["type"]
    ready, well = conditions(enrolled, READY), {**STUCK, "status": "True", "reason": "Captured", "message": ""}

    def grown(start, **metadata):
        changed = copy.deepcopy(start)
        for key, value in metadata.items():
            changed["metadata"].setdefault(key, {}).update(value)
        return changed

    delete = {"operation": "DELETE", "subresource": ""}
    return [
        case("own node: annotation added", plain, enrolled),
        case("own node: annotation changed", enrolled, grown(plain, annotations={OWN: "pending"})),
        case("own node: annotation removed", enrolled, plain),
        case("own node: first annotation of a pod", bare, grown(bare, annotations={OWN: "enabled"})),
        case("own node: last annotation removed", grown(bare, annotations={OWN: "enabled"}), bare),
        case("own node: label added", plain, grown(plain, labels={LABEL: "true"})),
        case("own node: first label of a pod", bare, grown(bare, labels={LABEL: "true"})),
        case("own node: nothing changed", plain, plain),
        case("own node: both", bare, grown(bare, labels={LABEL: "true"}, annotations={OWN: "x"})),
        case("own node: pod deleted", plain, None, **delete),
        case("other node: annotation", other, grown(other, annotations={OWN: "enabled"}), where),
        case("other node: label", other, grown(other, labels={LABEL: "true"}), where),
        case("other node: pod deleted", other, None, where, **delete),
        case("no node yet", pod(None), grown(pod(None), annotations={OWN: "x"}), where),
        case("no node yet: pod deleted", pod(None), None, where, **delete),
        case("another annotation added", plain, grown(plain, annotations={"b": "1"}), annotation),
        case("another annotation beside ours", plain, grown(enrolled, annotations={"sidecar.istio.io/status": "{}"}), annotation),
        case("another annotation changed", plain, grown(plain, annotations={"a": "2"}), annotation),
        case("another annotation removed", plain, pod(labels={"app": "x"}), annotation),
        case("another label added", plain, grown(plain, labels={"role": "admin"}), label),
        case("another label changed", plain, grown(plain, labels={"app": "y"}), label),
        case("another label removed", plain, pod(annotations={"a": "1"}), label),
        case("a key that only looks like ours", plain, grown(plain, annotations={OWN + "x": "1"}), annotation),
        case("the status changed", plain, {**plain, "status": {"phase": "Succeeded"}}, status),
        case("condition added", ready, conditions(enrolled, READY, STUCK)),
        case("condition added before the others", ready, conditions(enrolled, STUCK, READY)),
        case("condition changed, annotation too", conditions(plain, READY, STUCK), conditions(enrolled, READY, well)),
        case("condition removed", conditions(enrolled, READY, STUCK), ready),
        case("first condition of a pod", plain, conditions(plain, STUCK)),
        case("last condition removed", conditions(plain, STUCK), plain),
        case("condition on another node", conditions(other, READY), conditions(other, READY, STUCK), where),
        case("condition of the kubelet's changed", ready, conditions(enrolled, {**READY, "status": "False"}, STUCK), status),
        case("condition of the kubelet's removed", ready, conditions(enrolled, STUCK), status),
        case("another condition added", ready, conditions(enrolled, READY, STUCK, {**STUCK, "type": STUCK["type"] + "x"}), status),
        case("condition beside another change", ready, conditions(enrolled, READY, STUCK, podIP="10.0.0.1"), status),
        case("condition beside a removal", conditions(enrolled, READY, podIP="10.0.0.1"), conditions(enrolled, READY, STUCK), status),
        case("a finalizer added", bare, pod(finalizers=["x/y"]), status),
        case("a finalizer removed", pod(finalizers=["x/y"]), bare, status),
        case("the pod itself, not its status", plain, enrolled, verb, subresource=""),
        case("a pod made", None, plain, verb, operation="CREATE", subresource=""),
        case("an eviction", None, plain, verb, operation="CREATE", subresource="eviction"),
        case("a new binding", None, plain, verb, operation="CREATE", subresource="binding"),
        case("exec", None, plain, verb, operation="CONNECT", subresource="exec"),
        case("ephemeral containers", plain, plain, verb, subresource="ephemeralcontainers"),
        case("a token of no node", plain, enrolled, "must be bound to a node", node=""),
        case("a token of no node, pod without one", pod(None), pod(None), "must be bound to a node", node=""),
        case("somebody else", other, grown(other, annotations={"b": "1"}), user="system:serviceaccount:kube-system:job-controller", node=""),
        case("a namesake elsewhere", other, grown(other, annotations={"b": "1"}), user="system:serviceaccount:evil:istio-cni", node=""),
        case("a kubelet", other, grown(other, annotations={"b": "1"}), user="system:node:node-b", node=""),
    ]


def check(suite, program, policy):
    """One test a case."""
    if policy is None:
        suite.check("admission policy", "not rendered")
        return
    table = cases()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "policy.json"), Path(folder, "cases.json")
        files[0].write_text(json.dumps(policy))
        files[1].write_text(json.dumps(table))
        result = subprocess.run([program, *map(str, files)], capture_output=True, text=True, timeout=120, check=False)
    if result.returncode:
        suite.check("admission policy", f"status {result.returncode}: {result.stderr}")
        return
    lines = result.stdout.splitlines()
    for name in (one["name"] for one in table):
        problems = [line.removeprefix(f"FAIL {name}: ") for line in lines if line.startswith(f"FAIL {name}: ")]
        answered = problems or f"ok {name}" in lines
        suite.check(f"admission: {name}", "; ".join(problems) if answered else "no result")
