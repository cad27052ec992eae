//! How ambient capture stands at a moment, for the operator.

use crate::metrics::figures::Figures;
use ambient::id::PodUid;
use ambient::machine::{Machine, PodView, SessionView};
use std::collections::BTreeSet;
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub(crate) struct Look {
    /// Every pod that the machine knows, with the time for which it has stood as it
    /// does; wanted or not.
    pub(crate) pods: Vec<(PodView, Option<Duration>)>,
    /// Connected ztunnels, oldest first.
    pub(crate) sessions: Vec<SessionView>,
    /// A pod could be enrolled now.
    pub(crate) ready: bool,
    /// All pods are un-enrolled, or are to be.
    pub(crate) draining: bool,
    /// And that is done.
    pub(crate) drained: bool,
    /// Pods of which something is left somewhere.
    pub(crate) left: BTreeSet<PodUid>,
}

impl Look {
    pub(super) fn take(machine: &Machine, figures: &Figures) -> Self {
        let pods = machine.pods().map(|pod| {
            let since = figures.stands_for(&pod.uid);
            (pod, since)
        });
        Self {
            pods: pods.collect(),
            sessions: machine.sessions().collect(),
            ready: machine.ready(),
            draining: machine.draining(),
            drained: machine.drained(),
            left: machine.left().cloned().collect(),
        }
    }

    /// A pod.
    pub(crate) fn pod(&self, uid: &str) -> Option<&(PodView, Option<Duration>)> {
        self.pods.iter().find(|(pod, _)| pod.uid.as_str() == uid)
    }
}
