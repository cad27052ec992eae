//! What the machine asks for, started.

use super::{Driver, Due};
use crate::ambient::find::{self, Search};
use crate::ambient::node::record_name;
use crate::ambient::report;
use crate::source::follow::Told;
use ambient::action::{Action, Message, Report};
use ambient::id::{NetnsId, PodUid, SessionId, StepId};
use std::time::{Duration, Instant};
use sys::probe::Ports;

impl Driver {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Find { step, uid } => self.find(step, uid),
            Action::Program { step, uid, netns, .. } => self.program(step, &uid, netns),
            Action::Unprogram { step, uid, netns } => {
                let held = self.held.get(&netns).cloned();
                let records = self.roster.records(&uid).cloned().collect();
                self.steps.unprogram(step, &uid, netns, held, records);
            }
            Action::Release(netns) => {
                self.held.remove(&netns);
                self.offered.remove(&netns);
                self.audits.released(netns);
            }
            Action::Forget(uid) => self.forget(&uid),
            Action::Send { session, message } => self.send(session, message),
            Action::Close(session) => self.ztunnels.close(session),
            Action::SetProbe { step, ip, ports, .. } => self.steps.set_probe(step, ip, ports),
            Action::ClearProbe { step, ip } => self.steps.clear_probe(step, ip),
            Action::Annotate { step, uid, value } => {
                let told = self.roster.told(&uid);
                self.steps.annotate(step, uid, value, told);
            }
            Action::Answer { request, result } => {
                self.timers.cancel(&Due::Request(request));
                if let Some(reply) = self.requests.remove(&request) {
                    // Who asked may be gone.
                    drop(reply.try_send(result));
                }
            }
            Action::Timer { timer, delay, jitter } => {
                let more =
                    if jitter { delay.mul_f64(fastrand::f64() / 5.0) } else { Duration::ZERO };
                self.timers.set(Due::Machine(timer), Instant::now() + delay + more);
            }
            Action::Cancel(timer) => self.timers.cancel(&Due::Machine(timer)),
            Action::Standing { uid, standing } => {
                self.figures.stands(&uid, standing);
                self.say(&uid, None);
            }
            Action::Report { uid, report } => {
                let who = uid.as_ref().map(|uid| (uid, self.roster.told(uid)));
                report::tell(who, &report);
                self.say_reported(uid.as_ref(), &report);
                if let Report::Repaired { .. } = report {
                    self.figures.repaired("rules");
                }
            }
            Action::Drained => tracing::info!("every ambient pod is un-enrolled"),
        }
    }

    /// Says of a pod in the cluster how it stands.
    pub(super) fn say(&self, uid: &PodUid, report: Option<&Report>) {
        self.speaker.pod(self.machine.pod(uid).as_ref(), self.roster.told(uid), report);
    }

    /// The same of every pod: not all that makes one well again is an event of its own.
    pub(super) fn say_all(&self) {
        for view in self.machine.pods() {
            self.speaker.pod(Some(&view), self.roster.told(&view.uid), None);
        }
    }

    fn say_reported(&mut self, uid: Option<&PodUid>, report: &Report) {
        if let Some(uid) = uid {
            self.say(uid, Some(report));
        } else if self.speaker.node(report) {
            self.say_all();
        }
    }

    fn find(&mut self, step: StepId, uid: PodUid) {
        let uids = self.roster.told(&uid).map_or_else(|| vec![uid.as_str().to_owned()], Told::uids);
        self.steps.find(Search {
            step,
            uids,
            addresses: self.roster.addresses(&uid),
            records: self.roster.records(&uid).cloned().collect(),
            sandbox: self.roster.sandbox(&uid).cloned(),
            uid,
        });
    }

    fn program(&mut self, step: StepId, uid: &PodUid, netns: NetnsId) {
        let is_offered = self.offered.contains(&netns);
        let ports = if is_offered { Ports::Ztunnels } else { Ports::Ours };
        self.audits.forget(uid);
        let held = self.held.get(&netns).cloned();
        if let Some(name) = held.as_ref().and_then(|held| record_name(held, uid.as_str())) {
            self.roster.is_recorded(uid, name);
        }
        let subject = self.roster.subject(uid);
        self.steps.program(step, uid, netns, (subject, held), ports);
    }

    fn send(&mut self, session: SessionId, message: Message) {
        let held = match &message {
            Message::Add { netns, .. } => {
                self.offered.insert(*netns);
                self.held.get(netns)
            }
            _ => None,
        };
        self.ztunnels.send(session, message, held);
    }

    fn forget(&mut self, uid: &PodUid) {
        self.audits.forget(uid);
        self.steps.forget(uid);
        for name in self.roster.forget(uid) {
            // The sandbox may have become another pod's, with a record of its own.
            let is_own = |record| find::is_of(&record, uid.as_str());
            if self.node.records.read(&name).ok().flatten().is_some_and(is_own) {
                report::forgotten(self.node.records.remove(&name));
            }
        }
    }
}
