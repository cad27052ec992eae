//! What a look at the node's pods starts from: the agent's own parts, or without an
//! agent the records and what the environment says of its settings.

use crate::ambient::Options;
use crate::backend::NodeBackend;
use crate::hosts::Hosts;
use crate::record::{Record, Records, SandboxId};
use redirect::enroll::Config;
use std::sync::Arc;
use sys::backend::BackendKind;

/// See the module.
#[derive(Debug)]
pub(crate) struct Known {
    /// What was programmed.
    pub(super) records: Arc<Records>,
    /// What decides about pods.
    pub(super) policy: Config,
    /// Settings of ambient mode.
    pub(super) options: Option<Options>,
    /// Namespaces that are no pod's.
    pub(super) hosts: Arc<Hosts>,
    backends: Backends,
}

#[derive(Debug)]
enum Backends {
    /// The agent's.
    Own(Arc<NodeBackend>),
    /// That which a record names.
    Either { nftables: Box<NodeBackend>, iptables: Box<NodeBackend> },
}

impl Known {
    /// The agent's own.
    pub(crate) fn of_agent(
        records: &Arc<Records>,
        policy: &Config,
        options: Option<&Options>,
        hosts: &Arc<Hosts>,
        backend: &Arc<NodeBackend>,
    ) -> Self {
        Self {
            records: Arc::clone(records),
            policy: policy.clone(),
            options: options.cloned(),
            hosts: Arc::clone(hosts),
            backends: Backends::Own(Arc::clone(backend)),
        }
    }

    /// Without an agent.
    pub(super) fn of_records(
        records: Records,
        policy: Config,
        options: Option<Options>,
        hosts: Hosts,
    ) -> Self {
        let of = |kind| Box::new(NodeBackend::unproved(kind, &sys::iptables::Search::default()));
        let backends = Backends::Either {
            nftables: of(BackendKind::Nftables),
            iptables: of(BackendKind::Iptables),
        };
        let (records, hosts) = (Arc::new(records), Arc::new(hosts));
        Self { records, policy, options, hosts, backends }
    }

    /// What looks at a record's namespace.
    pub(super) fn backend(&self, record: &Record) -> &NodeBackend {
        match &self.backends {
            Backends::Own(backend) => backend,
            Backends::Either { iptables, .. }
                if record.backend == BackendKind::Iptables.as_str() =>
            {
                iptables
            }
            Backends::Either { nftables, .. } => nftables,
        }
    }

    /// The settings are the agent's own, not just what the environment says.
    pub(super) fn is_certain(&self) -> bool {
        matches!(self.backends, Backends::Own(_))
    }

    /// Everything that is written down and can be read; the rest as text.
    pub(super) fn recorded(&self) -> (Vec<(SandboxId, Record)>, Vec<String>) {
        let (mut found, mut wrong) = (Vec::new(), Vec::new());
        for id in self.records.ids() {
            match self.records.read(&id) {
                Ok(Some(record)) => found.push((id, record)),
                Ok(None) => {}
                Err(error) => wrong.push(crate::failure::causes(&error)),
            }
        }
        (found, wrong)
    }
}
