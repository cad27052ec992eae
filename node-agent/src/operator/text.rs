//! Answers for people: aligned, without colours, one thing a line.

use super::answer::{Ambient, Drain, Pods, Status, Verify};
use std::fmt::Write;

/// What a cell without a value has.
const NONE: &str = "-";

/// Digits of a hash that are shown.
const HASH: usize = 8;

/// Columns as wide as their widest cell, two blanks apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Cannot fail: it is a string.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(|cell| if cell.is_empty() { NONE } else { cell }.to_owned()).into()
}

/// `90`, `12m`, `3h`, `2d`: as kubectl has it.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Lines of others, which may come from a cluster, with nothing in them that a
/// terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `sluice pods`.
pub(super) fn pods(answer: &Pods) -> String {
    let mut rows = vec![row([
        "POD", "MODE", "BACKEND", "STANDING", "SINCE", "ZTUNNEL", "RULES", "OUT", "IN", "DNS",
        "NETNS", "REASON",
    ])];
    for pod in &answer.pods {
        let since = pod.since_seconds.map(age).unwrap_or_default();
        let ztunnel = pod.ztunnel.as_ref().map(|z| z.state.clone()).unwrap_or_default();
        let rules = pod.rules.as_ref().map_or_else(String::new, |rules| {
            let hash: String = rules.hash.chars().take(HASH).collect();
            rules.generation.map_or_else(|| hash.clone(), |number| format!("{hash}/{number}"))
        });
        let count = |of: fn(&super::answer::Captured) -> u64| {
            pod.captured.as_ref().map(|c| of(c).to_string()).unwrap_or_default()
        };
        let netns = pod.netns.map(|netns| netns.ino.to_string()).unwrap_or_default();
        let reason = pod.reason.as_deref().map(clean).unwrap_or_default();
        let mut cells = row([
            &format!("{}/{}", pod.namespace, pod.name),
            &pod.mode,
            pod.backend.as_deref().unwrap_or_default(),
            &pod.standing,
            &since,
            &ztunnel,
            &rules,
            &count(|c| c.outbound),
            &count(|c| c.inbound),
            &count(|c| c.dns),
            &netns,
        ]);
        cells.push(reason);
        rows.push(cells);
    }
    table(&rows)
}

/// `sluice verify`.
pub(super) fn verify(answer: &Verify) -> String {
    let uid = answer.uid.as_deref().unwrap_or("unknown");
    let mut text =
        format!("pod {}/{} (uid {uid}), mode {}\n", answer.namespace, answer.name, answer.mode);
    let layers = answer.layers.iter().map(|layer| {
        vec![format!("  {}", layer.name), layer.state.text().to_owned(), clean(&layer.why)]
    });
    text.push_str(&table(&layers.collect::<Vec<_>>()));
    let last = match (answer.verdict.as_str(), &answer.broken) {
        ("broken", Some(layer)) => {
            format!("{layer} is broken: {}", answer.next.as_deref().unwrap_or("see above"))
        }
        ("outside", _) => "nothing of the pod is to be captured".to_owned(),
        ("incomplete", _) => "nothing is seen to be broken, and not everything was seen".to_owned(),
        (_, _) => "captured".to_owned(),
    };
    text.push_str(&last);
    text.push('\n');
    text
}

/// `sluice status`.
pub(super) fn status(answer: &Status) -> String {
    let mut rows = Vec::new();
    let mut say = |what: &str, how: String| rows.push(vec![what.to_owned(), clean(&how)]);
    say("ready", if answer.ready { "yes" } else { "NO" }.to_owned());
    say(
        "agent",
        format!("version {}, pid {}, up {}", answer.version, answer.pid, age(answer.up_seconds)),
    );
    for check in answer.conditions.iter().chain(&answer.loops) {
        let how = check.error.as_ref().map_or_else(|| "ok".to_owned(), |e| format!("NO: {e}"));
        say(&check.name, how);
    }
    let backend = &answer.backend;
    let proof = backend.error.as_ref().map(|error| format!("does NOT work: {error}"));
    let proof = proof.or_else(|| backend.proof.clone()).unwrap_or_default();
    say("backend", format!("{} ({}): {proof}", backend.name, backend.with));
    let source = &answer.source;
    let behind = source.behind.as_ref().map(|b| format!(", behind: {b}")).unwrap_or_default();
    let complete = if source.complete { "" } else { ", NOT complete yet" };
    say(
        "source",
        format!(
            "{}: {} pods, {} namespaces{complete}{behind}",
            source.name, source.pods, source.namespaces
        ),
    );
    say("records", format!("{} sandboxes captured", answer.records));
    say("escaped", format!("{} now, {} since the start", answer.escaped_now, answer.escaped_total));
    let reasons = answer.unverified.iter().map(|(why, count)| format!("{count} {why}"));
    let reasons = reasons.collect::<Vec<_>>().join(", ");
    let reasons = if reasons.is_empty() { "no pod".to_owned() } else { reasons };
    say("unverified", reasons);
    match &answer.ambient {
        None => say("ambient", "off".to_owned()),
        Some(ambient) => self::ambient(ambient, &mut say),
    }
    table(&rows)
}

