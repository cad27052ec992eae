//! When captured pods are looked at, and what becomes of what was seen.

use super::{AGAIN, Driver, Due};
use crate::ambient::audit::{Check, Checked};
use crate::metrics::figures::Why;
use ambient::event::Event;
use ambient::machine::Audit;
use std::time::Instant;

impl Driver {
    /// Looks at all pods that are captured, beside everything else.
    pub(super) fn audit(&mut self) {
        if self.audits.is_running() {
            self.timers.set(Due::Audit, Instant::now() + AGAIN);
            return;
        }
        self.timers.set(Due::Audit, Instant::now() + self.node.options.audit);
        self.roster.cleared().iter().for_each(|name| self.gone(name));
        self.say_all();
        let all: Vec<Audit> = self.machine.audits().collect();
        let checks = all.into_iter().filter_map(|audit| {
            let since = self.audits.take_one(audit.netns);
            self.check(audit, since)
        });
        let checks = checks.collect();
        self.look_at(checks, Why::Period);
    }

    /// Looks at those of which something was heard. What is being written to now is
    /// looked at after that.
    pub(super) fn audit_heard(&mut self) {
        if self.audits.is_running() {
            return;
        }
        let heard = self.audits.take();
        let found = self.machine.audits().filter_map(|audit| {
            let since = heard.get(&audit.netns)?;
            self.check(audit, Some(*since))
        });
        let checks = found.collect();
        self.look_at(checks, Why::Heard);
    }

    fn check(&self, audit: Audit, since: Option<Instant>) -> Option<Check> {
        Some(Check {
            addresses: self.roster.addresses(&audit.uid),
            subject: self.roster.subject(&audit.uid)?,
            held: self.held.get(&audit.netns)?.clone(),
            uid: audit.uid,
            since,
        })
    }

    fn look_at(&mut self, checks: Vec<Check>, why: Why) {
        checks.iter().for_each(|_| self.figures.looked(why));
        self.audits.begin(&mut self.steps.jobs, &self.node, checks, why);
    }

    pub(super) fn audited(&mut self, checked: Vec<Checked>) {
        for Checked { uid, netns, verdict, brought, since } in self.audits.end(checked) {
            if let Some((netns, held)) = brought {
                self.held.entry(netns).or_insert(held);
            }
            self.feed(Event::Audited { uid: uid.clone(), netns, verdict });
            if let Some(since) = since {
                self.figures.exposed_since(&uid, since);
            }
        }
    }
}
