//! Pods that were captured before the start and that the source has not told of: the API
//! server may be away for long. Nothing is decided about them, and their rules are kept
//! as their records say.

use super::find::is_of;
use super::jobs::Held;
use super::node::Node;
use crate::backend::rules_hash;
use crate::failure::causes;
use crate::metrics::figures::Figures;
use crate::record::{Record, SandboxId};
use ambient::id::PodUid;
use sys::netns::within_pod;
use sys::routing;

/// One of them, in the namespace that its record names.
#[derive(Debug)]
pub(super) struct Untold {
    pub(super) uid: PodUid,
    pub(super) held: Held,
    /// Names of the records that there may be of it.
    pub(super) records: Vec<SandboxId>,
}

/// Looks at them, and puts right what differs.
pub(super) fn keep(node: &Node, figures: &Figures, pods: &[Untold]) {
    for Untold { uid, held, records } in pods {
        let own = |record: &Record| {
            let id = held.netns.id();
            is_of(record, uid.as_str()) && (record.netns.dev, record.netns.ino) == (id.dev, id.ino)
        };
        let mut read = records.iter().filter_map(|name| node.records.read(name).ok().flatten());
        let Some(record) = read.find(own) else { continue };
        let done = within_pod(&held.netns, node.hosts.own(), || put_right(node, &record));
        let (ns, pod, uid) = (&record.pod.namespace, &record.pod.name, uid.as_str());
        match done.map_err(|error| causes(&error)).and_then(|done| done) {
            Ok(None) => {}
            Ok(Some(drift)) => {
                figures.repaired("rules");
                tracing::error!(
                    ns,
                    pod,
                    uid,
                    drift,
                    "rules had been changed and were put right by the pod's record: it is not told of yet"
                );
            }
            Err(reason) => tracing::warn!(
                ns,
                pod,
                uid,
                reason,
                "rules of a pod that is not told of yet cannot be kept"
            ),
        }
    }
}

/// How they differed; `None` when they are as they must be, or must be otherwise by now,
/// which is decided when the pod is told of.
fn put_right(node: &Node, record: &Record) -> Result<Option<String>, String> {
    let ipv6 = routing::ipv6().map_err(|error| causes(&error))?;
    let plan = super::recorded_plan(record, &node.options, ipv6);
    if rules_hash(&plan) != record.rules {
        return Ok(None);
    }
    let diff = node.backend.observe(&plan)?;
    if diff.is_empty() {
        return Ok(None);
    }
    node.backend.program(&plan)?;
    Ok(Some(diff.to_string().lines().collect::<Vec<_>>().join("; ")))
}