/// What `sluice status` says of ambient mode.
fn ambient(ambient: &Ambient, say: &mut impl FnMut(&str, String)) {
    let word = match (ambient.drained, ambient.draining, ambient.ready) {
        (true, ..) => "DRAINED, until the agent starts anew",
        (_, true, _) => "DRAINING",
        (.., true) => "ready",
        _ => "NOT ready: no ztunnel has its pods",
    };
    say("ambient", format!("{word}; {} of {} pods verified", ambient.verified, ambient.pods));
    for ztunnel in &ambient.ztunnels {
        let live = if ztunnel.live { "live" } else { "has not all pods yet" };
        let newest = if ztunnel.newest { ", gets new pods" } else { "" };
        say(
            "ztunnel",
            format!(
                "session {}, pid {}: {live}{newest}, {} pods taken, {} refused, {} messages unanswered",
                ztunnel.session, ztunnel.pid, ztunnel.taken, ztunnel.refused, ztunnel.unanswered
            ),
        );
    }
    match (&ambient.host_rules, &ambient.host_rules_error) {
        (Some(rules), _) => {
            let hold = if rules.hold { "hold" } else { "do NOT hold" };
            let ahead = if rules.ahead.is_empty() {
                String::new()
            } else {
                format!("; chains of others come first: {}", rules.ahead.join(", "))
            };
            say("kubelet", format!("{}: {}", rules.kubelet, rules.kubelet_is));
            say(
                "host rules",
                format!("{hold}; {} exempted, {} repairs{ahead}", rules.elements, rules.repairs),
            );
        }
        (None, why) => {
            say("host rules", format!("NOT there: {}", why.as_deref().unwrap_or("unknown")));
        }
    }
}

/// The end of `sluice drain`.
pub(super) fn drained(answer: &Drain) -> String {
    let sidecars = match answer.sidecars {
        0 => String::new(),
        count => format!("; {count} pods captured for their sidecars are not touched"),
    };
    if !answer.ambient {
        return format!("ambient mode is off: there is nothing to drain{sidecars}\n");
    }
    if answer.drained {
        return format!(
            "drained: nothing of any ambient pod is left on this node, until the agent starts anew{sidecars}\n"
        );
    }
    let rows = answer.left.iter().map(|left| {
        vec![format!("  {}", clean(&left.pod)), format!("waits for {}", clean(&left.waits_for))]
    });
    format!(
        "NOT drained, {} pods are left{sidecars}:\n{}",
        answer.left.len(),
        table(&rows.collect::<Vec<_>>())
    )
}

#[cfg(test)]
mod tests {
    use super::super::answer::{Captured, Layer, Pod, Rules, State};
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_reaches_the_terminal() {
        let pod = |name: &str, reason: Option<&str>| Pod {
            namespace: "shop".into(),
            name: name.into(),
            mode: "sidecar".into(),
            standing: "verified".into(),
            rules: Some(Rules { hash: "0123456789abcdef".into(), generation: Some(7) }),
            captured: Some(Captured { outbound: 12, inbound: 0, dns: 3 }),
            reason: reason.map(ToOwned::to_owned),
            ..Pod::default()
        };
        let pods = vec![pod("a", None), pod("a-long-one", Some("\u{1b}[31mred\nline"))];
        let text = super::pods(&Pods { pods, ..Pods::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("01234567/7  12   0   3"), "{text}");
        let at = |line: &str, what: &str| line.find(what).unwrap();
        assert_eq!(at(lines[0], "MODE"), at(lines[1], "sidecar"));
        assert_eq!(at(lines[1], "sidecar"), at(lines[2], "sidecar"));
        assert!(!text.contains('\u{1b}') && lines.iter().all(|line| line.trim_end() == *line));
    }

    #[test]
    fn a_broken_layer_is_named() {
        let layer = |name: &str, state| Layer { name: name.into(), state, why: "why".into() };
        let answer = Verify {
            verdict: "broken".into(),
            broken: Some("rules".into()),
            next: Some("do this".into()),
            layers: vec![layer("record", State::Ok), layer("rules", State::Broken)],
            ..Verify::default()
        };
        let text = super::verify(&answer);
        assert!(text.contains("  rules   BROKEN  why\n"), "{text}");
        assert!(text.ends_with("rules is broken: do this\n"), "{text}");
    }
}
