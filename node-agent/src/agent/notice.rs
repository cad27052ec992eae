//! What is said of pods in the cluster, by those who know them from records or requests.

use super::Agent;
use crate::notice::State;
use crate::source::kubernetes::object::PodName;
use redirect::pod::Pod;

impl Agent {
    /// Says how a pod stands; of one that the source does not have nobody is told.
    pub(crate) fn say(&self, pod: &Pod, state: State) {
        let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        let Some(told) = self.source.told(&name) else { return };
        if pod.uid.as_ref().is_none_or(|uid| told.uids().contains(uid)) {
            self.notices.set(&told, state);
        }
    }
}
