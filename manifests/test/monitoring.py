"""The alerts and the dashboard: their expressions go through Prometheus' own promtool,
and each alert is fired, and kept from firing, by series made for it."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import facts

# Alert, series (labels and values, one a minute), minute, labels it fires with or None.
INSTALLED = 'istio_cni_install_ready{instance="a"}'
REFUSED = 'istio_cni_plugin_requests_total{instance="a",response_code="%s"}'
REPAIRED = 'istio_cni_repair_pods_repaired_total{instance="a",type="repair",result="%s"}'
INSTALLS = 'istio_cni_installs_total{instance="a",result="%s"}'
STUCK = 'sluice_stuck_pods{instance="a",reason="%s"}'
SCENARIOS = [
    ("IstioCNINotInstalled", {INSTALLED: "0x20"}, 10, {"severity": "critical", "instance": "a"}),
    ("IstioCNINotInstalled", {INSTALLED: "0x3 1x20"}, 10, None),
    ("IstioCNINotInstalled", {INSTALLED: "1x8 0x20"}, 10, None),
    ("IstioCNIInstallFailures", {INSTALLS % "COPY_BINARIES_FAILURE": "0+1x40"}, 30, {"severity": "warning", "instance": "a", "result": "COPY_BINARIES_FAILURE"}),
    ("IstioCNIInstallFailures", {INSTALLS % "SUCCESS": "0+9x40"}, 30, None),
    ("IstioCNIInstallFailures", {INSTALLS % "COPY_BINARIES_FAILURE": "0 1x40"}, 30, None),
    ("IstioCNIPodsRefused", {REFUSED % "500": "0+2x40"}, 30, {"severity": "warning", "instance": "a"}),
    ("IstioCNIPodsRefused", {REFUSED % "200": "0+50x40"}, 30, None),
    ("IstioCNIPodsStuck", {STUCK % "no-ztunnel": "0x5 3x20"}, 10, {"severity": "warning", "instance": "a", "reason": "no-ztunnel"}),
    ("IstioCNIPodsStuck", {STUCK % "no-ztunnel": "0x5 3 0x20"}, 10, None),
    ("IstioCNIRepairFails", {REPAIRED % "fail": "0x5 1x40"}, 8, {"severity": "warning", "instance": "a", "type": "repair"}),
    ("IstioCNIRepairFails", {REPAIRED % "success": "0+1x40"}, 8, None),
    ("IstioCNIRepairsOften", {REPAIRED % "success": "0+1x80"}, 70, {"severity": "warning", "instance": "a"}),
    ("IstioCNIRepairsOften", {REPAIRED % "success": "0x5 3x80"}, 70, None),
]


def promtool(program, *arguments):
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    return "" if result.returncode == 0 else (result.stdout + result.stderr)[-800:]


def filled(text, labels):
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)


def check(suite, program, helm):
    values = {"monitoring": {"alerts": {"enabled": True, "labels": {"team": "mesh"}}, "dashboard": {"enabled": True}}}
    rendered = helm.render(values)
    rule = rendered.get("PrometheusRule", "istio-cni")
    suite.equal("alerts: labels", rule["metadata"]["labels"]["team"], "mesh")
    alerts = {alert["alert"]: alert for group in rule["spec"]["groups"] for alert in group["rules"]}
    dashboard = json.loads(rendered.get("ConfigMap", "istio-cni-dashboard")["data"]["sluice.json"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    suite.equal("dashboard: ids once", len(ids), len(set(ids)))

    expressions = {name: alert["expr"] for name, alert in alerts.items()}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expressions[panel["title"]] = target["expr"].replace("$instance", ".*")
    for name, expression in expressions.items():
        used = set(re.findall(r"\b(?:istio_cni|ztunnel|nodeagent|container|sluice)_\w+", expression))
        unknown = used - facts.METRICS
        suite.check(f"{name}: metrics exist", f"unknown {unknown}" if unknown or not used else "")

    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.yaml")
        rules.write_text(json.dumps(rule["spec"]))
        suite.check("alerts: promtool takes them", promtool(program, "check", "rules", str(rules)))
        panels = Path(folder, "panels.yaml")
        records = [{"record": f"r{i}", "expr": expression} for i, expression in enumerate(expressions.values())]
        panels.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": records}]}))
        suite.check("dashboard: promtool takes it", promtool(program, "check", "rules", str(panels)))
        for name, series, minute, labels in SCENARIOS:
            expected = []
            if labels is not None:
                texts = {key: filled(text, labels) for key, text in alerts[name]["annotations"].items()}
                expected = [{"exp_labels": labels, "exp_annotations": texts}]
            test = Path(folder, "test.yaml")
            test.write_text(json.dumps({
                "rule_files": [str(rules)],
                "evaluation_interval": "1m",
                "tests": [{
                    "interval": "1m",
                    "input_series": [{"series": key, "values": value} for key, value in series.items()],
                    "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": name, "exp_alerts": expected}],
                }],
            }))
            fate = "fires" if expected else "stays silent"
            suite.check(f"{name} {fate} with {series}", promtool(program, "test", "rules", str(test)))
    untried = set(alerts) - {name for name, _, _, labels in SCENARIOS if labels}
    suite.check("every alert was fired", f"not tried: {untried}" if untried else "")
