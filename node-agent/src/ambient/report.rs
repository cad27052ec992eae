//! What people are told: one line a change, in words that say what follows.

use crate::failure::causes;
use crate::record::RecordError;
use crate::source::follow::Told;
use ambient::action::Report;
use ambient::id::PodUid;

/// Logs a report.
pub(super) fn tell(who: Option<(&PodUid, Option<&Told>)>, report: &Report) {
    match who {
        Some((uid, told)) => of_pod(uid, told, report),
        None => of_node(report),
    }
}

fn of_pod(uid: &PodUid, told: Option<&Told>, report: &Report) {
    let facts = told.map(Told::facts);
    let (ns, pod) = (facts.map(|f| f.namespace.as_str()), facts.map(|f| f.name.as_str()));
    let uid = uid.as_str();
    match report {
        Report::Enrolled => tracing::info!(ns, pod, uid, "captured for ztunnel"),
        Report::Unenrolled => tracing::info!(ns, pod, uid, "no longer captured"),
        Report::Stuck { stage, failures, error: reason } => {
            let code = stage.code();
            tracing::error!(
                ns,
                pod,
                uid,
                stage = code,
                failures,
                reason,
                "stuck waiting for {stage}; tried again"
            );
        }
        Report::Recovered(stage) => {
            tracing::info!(ns, pod, uid, stage = stage.code(), "works again: {stage}");
        }
        Report::Drifted { drift } => {
            tracing::error!(ns, pod, uid, drift, "rules were changed and are programmed again");
        }
        Report::Repaired { drift } => {
            tracing::warn!(ns, pod, uid, drift, "rules that had been changed were put right");
        }
        Report::Moved { from, to } => {
            let to = to.map(|netns| netns.to_string());
            tracing::warn!(ns, pod, uid, %from, to, "in another network namespace than before");
        }
        Report::Conflict { netns, owner } => {
            tracing::error!(ns, pod, uid, %netns, owner = owner.as_str(), "seems to be in a network namespace that is another pod's; not believed");
        }
        Report::RulesMayRemain { failures, error: reason } => {
            tracing::error!(
                ns,
                pod,
                uid,
                failures,
                reason,
                "no longer to be captured, but its network namespace, which may have rules in it, is not found; ztunnel goes on serving it, and it is looked for as long as it runs"
            );
        }
        other => of_node(other),
    }
}

fn of_node(report: &Report) {
    match report {
        Report::Silent { session } => tracing::error!(
            session = session.0,
            "ztunnel did not answer in time; the connection was closed, and it gets all pods anew"
        ),
        Report::NoZtunnel => tracing::error!(
            "no ztunnel is connected: ambient pods cannot start, and those that run do not reach anything when theirs has ended; look at the ztunnel pod of this node"
        ),
        Report::ZtunnelBack => tracing::info!("a ztunnel is connected again"),
        Report::SnapshotRefused { session, error } => tracing::error!(
            session = session.0,
            reason = error.as_str(),
            "ztunnel refused the end of the snapshot; the connection was closed"
        ),
        Report::Unasked { session } => tracing::error!(
            session = session.0,
            "ztunnel answered what was not asked; the connection was closed"
        ),
        // About an address that is nobody's by now.
        other => tracing::error!(report = ?other, "about no pod that is known"),
    }
}

/// A record was to be removed.
pub(super) fn forgotten(result: Result<bool, RecordError>) {
    if let Err(error) = result {
        tracing::error!(reason = %causes(&error), "a record of a pod that is gone stays");
    }
}
