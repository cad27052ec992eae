//! Layers that only ambient pods have: ztunnel, kubelet's probes, the annotation.

use super::Walk;
use crate::operator::answer::State;
use crate::record::Record;
use crate::source::Pods as Source;
use ::ambient::machine::PodView;

const REDIRECTION: &str = "ambient.istio.io/redirection";

impl Walk<'_> {
    /// What ambient capture has of the pod.
    pub(super) fn view(&self) -> Option<&PodView> {
        let uid = match (&self.told, &self.record) {
            (Some(told), _) => told.uid(),
            (None, Some(record)) => record.key(),
            (None, None) => return None,
        };
        Some(&self.asked?.live.look?.pod(&uid)?.0)
    }

    pub(super) fn ztunnel(&mut self) -> bool {
        let Some(asked) = self.asked else {
            self.skip(&["ztunnel"], "the agent does not answer, and is who ztunnel answers to");
            return true;
        };
        let Some(look) = asked.live.look else {
            return self.note("ztunnel", Err("ambient mode is off, or does not answer".to_owned()));
        };
        let result = match self.view() {
            None => Err("ambient capture does not know the pod".to_owned()),
            Some(view) if !view.accepted_by.is_empty() => {
                let who = view.accepted_by.iter().map(|id| {
                    let pid = look.sessions.iter().find(|s| s.session == *id).map(|s| s.peer.0);
                    format!("session {}, pid {}", id.0, pid.unwrap_or_default())
                });
                Ok(format!("acknowledged ({})", who.collect::<Vec<_>>().join("; ")))
            }
            Some(_) if look.sessions.is_empty() => {
                Err("no ztunnel is connected to the agent".to_owned())
            }
            Some(view) => {
                let why = match (&view.trouble, view.waiting_for) {
                    (Some((failures, error)), _) => format!("{error} ({failures} times)"),
                    (None, Some(stage)) => format!("waiting for {stage}"),
                    (None, None) => "it has not been told yet".to_owned(),
                };
                Err(format!("no ztunnel that is connected has taken it: {why}"))
            }
        };
        self.note("ztunnel", result)
    }

    pub(super) fn probes(&mut self) {
        let Some(asked) = self.asked else {
            return self.skip(&["probes"], "the agent does not answer, and keeps the host's rules");
        };
        let ports = match (&self.told, &self.record) {
            (Some(told), _) => told.workload().probe_ports.to_vec(),
            (None, Some(Record { ambient: Some(facts), .. })) => facts.probe_ports.clone(),
            _ => Vec::new(),
        };
        if ports.is_empty() {
            return self.say("probes", State::Ok, "kubelet connects to none of its ports");
        }
        let result = (asked.exemption)().and_then(|status| {
            if !status.holds {
                return Err(
                    "the host's rules for kubelet's probes are not as they must be".to_owned()
                );
            }
            if !self.view().is_some_and(|view| view.exempt) {
                return Err(format!("kubelet's connections to ports {ports:?} are not exempted"));
            }
            Ok(format!(
                "kubelet reaches ports {ports:?} past ztunnel; it is known by {}",
                status.kubelet
            ))
        });
        self.note("probes", result);
    }

    pub(super) fn annotation(&mut self) {
        let (Some(asked), Some(told)) = (self.asked, &self.told) else {
            return self.skip(&["annotation"], "the pod as the API has it is not known");
        };
        if matches!(asked.live.source, Source::Directory(_)) {
            return self.skip(&["annotation"], "pods come from manifests, which nobody writes to");
        }
        let result = match told.facts().annotation(REDIRECTION) {
            Some("enabled") => Ok("enabled".to_owned()),
            Some(other) => {
                Err(format!("{REDIRECTION} is {other:?}: peers do not send through ztunnel"))
            }
            None => Err(format!("{REDIRECTION} is not there: peers do not send through ztunnel")),
        };
        self.note("annotation", result);
    }
}
